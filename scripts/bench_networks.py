"""What `bench.py` lets the dense model and the networks that come from it do."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from bench_timing import Call, Work
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from neurtransformer.dense import load_dense
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.recipe import load_recipe
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.finetune import bfloat16_products, finetune
from neurtransformer.spiking.model import CACHE, SSAState

NETWORKS = ("ttfs", "linear", "steps", "integer")
CASES = ("evaluate", "prefill", "generate", "train")


def dense_model(name: str) -> PreTrainedModel:
    """The dense model called `name`, in float32 and eval mode."""
    if name != "small":
        return load_dense(name)[0]
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def converted(dense: PreTrainedModel, attention: str) -> Any:
    """`dense` by the default recipe with this attention."""
    recipe = load_recipe(attention=attention)
    length = min(256, dense.config.max_position_embeddings - 1)
    tokens = torch.randint(1, dense.config.vocab_size, (4, length))
    return convert(
        dense, tokens, recipe.timesteps, "", coding=recipe.coding, attention=attention,
        attention_code=recipe.attention_code, digits=recipe.digits,
        first_token=dense.config.bos_token_id,
    )  # fmt: skip


def networks_of(dense: PreTrainedModel, chosen: tuple[str, ...]) -> dict[str, Any]:
    """The dense model and the chosen networks that come from it, by name."""
    networks: dict[str, Any] = {"dense": dense}
    if {"ttfs", "steps", "integer"} & {*chosen}:
        race = converted(dense, "ttfs")
        networks |= {name: race for name in ("ttfs", "steps") if name in chosen}
        if "integer" in chosen:
            networks["integer"] = IntegerGPT2.from_spiking(race)
    if "linear" in chosen:
        networks["linear"] = converted(dense, "linear")
    return networks


def works(
    model: str,
    networks: dict[str, Any],
    case: str,
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    new: int,
) -> Iterator[Work]:
    """A case at all sizes that fit the model. contexts: in tokens, the innate first one among
    them."""
    config = networks["dense"].config
    for batch in batches:
        for context in (n for n in contexts if n <= config.max_position_embeddings):
            length = context - 1 - (new if case == "generate" else 0)
            ids = torch.randint(1, config.vocab_size, (batch, length))
            name = f"{model}, {case}, {batch} x {context}"
            if case == "train":
                yield Work(name, ids.numel(), training(networks, ids))
                continue
            able = {n: x for n, x in networks.items() if n != "integer" or batch == 1}
            yield Work(
                name,
                batch * (new if case == "generate" else context),
                {n: call_of(x, ids, case, new, n == "steps") for n, x in able.items()},
                kept={n: kept_bytes(x, ids) for n, x in able.items() if n != "integer"},
            )


def call_of(network: Any, ids: Tensor, case: str, new: int, steps: bool) -> Call:
    """What a network does with ids (batch, length) in a case."""

    @torch.inference_mode()
    def call() -> Any:
        if isinstance(network, IntegerGPT2):
            return network.generate(ids, new) if case == "generate" else network(ids)
        network.steps = steps
        if case == "evaluate":
            return network(ids, use_cache=False)
        if case == "prefill":
            return network(ids, use_cache=True, logits_to_keep=1)
        return network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )

    return call


def training(networks: dict[str, Any], ids: Tensor) -> dict[str, Call]:
    """A step of training: the dense model's own, by the next token, and for each network a step of
    `finetune`, the teacher's forward pass in it, without and with activations computed anew."""
    recipe = load_recipe().finetune.changed(steps=1, batch=len(ids))
    dense = networks["dense"]
    own = copy.deepcopy(dense)

    def dense_step() -> None:
        own.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(own.transformer.h.parameters(), lr=1e-5)
        with bfloat16_products():
            logits = own(ids).logits[:, :-1]
            F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
        own.zero_grad(set_to_none=True)

    def step_of(network: Any, anew: bool) -> Call:
        network = copy.deepcopy(network)
        network.steps = False
        settings = recipe.changed(gradient_checkpointing=anew)

        def step() -> None:
            finetune(
                network, dense, ids, settings, seed=0, device="cpu", checkpoint=None, resume=False,
                on_step=lambda _: None,
            )  # fmt: skip
            network.zero_grad(set_to_none=True)

        return step

    calls: dict[str, Call] = {"dense": dense_step}
    for name in ("ttfs", "linear"):
        if name in networks:
            calls[name] = step_of(networks[name], anew=False)
            calls[f"{name}, gradient_checkpointing"] = step_of(networks[name], anew=True)
    return calls


@torch.inference_mode()
def kept_bytes(network: Any, ids: Tensor) -> float:
    """Bytes that are kept of a text, for each of its tokens."""
    state = network(ids, use_cache=True, logits_to_keep=1)[CACHE]
    if isinstance(state, SSAState):
        parts = [part for block in state.states if block is not None for part in block]
    else:
        parts = [part for layer in state.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in parts) / ids.numel()
