"""Spiking network -> config and tensors of the integer network."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurtransformer.codes import STATE_BITS
from neurtransformer.errors import UserError
from neurtransformer.integer import quantise
from neurtransformer.integer.config import MAX_STREAM_BITS, IntegerConfig
from neurtransformer.integer.packed import Packed
from neurtransformer.recipe import checked
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import SpikeLinear, snapping_anew

PROBE = (2, 64)
"""Sequences and tokens of the random text that sizes of activations are measured on."""

STREAM_ROOM = 8
"""A channel of the stream may be so many times larger than on that text before it saturates."""


def quantised(model: SpikingLanguageModel) -> tuple[IntegerConfig, Packed]:
    """Quantise a spiking network. Raises UserError if it holds NaN or infinities, or sizes or a
    code that integers cannot have."""
    for name, parameter in model.state_dict().items():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{name} holds NaN or infinite weights: fine-tune or convert again")
    c, s, seen = model.config, model.config.sizes, probed(model)
    sizes = {
        "model": c.family,
        "layers": s.layers,
        "width": s.width,
        "heads": s.heads,
        "kv_heads": s.kv_heads,
        "rotary": c.rotary,
        "hidden": s.hidden,
        "vocabulary": s.vocabulary,
        "positions": s.context,
        "timesteps": c.timesteps,
        "coding": c.coding,
        "attention": c.attention,
        "attention_timesteps": c.attention_code.timesteps,
        "attention_coding": c.attention_code.coding,
        "digits": c.digits,
        "first_token": c.first_token,
        "hidden_timesteps": c.hidden_timesteps,
        "hidden_spikes": c.hidden_spikes,
        "epsilon": c.epsilon,
        "stream_bits": stream_bits(seen.stream),
    }
    config = checked(IntegerConfig, sizes, None)
    tensors = Packed()
    tensors.update(quantise.quantise_embedding(model, config))
    for i, block in enumerate(model.blocks):
        tensors.update(quantise.quantise_attention(block, f"h.{i}.attn", config, seen.membranes))
        tensors.update(quantise.quantise_feedforward(block, f"h.{i}.mlp", config, seen.membranes))
    tensors.update(quantise.quantise_head(model, config, seen.final, seen.logits))
    return config, tensors


class Seen(NamedTuple):
    """Largest magnitudes on random tokens, which are the same for every text. stream: of the
    residual stream, without the mean that nothing sees. membranes: of what each projection of the
    blocks drives, by its name in the integer network, (out,). final: of each channel that the last
    norm sends to the LM head, (width,). logits: those of each token, (vocabulary,)."""

    stream: float
    membranes: dict[str, NDArray[np.float64]]
    final: NDArray[np.float64]
    logits: NDArray[np.float64]


@torch.no_grad()
def probed(model: SpikingLanguageModel) -> Seen:
    """What a spiking network does with such text."""
    size = PROBE[0], min(PROBE[1], model.config.context)
    ids = torch.randint(model.config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    found: list[float] = []
    layer_norm = model.config.norm == "layer"

    final = np.zeros(model.config.sizes.width)
    membranes: dict[str, NDArray[np.float64]] = {}

    def largest(x: Tensor) -> NDArray[np.float64]:
        return x.abs().amax((0, 1)).double().cpu().numpy()

    def watch(module: torch.nn.Module, args: tuple[Tensor, ...], normed: Tensor) -> None:
        x = args[0]
        final[:] = largest(normed)
        found.append(float((x - x.mean(-1, keepdim=True) if layer_norm else x).abs().max()))

    def watch_membranes(name: str) -> Callable[..., None]:
        def watch(module: torch.nn.Module, args: tuple[Tensor, ...], u: Tensor) -> None:
            membranes[name] = largest(u)

        return watch

    # the last norm is the last that is heard
    norms = [*(n for b in model.blocks for n in (b.ln_1, b.ln_2)), model.transformer["ln_f"]]
    hooks = [norm.register_forward_hook(watch) for norm in norms]
    hooks += [
        module.register_forward_hook(watch_membranes(f"h.{i}.{name}"))
        for i, block in enumerate(model.blocks)
        for name, module in block.named_modules()
        if isinstance(module, SpikeLinear)
    ]
    try:
        with snapping_anew(model):
            logits = largest(model(ids).logits)
    finally:
        for hook in hooks:
            hook.remove()
    return Seen(max(found), membranes, final, logits)


def stream_bits(largest: float) -> int:
    """Fraction bits of a residual stream of magnitudes up to `largest`, 0..MAX_STREAM_BITS: as many
    as leave STREAM_ROOM. Raises UserError for a stream that no number of them leaves room for."""
    if not largest < 2.0 ** (STATE_BITS - 1) / STREAM_ROOM:
        raise UserError(
            f"the residual stream of this model reaches {largest:.3g}, too much for {STATE_BITS} "
            "bits: its weights are damaged, or fine-tuning went wrong"
        )
    integer_bits = math.ceil(math.log2(max(largest, 2.0**-STATE_BITS) * STREAM_ROOM))
    return int(np.clip(STATE_BITS - 1 - integer_bits, 0, MAX_STREAM_BITS))
