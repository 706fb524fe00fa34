"""NIR graphs of what NIR can hold of an integer network: its feed-forward chains, count for count.

NIR (https://neuroir.org, doi 10.1038/s41467-024-52259-9) has no soft reset: its IF resets to a
voltage, and simulators differ, some subtract the threshold. The neurons written here do not mind.
Input channels behind those of the spikes carry constants, each once per token:

    start        in the first step: the bias, less a hold that keeps the neuron silent
    clock 1..S   in the S steps after integration: the hold given back, and a rising ramp

With the *levels* L_1 < ... < L_S of a neuron and its integrated membrane u, the ramp brings v to
``u + 1 - L_(S+1-s)`` in firing step s until it reaches a level, and by at least 1 from there on.
All is whole numbers and the threshold is 1/2, so from that step on it fires in every step, whether
a spike resets v to 0 or subtracts 1/2, and whether the threshold must be reached or passed. It
fires once for each level ``L_k <= u``: a rate-coding neuron has ``L_k = k theta - theta/2``, and
its train is that of `arithmetic.fire_steps` in reverse. Any other firing curve over u is a sum of
such neurons, so a GELU is one too.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import (
    GELU_BITS,
    GELU_ENTRIES,
    GELU_INDEX_BITS,
    LIMIT,
    WEIGHT_BITS,
    Integers,
    fire_counts,
)
from neurtransformer.integer.attention import IntegerAttention
from neurtransformer.integer.blocks import IntegerFeedForward
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import GeluNeurons
from neurtransformer.runs import write_json

EXACT = 2**24
"""Whole numbers up to here are exact in the float32 that simulators of NIR compute in."""

NEVER = 2**62
"""A level that no membrane reaches."""

LEFT_OUT = {
    "spiking self-attention": "its synapses are written as it runs: reading them is a product of "
    "two signals (state, or key, by query); a NIR node multiplies by constants only, and none has "
    "plastic weights",
    "its normalisation": "a division, which is a product of two signals",
    "LayerNorm": "squares the signal and multiplies it by its inverse length",
    "encode neurons": "could be held, but LayerNorm drives them",
    "merged neurons": "could be held, but the normalisation drives them",
    "residual stream": "edges that meet add up, but each sum goes on into a LayerNorm",
    "embedding, LM head": "not part of a block",
}
"""What a NIR graph of the network lacks, and why."""

_DRIVE = (
    "Per token, from reset neurons: any number of integration steps, then the fire steps. Channels "
    "[0, inputs): the spikes or counts, in integration steps. Channel `start`: 1 in the first "
    "step. Channels `clock`: the s-th is 1 in the s-th fire step. All else is 0, dt is 1. Add up "
    "what comes out. Where fire_steps is 0 there are the counts alone, in one step."
)


@dataclass(frozen=True)
class Chain:
    """A graph, how many fire steps it takes (0: none, counts in one step), and what comes out:
    the channels of each part of the output."""

    graph: nir.NIRGraph
    inputs: int
    fire_steps: int
    output: dict[str, tuple[int, int]]


# --- neurons ---


def level_neurons(
    weight: Integers, bias: Integers, levels: Integers, most: int
) -> tuple[nir.Linear, nir.IF]:
    """Neurons that fire once for each level that ``weight @ counts + bias`` reaches.

    weight: (n, in). bias: (n,). levels: (n, S), ascending, none twice within reach. most: the
    largest count of an input. Raises UserError if a membrane would not be exact in float32.
    """
    reach = most * np.abs(weight).sum(1, keepdims=True) + np.abs(bias[:, None])
    # out of reach is out of reach, and near numbers stay exact
    levels = np.minimum(levels, reach + 1)
    if (reach + np.maximum(np.abs(levels).max(1, keepdims=True), reach) >= EXACT).any():
        raise UserError("a membrane is too large for the float32 of NIR simulators: convert again")
    start = bias[:, None] - reach
    clock = np.concatenate([reach + 1 - levels[:, -1:], np.diff(levels)[:, ::-1]], axis=1)
    columns = np.concatenate([weight, start, clock], axis=1).astype(np.float32)
    ones = np.ones(len(weight), dtype=np.float32)
    return nir.Linear(columns), nir.IF(r=ones, v_threshold=ones / 2, v_reset=0 * ones)


def rate_levels(theta: Integers, most: int) -> Integers:
    """Levels of rate-coding neurons, thresholds (n,), that count to `most`: (n, most)."""
    passed = theta[:, None] * np.arange(1, most + 1)
    # a membrane in its firing phase saturates at LIMIT
    return np.where(passed <= LIMIT, passed - (theta[:, None] >> 1), NEVER)


def gelu_levels(hidden: GeluNeurons, reach: Integers, most: int) -> tuple[Integers, ...]:
    """The firing curve of GELU neurons as a sum of level neurons: (neuron, sign, levels).

    reach: (n,), the largest magnitude of a membrane. most: the largest count.
    neuron, sign: (rows,), the neuron that a row is of and what its spikes count, +1 or -1. levels:
    (rows, S). A GELU falls before it rises, and its table makes it fall a little now and then:
    levels at which the count falls stand in rows of sign -1. Where it moves by more than one at
    once, there are as many rows.
    """
    neuron, sign, level = _crossings(hidden, reach, most)
    order = np.lexsort((level, sign, neuron))
    neuron, sign, level = neuron[order], sign[order], level[order]
    keys = np.stack([neuron, sign, _index_in_run(neuron, sign, level)])
    order = np.lexsort((level, *keys))
    keys, level = keys[:, order], level[order]
    place = _index_in_run(*keys)
    row = np.cumsum(place == 0) - 1
    levels = np.full((int((place == 0).sum()), int(place.max(initial=0)) + 1), NEVER)
    levels[row, place] = level
    neuron, sign, _ = keys[:, place == 0]
    return neuron, sign, levels


def _crossings(hidden: GeluNeurons, reach: Integers, most: int) -> tuple[Integers, ...]:
    """Where counts change: (neuron, sign, level); count(u) is the sum of sign over level <= u."""
    # the curve never falls between two of these, the edges of the table's entries
    edges = np.arange(1, GELU_ENTRIES + 1) << (GELU_BITS - GELU_INDEX_BITS)
    x = np.concatenate([1 - edges[::-1], edges])[:, None]
    right, left = np.maximum(hidden.shift, 0), np.maximum(-hidden.shift, 0)
    # the least membrane whose fixed point is x or more
    first = -(((1 << right >> 1) - (x << right)) // (hidden.mantissa << left))
    points = np.concatenate([-reach[None], first - 1, first, reach[None]])
    points = np.sort(np.clip(points, -reach, reach), axis=0)
    count = fire_counts(hidden.membrane(points), hidden.theta, most, signed=False)

    change = np.diff(count, axis=0)
    at, neuron = np.nonzero(change)
    by = np.abs(change[at, neuron])
    at, neuron = np.repeat(at, by), np.repeat(neuron, by)
    sign = np.sign(change[at, neuron])
    low, high = points[at, neuron], points[at + 1, neuron]
    # a count that falls does so from one membrane to the next: no search
    target = np.where(sign > 0, count[at, neuron] + 1 + _index_in_run(at, neuron), most + 1)
    one = replace(
        hidden,
        mantissa=hidden.mantissa[neuron],
        shift=hidden.shift[neuron],
        center=hidden.center[neuron],
        theta=hidden.theta[neuron],
    )
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = fire_counts(one.membrane(middle), one.theta, most, signed=False) >= target
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)

    # spikes at rest: levels that every membrane reaches
    rest = np.repeat(np.arange(len(reach)), count[0])
    always = -reach[rest] - _index_in_run(rest)
    return (
        np.concatenate([rest, neuron]),
        np.concatenate([np.ones_like(rest), sign]),
        np.concatenate([always, high]),
    )


def _index_in_run(*keys: Integers) -> Integers:
    """0, 1, 2, ... within each run of equal neighbours. keys: (n,) each."""
    index = np.arange(len(keys[0]))
    new = np.ones(len(index), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return index - np.maximum.accumulate(np.where(new, index, 0))


# --- chains ---


def qkv_chain(attention: IntegerAttention) -> Chain:
    """encode counts -> c_attn -> the spikes of query, key and value neurons.

    A signed channel is a pair: its count is that of `value`, say, less that of `value_negative`.
    """
    weight, bias = attention.c_attn.weight.astype(np.int64), attention.c_attn.bias
    signed, theta = attention.qkv_signed, attention.qkv_theta
    synapses, neurons = level_neurons(
        np.concatenate([weight, -weight[signed]]),
        np.concatenate([bias, -bias[signed]]),
        rate_levels(np.concatenate([theta, theta[signed]]), attention.qkv.most),
        attention.code.most,
    )
    ends = [0, attention.key_start, attention.value_start, len(theta)]
    names = ["query", "key", "value"]
    for name, (start, end) in zip(list(names), pairwise(list(ends)), strict=True):
        if signed[start:end].all():
            names.append(f"{name}_negative")
            ends.append(ends[-1] + end - start)
    output = dict(zip(names, pairwise(ends), strict=True))
    graph = _sequence(synapses=synapses, neurons=neurons)
    return Chain(graph, weight.shape[1], attention.qkv.most, output)


def feedforward_chain(mlp: IntegerFeedForward, most: int, hidden_most: int) -> Chain:
    """encode counts, up to `most` -> c_fc -> GELU neurons -> the membranes of c_proj."""
    weight, bias = mlp.c_fc.weight.astype(np.int64), mlp.c_fc.bias
    reach = most * np.abs(weight).sum(1) + np.abs(bias)
    assert isinstance(mlp.hidden, GeluNeurons)  # `write` refuses others
    neuron, sign, levels = gelu_levels(mlp.hidden, reach, hidden_most)
    # c_proj's bias must arrive once: a neuron without inputs that fires once sends it
    once = np.full((1, levels.shape[1]), NEVER)
    once[0, 0] = 0
    synapses, neurons = level_neurons(
        np.concatenate([weight[neuron], np.zeros_like(weight[:1])]),
        np.append(bias[neuron], 0),
        np.concatenate([levels, once]),
        most,
    )
    columns = [mlp.c_proj.weight[:, neuron] * sign, mlp.c_proj.bias[:, None]]
    readout = nir.Linear(np.concatenate(columns, axis=1).astype(np.float32))
    graph = _sequence(synapses=synapses, neurons=neurons, readout=readout)
    return Chain(graph, weight.shape[1], levels.shape[1], {"membrane": (0, len(columns[1]))})


def c_proj_chain(attention: IntegerAttention) -> Chain:
    """merged counts -> the membranes of c_proj, in one step."""
    weight, bias = attention.c_proj.weight, attention.c_proj.bias
    affine = nir.Affine(weight.astype(np.float32), bias.astype(np.float32))
    return Chain(_sequence(synapses=affine), weight.shape[1], 0, {"membrane": (0, len(bias))})


def _sequence(**nodes: nir.NIRNode) -> nir.NIRGraph:
    first, *_, last = [*nodes.values(), *nodes.values()]
    inside: dict[str, nir.NIRNode] = {
        "input": nir.Input({"input": np.array(first.input_type["input"])}),
        **nodes,
        "output": nir.Output({"output": np.array(last.output_type["output"])}),
    }
    names = list(inside)
    return nir.NIRGraph(inside, list(pairwise(names)))


def drive(spikes: Integers, fire_steps: int) -> Integers:
    """The input of a chain for one token, or for a batch of them, each from reset neurons.

    spikes: (steps, ..., inputs), integers; their sum over the steps is the count that they carry,
    in one step or in several, and never on the way larger than a count can be. fire_steps: of the
    chain, 0 for one without neurons.
    Returns (steps + fire_steps, ..., inputs + 1 + fire_steps); without neurons the counts alone,
    (1, ..., inputs).
    """
    if not fire_steps:
        # an affine map adds its bias in every step, so there may be one step only
        return np.asarray(spikes, dtype=np.int64).sum(0, keepdims=True)
    steps, *batch, inputs = spikes.shape
    driven = np.zeros((steps + fire_steps, *batch, inputs + 1 + fire_steps), dtype=np.int64)
    driven[:steps, ..., :inputs] = spikes
    driven[0, ..., inputs] = 1
    for step in range(fire_steps):
        driven[steps + step, ..., inputs + 1 + step] = 1
    return driven


# --- the folder ---


def write(
    folder: Path,
    model: IntegerGPT2,
    *,
    made_from: Path | None = None,
    run_sha256: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write all chains and manifest.json into an empty folder. Returns the manifest.

    made_from, run_sha256: the run and the hash of its weights, noted for whoever wonders.
    Raises UserError for a Llama.
    """
    config = model.config
    if config.gated:
        raise UserError(
            "NIR has no product of two signals, and a Llama's hidden neurons multiply two, as its "
            "positions do: export it with --target loihi2"
        )
    graphs = []
    for block, (attention, mlp) in enumerate(zip(model.attention, model.feedforward, strict=True)):
        progress(f"writing block {block + 1} of {config.layers}")
        chains = {
            "attn.qkv": qkv_chain(attention),
            "attn.c_proj": c_proj_chain(attention),
            "mlp": feedforward_chain(mlp, config.most, config.hidden_most),
        }
        graphs += [_written(folder, f"h.{block}.{name}.nir", x) for name, x in chains.items()]
    manifest = {
        "format": "neurtx nir",
        "version": 1,
        "nir": nir.__version__,
        "run": made_from,
        "run_sha256": run_sha256,
        "config": config.model_dump(),
        "totals": {
            "synapses": sum(graph["synapses"] for graph in graphs),
            "neurons": sum(graph["neurons"] for graph in graphs),
            "weight_bits": WEIGHT_BITS,
        },
        "drive": _DRIVE,
        "graphs": graphs,
        "left_out": LEFT_OUT,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _written(folder: Path, name: str, chain: Chain) -> dict[str, Any]:
    path = folder / name
    nir.write(path, chain.graph)
    nodes, inputs = chain.graph.nodes, chain.inputs
    constants = 1 + chain.fire_steps if chain.fire_steps else 0
    linear = [node.weight for node in nodes.values() if isinstance(node, nir.Linear | nir.Affine)]
    neurons = [node.r.size for node in nodes.values() if isinstance(node, nir.IF)]
    return {
        "file": name,
        "nodes": {key: type(node).__name__ for key, node in nodes.items()},
        "inputs": inputs,
        "start": inputs if constants else None,
        "clock": (inputs + 1, inputs + constants) if constants else None,
        "fire_steps": chain.fire_steps,
        "output": chain.output,
        # constants are biases and thresholds, no synapses
        "synapses": sum(weight.size for weight in linear) - constants * sum(neurons),
        "neurons": sum(neurons),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
