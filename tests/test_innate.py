"""The innate first token: what it stands for, and that a text may name it too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Done
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from neurtransformer.families.base import tapped
from neurtransformer.recipe import Code
from neurtransformer.runs import read_json
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.innate import after_first, dense_output, first_token_of
from neurtransformer.spiking.model import SpikingLanguageModel

WORDS, CONTEXT, FIRST = 60, 32, 0
KINDS = ["ttfs", "linear"]
FAMILIES = ["gpt2", "llama"]


def dense_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    ends = {"bos_token_id": FIRST, "eos_token_id": FIRST}
    if family == "gpt2":
        config = GPT2Config(vocab_size=WORDS, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2,
                            **ends)  # fmt: skip
        dense: PreTrainedModel = GPT2LMHeadModel(config)
    else:
        dense = LlamaForCausalLM(LlamaConfig(
            vocab_size=WORDS, max_position_embeddings=CONTEXT, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, **ends,
        ))  # fmt: skip
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if parameter.ndim == 2 and "wte" not in name and "embed" not in name:
                parameter.mul_(8.0)
    return dense.eval()


def words(*shape: int, seed: int = 0) -> Tensor:
    """Tokens of a text, none of them the first one."""
    return torch.randint(1, WORDS, shape, generator=torch.Generator().manual_seed(seed))


def spiking(dense: PreTrainedModel, kind: str) -> SpikingLanguageModel:
    code = Code(6, "phase") if kind == "ttfs" else Code(8, "rate")
    return convert(
        dense, words(8, 24), 8, "", coding="phase", attention=kind, attention_code=code,
        first_token=FIRST,
    )  # fmt: skip


@pytest.fixture(params=[(family, kind) for family in FAMILIES for kind in KINDS], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, SpikingLanguageModel]:
    family, kind = request.param
    dense = dense_model(family)
    return dense, spiking(dense, kind)


@torch.no_grad()
def test_it_is_the_token_before_the_text(
    pair: tuple[PreTrainedModel, SpikingLanguageModel],
) -> None:
    """Nearer to the dense model after that token than to the dense model without it."""
    dense, model = pair
    ids = words(6, 20, seed=1)
    ours = model(ids).logits
    after, without = dense_output(dense, ids, FIRST)[0], dense(ids).logits
    near, far = (F.mse_loss(ours, theirs) for theirs in (after, without))
    # fast weights are no softmax, and so are far from both
    assert near < (0.5 if model.config.attention == "ttfs" else 1.0) * far
    # and it is all there is to the first token of a text: the network was told its keys and values
    for block in model.blocks:
        assert block.attn.first_key is not None and block.attn.first_key.abs().sum() > 0


@torch.no_grad()
def test_a_text_that_names_it_means_the_same(
    pair: tuple[PreTrainedModel, SpikingLanguageModel],
) -> None:
    dense, model = pair
    ids = words(3, 12, seed=2)
    named = after_first(ids, FIRST)
    alone, with_name = model(ids).logits, model(named).logits
    assert torch.allclose(with_name[:, 1:], alone, atol=1e-4)
    # what follows the token itself is what the dense model says
    assert torch.allclose(with_name[:, 0], dense(named[:, :1]).logits[:, 0], atol=1e-4)
    # in a batch some name it and some do not, with padding in front
    mixed = torch.full((3, 14), 5)
    mask = torch.zeros_like(mixed)
    mixed[0, 2:], mask[0, 2:] = ids[0], 1
    mixed[1, 1:], mask[1, 1:] = named[1], 1
    mixed[2, 5:], mask[2, 5:] = named[2, :9], 1
    logits = model(mixed, attention_mask=mask).logits
    assert torch.allclose(logits[0, 2:], alone[0], atol=1e-4)
    assert torch.allclose(logits[1, 2:], alone[1], atol=1e-4)
    assert torch.allclose(logits[2, 6:], alone[2, :8], atol=1e-4)


@torch.no_grad()
def test_token_by_token_and_by_generate(
    pair: tuple[PreTrainedModel, SpikingLanguageModel],
) -> None:
    _, model = pair
    ids = words(1, 6, seed=3)
    named = after_first(ids, FIRST)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    settings["eos_token_id"] = None
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    again = model.generate(named, attention_mask=torch.ones_like(named), **settings)
    assert torch.equal(again[:, 1:], plain)
    greedy = model(plain).logits.argmax(-1)
    assert torch.equal(greedy[:, 5:-1], plain[:, 6:])
    # a batch of texts that do and do not name it, padded on the left
    both = torch.cat([F.pad(ids, (1, 0), value=1), named])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1] * 7])
    batch = model.generate(both, attention_mask=mask, **settings)
    assert torch.equal(batch[:, 7:], plain[:, 6:].expand(2, -1))


@torch.no_grad()
def test_it_takes_one_position(pair: tuple[PreTrainedModel, SpikingLanguageModel]) -> None:
    _, model = pair
    assert model.config.context == CONTEXT - 1
    model(words(1, CONTEXT - 1))
    model(after_first(words(1, CONTEXT - 1), FIRST))
    with pytest.raises(ValueError, match=f"position {CONTEXT}"):
        model(words(1, CONTEXT))


def test_fine_tuning_reaches_its_synapses(
    pair: tuple[PreTrainedModel, SpikingLanguageModel],
) -> None:
    _, model = pair
    model.train()(words(2, 12)).logits.square().mean().backward()
    for block in model.blocks:
        value = block.attn.first_value
        assert value is not None and value.grad is not None
        assert value.grad.abs().sum() > 0


def test_rows_that_begin_with_it_are_not_given_it_twice() -> None:
    dense = dense_model("gpt2")
    ids = words(3, 10, seed=4)
    ids[1, 0] = FIRST
    with torch.no_grad():
        logits, hidden = dense_output(dense, ids, FIRST)
        plain = dense(ids[1:2], output_hidden_states=True)
        first = dense(after_first(ids[:1], FIRST)).logits[:, 1:]
    assert torch.allclose(logits[1:2], plain.logits, atol=1e-4)
    assert torch.allclose(hidden[1:2], plain.hidden_states[-1], atol=1e-4)
    assert torch.allclose(logits[:1], first, atol=1e-4)


@pytest.mark.parametrize(
    ("ends", "found"),
    [((3, 4), 3), ((None, 4), 4), (([5, 6], 4), 5), ((WORDS, 4), 4), ((None, None), None)],
)
def test_which_token_it_is(ends: tuple[Any, Any], found: int | None) -> None:
    dense = dense_model("gpt2")
    dense.generation_config.bos_token_id, dense.generation_config.eos_token_id = ends
    assert first_token_of(dense) == found


# --- what it is for ---


SINK, MASSIVE = 0, 1
"""Residual channels: what marks the first position, and what the sink writes."""


@torch.no_grad()
def with_sink(planted: bool) -> GPT2LMHeadModel:
    """A random GPT-2 whose channel SINK is silent but at the first position, if it is `planted`:
    there it drives hidden neurons of the first block a thousand times as far as they go otherwise,
    and with them one residual channel. What else it computes is the same with and without."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=CONTEXT, n_embd=64, n_layer=3, n_head=4,
        bos_token_id=FIRST, eos_token_id=FIRST,
    )  # fmt: skip
    dense = GPT2LMHeadModel(config).eval()
    transformer = dense.transformer
    writes = [transformer.wte.weight, transformer.wpe.weight]
    for block in transformer.h:
        for conv in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            conv.weight.mul_(8)
        writes += [block.attn.c_proj.weight, block.mlp.c_proj.weight]
    for weight in writes:
        # without a mean, which a norm would put into the silent channel
        weight[:, SINK] = 0
        weight[:, 1:] -= weight[:, 1:].mean(1, keepdim=True)
    if planted:
        transformer.wpe.weight[0, SINK] = 5
        transformer.h[0].mlp.c_fc.weight[SINK, ::4] = 150
        transformer.h[0].mlp.c_proj.weight[::4, MASSIVE] += 1
        for block in transformer.h[1:]:
            # heads rest on a sink, so its values are small
            block.attn.c_attn.weight[MASSIVE, 2 * config.n_embd :] = 0
    return dense


