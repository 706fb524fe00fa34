"""Which tensors an IntegerGPT2 has: name -> shape, type, range, and which kind of file they go to.

One list for two uses: a netlist writes each tensor to where it belongs, and believes what it reads
only if it is on the list.
"""

from collections.abc import Callable, Iterator

from neurtransformer.integer import arithmetic, rotary
from neurtransformer.integer.arithmetic import LIMIT, WEIGHT_LIMIT
from neurtransformer.integer.attention import KINDS
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.entries import Entries, Entry, check_entries
from neurtransformer.integer.parts import Tensors
from neurtransformer.integer.quantise import (
    ENCODE_LIMIT,
    SHIFT_RANGE,
    active_tokens,
    worst_sums,
)
from neurtransformer.recipe import Coding


def layout(config: IntegerConfig) -> dict[str, Entry]:
    """All tensors of an IntegerGPT2 of these sizes."""
    entries = {f"embed.{key}": entry for key, entry in _embedding(config)}
    for block in range(config.layers):
        for name, network in (("attn", _attention(config)), ("mlp", _feedforward(config))):
            entries |= {f"h.{block}.{name}.{key}": entry for key, entry in network}
    return entries | {f"head.{key}": entry for key, entry in _head(config)}


def _chip(size: int, low: int, high: int) -> Entry:
    return Entry((size,), "chip", low, high)


def _projection(name: str, outputs: int, inputs: int) -> Entries:
    yield f"{name}.weight", Entry((outputs, inputs), "synapses", -WEIGHT_LIMIT, WEIGHT_LIMIT)
    yield f"{name}.bias", _chip(outputs, -LIMIT, LIMIT)


def _multiplier(name: str, size: int) -> Entries:
    yield f"{name}.mantissa", _chip(size, arithmetic.MANTISSAS[0], arithmetic.MANTISSAS[-1])
    yield f"{name}.shift", _chip(size, *SHIFT_RANGE)


def _carry(config: IntegerConfig, name: str, size: int, coding: Coding) -> Entries:
    if config.carries(coding):
        yield f"{name}.carry", _chip(size, 0, arithmetic.MOST_CARRIED)


def _encoder(config: IntegerConfig, most: int, coding: Coding) -> Entries:
    yield "norm.epsilon", _chip(1, 0, LIMIT)
    yield "encode.theta", _chip(config.width, 1, LIMIT // most)
    yield "encode.bias", _chip(config.width, -ENCODE_LIMIT, ENCODE_LIMIT)
    yield from _carry(config, "encode", config.width, coding)


def _embedding(config: IntegerConfig) -> Entries:
    yield from _projection("table", config.width, config.rows_in)
    yield from _multiplier("stream", config.width)


def _attention(config: IntegerConfig) -> Entries:
    width, kind, code = config.width, KINDS[config.attention], config.attention_code
    yield from _encoder(config, code.most, code.coding)
    rows = sum(kind.sizes(width, config.kv_width))
    yield from _projection("c_attn", rows, width)
    yield "qkv.theta", _chip(rows, 1, LIMIT // kind.qkv_code(code).most)
    if config.rotary:
        unit = 1 << rotary.PAIR_BITS
        shapes = rotary.table_shapes(config.positions, config.dim)
        for name, shape in zip(("coarse", "fine"), shapes, strict=True):
            yield f"qkv.{name}", Entry(shape, "chip", -unit, unit)
    yield from kind.entries(config)
    yield "merged.theta", _chip(width, 1, LIMIT // code.most)
    center = arithmetic.MERGED_CENTER_LIMIT
    yield "merged.bias", _chip(width, -center, center)
    yield from _carry(config, "merged", width, code.coding)
    yield from _projection("c_proj", width, width)
    yield from _multiplier("residual", width)


def _feedforward(config: IntegerConfig) -> Entries:
    hidden = config.hidden
    yield from _encoder(config, config.most, config.coding)
    yield from _projection("c_fc", (1 + config.gated) * hidden, config.width)
    yield from _multiplier("hidden", hidden)
    if config.gated:
        yield "hidden.drop", _chip(hidden, 0, arithmetic.MOST_DROPPED)
    yield "hidden.center", _chip(hidden, -LIMIT, LIMIT)
    yield "hidden.theta", _chip(hidden, 1, LIMIT // config.hidden_most)
    yield from _carry(config, "hidden", hidden, config.coding)
    unit = 1 << arithmetic.GELU_BITS
    entries = arithmetic.SILU_ENTRIES if config.gated else arithmetic.GELU_ENTRIES
    yield "hidden.table", _chip(entries, -unit, unit)
    yield from _projection("c_proj", config.width, hidden)
    yield from _multiplier("residual", config.width)


def _head(config: IntegerConfig) -> Entries:
    yield from _encoder(config, config.final_code.most, config.final_code.coding)
    yield from _projection("lm_head", config.vocabulary, config.width)
    yield from _multiplier("logits", config.vocabulary)
    if config.first_token is not None:
        yield "first_logits", _chip(config.vocabulary, -LIMIT, LIMIT)


def check(config: IntegerConfig, tensors: Tensors, complain: Callable[[str], None]) -> None:
    """Call `complain` with what is wrong with the first tensor that does not fit the layout.

    Beyond shapes and ranges: weights are even, and no membrane can leave 24 bits.
    """
    check_entries(layout(config), tensors, complain)
    for projection, most, theta, active, neurons in _membranes(config):
        weight, bias = tensors[f"{projection}.weight"], tensors[f"{projection}.bias"]
        carry = tensors.get(f"{neurons}.carry")
        beside = tensors[theta] if theta else 0
        if (worst_sums(weight, bias, most, active, carry) + beside > LIMIT).any():
            complain(f"membranes of {projection} can leave 24 bits")


def _membranes(config: IntegerConfig) -> Iterator[tuple[str, int, str | None, int | None, str]]:
    """Every projection: its name, the largest count that drives it, whose thresholds must fit
    beside its sums, how many of its inputs spike at once, if not all may, and the neurons in front.
    Of what saturates (`arithmetic.saturated`) a step must fit: single spikes."""
    yield "embed.table", 1, None, active_tokens(config), "tokens"
    code = config.attention_code
    most = 1 if config.carries(code.coding) else code.most
    of_mlp, hidden_most = config.most, config.hidden_most
    if config.carries(config.coding):
        of_mlp = hidden_most = 1
    for block in range(config.layers):
        attention, feedforward = f"h.{block}.attn", f"h.{block}.mlp"
        yield (
            f"{attention}.c_attn", most, f"{attention}.qkv.theta", None, f"{attention}.encode"
        )  # fmt: skip
        yield f"{attention}.c_proj", most, None, None, f"{attention}.merged"
        yield f"{feedforward}.c_fc", of_mlp, None, None, f"{feedforward}.encode"
        yield f"{feedforward}.c_proj", hidden_most, None, None, f"{feedforward}.hidden"
    final = config.final_code
    final_most = 1 if config.carries(final.coding) else final.most
    yield "head.lm_head", final_most, None, None, "head.encode"
