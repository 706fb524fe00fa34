"""Which tensors an IntegerGPT2 has: name -> shape, type, range, and whose they are.

One list for two uses: a netlist writes each tensor to where it belongs, and believes what it reads
only if it is on the list.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT, WEIGHT_LIMIT
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.quantise import Tensors, worst_sums
from neurtransformer.spiking.attention import NO_FORGETTING, qkv_sizes

Home = Literal["synapses", "chip", "host"]


@dataclass(frozen=True)
class Entry:
    """One tensor. home: the projections (netx files), the chip's other integers, or the host."""

    shape: tuple[int, ...]
    home: Home
    dtype: str = "float32"
    low: float = -np.inf
    high: float = np.inf


def layout(config: IntegerConfig) -> dict[str, Entry]:
    """All tensors of an IntegerGPT2 of these sizes, a separate LM head apart."""
    width = (config.width,)
    entries = {
        "wte.weight": Entry((config.vocabulary, config.width), "host"),
        "wpe.weight": Entry((config.positions, config.width), "host"),
        "ln_f.weight": Entry(width, "host"),
        "ln_f.bias": Entry(width, "host"),
    }
    for block in range(config.layers):
        for norm in ("ln_1", "ln_2"):
            entries[f"h.{block}.{norm}.weight"] = Entry(width, "host")
            entries[f"h.{block}.{norm}.bias"] = Entry(width, "host")
        for name, network in (("attn", _attention(config)), ("mlp", _feedforward(config))):
            entries |= {f"h.{block}.{name}.{key}": entry for key, entry in network}
    return entries


def _chip(size: int, low: int, high: int) -> Entry:
    return Entry((size,), "chip", "int32", low, high)


def _projection(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Entry]]:
    even = -WEIGHT_LIMIT, WEIGHT_LIMIT
    yield f"{name}.weight", Entry((outputs, inputs), "synapses", "int16", *even)
    yield f"{name}.bias", _chip(outputs, -LIMIT, LIMIT)
    yield f"{name}.scale", Entry((outputs,), "host", low=float(np.finfo(np.float32).tiny))


def _encode(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
    yield "encode.threshold", Entry((config.width,), "host")
    yield "encode.center", Entry((config.width,), "host")


def _attention(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
    width, heads = config.width, config.heads
    yield from _encode(config)
    rows = sum(qkv_sizes(width))
    yield from _projection("c_attn", rows, width)
    yield "qkv.theta", _chip(rows, 1, LIMIT // config.timesteps)
    yield "ssa.shift", _chip(heads, 0, NO_FORGETTING)
    yield "ssa.present", _chip(heads, 0, 255)
    yield "merged.theta", _chip(width, 1, LIMIT // config.most)
    center = arithmetic.MERGED_CENTER_LIMIT
    yield "merged.bias", _chip(width, -center, center)
    yield from _projection("c_proj", width, width)


def _feedforward(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
    hidden, mantissas = config.hidden, arithmetic.GELU_MANTISSAS
    yield from _encode(config)
    yield from _projection("c_fc", hidden, config.width)
    yield "hidden.mantissa", _chip(hidden, mantissas[0], mantissas[-1])
    yield "hidden.shift", _chip(hidden, -24, 62)
    yield "hidden.center", _chip(hidden, -LIMIT, LIMIT)
    yield "hidden.theta", _chip(hidden, 1, LIMIT // config.hidden_most)
    unit = 1 << arithmetic.GELU_BITS
    yield "hidden.table", _chip(arithmetic.GELU_ENTRIES, -unit, unit)
    yield from _projection("c_proj", config.width, hidden)


def check(config: IntegerConfig, tensors: Tensors, complain: Callable[[str], None]) -> None:
    """Call `complain` with what is wrong with the first tensor that does not fit the layout.

    Beyond shapes and ranges: weights are even, and no membrane can leave 24 bits.
    """
    entries = layout(config)
    if "lm_head.weight" in tensors:
        entries["lm_head.weight"] = entries["wte.weight"]
    for name in sorted(entries.keys() ^ tensors.keys()):
        complain(f"{name} is {'missing' if name in entries else 'not expected'}")
    for name, entry in entries.items():
        x = tensors[name]
        if x.shape != entry.shape or x.dtype.name != entry.dtype:
            complain(
                f"{name} is {x.dtype.name} {x.shape}, but should be {entry.dtype} {entry.shape}"
            )
        if not np.isfinite(x).all() or x.min() < entry.low or x.max() > entry.high:
            complain(f"{name} holds values out of range")
        if entry.home == "synapses" and (x & 1).any():
            complain(f"{name} holds odd weights")
    for block in range(config.layers):
        for name, neurons in ((f"h.{block}.attn", "qkv"), (f"h.{block}.mlp", None)):
            first = "c_attn" if neurons else "c_fc"
            theta = tensors[f"{name}.{neurons}.theta"] if neurons else 0
            gain = 1 if neurons else arithmetic.GELU_MANTISSAS[-1]
            behind = config.most if neurons else config.hidden_most
            for projection, most, beside, factor in (
                (first, config.most, theta, gain),
                ("c_proj", behind, 0, 1),
            ):
                weight = tensors[f"{name}.{projection}.weight"]
                bias = tensors[f"{name}.{projection}.bias"]
                worst = worst_sums(weight, bias, most) + beside
                if (worst * factor > LIMIT).any():
                    complain(f"membranes of {name}.{projection} can leave 24 bits")