@torch.no_grad()
def test_a_planted_sink_costs_nothing() -> None:
    text, heldout = words(40, CONTEXT - 1), words(20, CONTEXT - 1, seed=9)

    def divergence(dense: GPT2LMHeadModel, first: int | None) -> float:
        model = convert(
            dense, text, 8, "", coding="phase", attention="ttfs",
            attention_code=Code(6, "phase"), first_token=first,
        )  # fmt: skip
        wanted = dense_output(dense, heldout, first)[0].log_softmax(-1)
        found = model(heldout).logits.log_softmax(-1)
        terms = F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)
        return float(terms[:, 1:].mean())

    plain, planted = with_sink(False), with_sink(True)
    with tapped(planted) as taps:
        planted(heldout)
    hidden = taps[0]["hidden"].abs()
    assert hidden[:, 0, ::4].min() > 1000 * hidden[:, 1:].mean()
    without = divergence(plain, FIRST)
    assert divergence(planted, FIRST) < 1.3 * without
    # coded like any other token it costs more
    assert divergence(planted, None) > 2 * without


def test_convert_makes_it_unless_told_otherwise(
    neurtx: Callable[..., Done], tmp_path: Any, tiny_dense_folder: Any
) -> None:
    (tmp_path / "without.yaml").write_text("innate_first_token: false\n")
    assert neurtx("convert", str(tiny_dense_folder), "--out", "with").returncode == 0
    without = ("--config", "without.yaml", "--out", "without")
    assert neurtx("convert", str(tiny_dense_folder), *without).returncode == 0
    found = [read_json(tmp_path / name / "config.json")["first_token"]
             for name in ("with", "without")]  # fmt: skip
    assert found == [0, None]
