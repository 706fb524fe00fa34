"""Placing a netlist on neurocores and chips.

A *layer* is a node with neurons and the synapses that lead to them, which Loihi keeps on the core
of the receiving neuron. A *part* is what one core holds of a layer, and a core holds parts of one
layer only, as Lava's compiler has it. The rules:

- A layer is split by its output neurons, over as few cores as its narrowest limit allows.
- Where a neuron has more inputs than a part takes, the layer is split by inputs too: each part has
  a compartment that sums its share, and the first adds the others' sums, a graded spike each.
- How many inputs of a matrix a part takes at most is one power of two for the whole network, the
  one that needs the fewest cores; a layer that only the host feeds has its own. So a chip with less
  of anything never needs fewer cores.
- An output axon is the way of one neuron to one core: a neuron has as many as parts hear it.
- A head of attention stays whole if a core can hold it. Of one that is split, each part computes
  the divisor anew.
- Cores follow each other over the chips in the order of the network: neighbours stay together.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from neurtransformer.dense import Known
from neurtransformer.errors import UserError
from neurtransformer.families.llama import THETA
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.loihi.chip import Chip, Layer, Resources, Way, capacity, use
from neurtransformer.loihi.graph import networks
from neurtransformer.loihi.network import Network
from neurtransformer.loihi.nodes import Accumulator, Convolution, Matrix, Source
from neurtransformer.recipe import load_recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Edge:
    """Outputs of layer `sender` go to layer `receiver`, on a way."""

    sender: int
    receiver: int
    way: Way

    def hearers(self, receiver: "Tiling") -> int:
        """How many parts of the receiver hear one output at most."""
        if self.way.kernel is not None:
            fields = math.ceil(self.way.kernel.kernel / self.way.kernel.stride) ** 2
            return min(receiver.cores, fields * receiver.hearers)
        return 1 if self.way.to == "rows" else receiver.hearers

    def heard(self, receiver: Layer) -> range:
        """The outputs of the sender that the receiver hears; there may be fewer of them."""
        if self.way.kernel is not None:
            return range(self.way.kernel.inputs)
        size = receiver.groups * (receiver.rows if self.way.to == "rows" else receiver.columns)
        return range(self.way.first, self.way.first + size)


@dataclass(frozen=True)
class Tiling:
    """How a layer is split: at most so many groups, rows and columns to a core.

    hearers: parts that hear one input. axons: output axons of a neuron. binds: the resource that
    keeps a core from holding more, None if one core holds it all.
    """

    groups: int
    rows: int
    columns: int
    cores: int
    hearers: int
    axons: int
    binds: str | None


@dataclass(frozen=True)
class Part:
    """What one core holds: a block of rows and columns of a range of groups of a layer.

    Its neurons are the layer's own if its columns are the first; else they sum for those.
    """

    layer: int
    groups: range
    rows: range
    columns: range


@dataclass(frozen=True)
class Placement:
    """A network on chips. Core i, which holds parts[i], is on chip i // chip.cores_per_chip."""

    chip: Chip
    layers: list[Layer]
    edges: list[Edge]
    tilings: list[Tiling]
    parts: list[Part]

    @property
    def chips(self) -> int:
        return math.ceil(len(self.parts) / self.chip.cores_per_chip)


# --- what a network asks for ---


def graph_of(known: Known) -> list[Network]:
    """The graph of a model of these sizes, converted by the default recipe, with binary spikes."""
    recipe, s = load_recipe(), known.sizes
    sizes = {
        "model": known.family,
        "layers": s.layers,
        "width": s.width,
        "heads": s.heads,
        "kv_heads": s.kv_heads,
        "hidden": s.hidden,
        "vocabulary": s.vocabulary,
        "positions": s.context,
        "timesteps": recipe.timesteps,
        "coding": recipe.coding,
        "attention": recipe.attention,
        "attention_timesteps": recipe.attention_timesteps,
        "attention_coding": recipe.attention_coding,
        "digits": recipe.digits,
        # what these are matters to no core, but whether they are
        "first_token": 0 if recipe.innate_first_token else None,
        "rotary": None if known.family == "gpt2" else THETA,
        "epsilon": 1e-5,
        "stream_bits": 0,
    }
    return networks(IntegerConfig.model_validate(sizes), "binary", {})


def layers_of(graph: Sequence[Network], chip: Chip) -> tuple[list[Layer], list[Edge]]:
    """The layers of a network in its order, and the edges between them.

    A source is the host, or the residual stream of the network before where that is on the chip
    (its last node is an accumulator).
    """
    layers: list[Layer] = []
    edges: list[Edge] = []
    stream: int | None = None
    for network in graph:
        nodes = {node.name: node for node in network.nodes}
        heard: dict[str, list[str]] = {name: [] for name in nodes}
        for wire in network.wires:
            heard[wire.target].append(wire.source)
        # synapses belong to the neurons they lead to; those at the end have neurons of their own
        fused = {s: name for name in nodes for s in heard[name] if nodes[s].is_matrix}
        owner: dict[str, int | None] = dict.fromkeys(nodes, stream)
        hosts: list[tuple[str, int, list[Matrix], list[Layer]]] = []
        for name, node in nodes.items():
            if isinstance(node, Source) or name in fused:
                continue
            matrices = [m for s in heard[name] if isinstance(m := nodes[s], Matrix)]
            beside = len(set(heard[name]) - fused.keys()) if heard[name] else 1
            if isinstance(node, Matrix):
                matrices, beside = [node], 0
            called = f"{network.name}.{matrices[0].name if matrices else name}"
            hosts.append((name, len(layers), matrices, node.layers(called, matrices, beside, chip)))
            layers += hosts[-1][-1]
            owner[name] = len(layers) - 1
        owner |= {s: owner[name] for s, name in fused.items()}

        # what hears nothing in its own network hears the stream
        hears = {
            name: {owner[s] for s in found if s not in fused} if found else {stream}
            for name, found in heard.items()
        }
        senders = {name: [s for s in found if s is not None] for name, found in hears.items()}
        for name, first, matrices, own in hosts:
            offset = 0
            for matrix in matrices:
                edges += [Edge(s, first, matrix.way(offset)) for s in senders[matrix.name]]
                offset += matrix.inputs
            direct = senders[name] if not nodes[name].is_matrix else []
            for i, layer in enumerate(own, first):
                edges += [Edge(s, i, way) for s in direct for way in layer.hears]
                edges += [Edge(i - 1, i, way) for way in layer.within]
        last = network.nodes[-1]
        stream = owner[last.name] if isinstance(last, Accumulator) else None
    return layers, edges


# --- splitting layers over cores ---


def place(graph: Sequence[Network], chip: Chip) -> Placement:
    """Split every layer of a network over cores, in order.

    Raises UserError if a single neuron of it does not fit the chip.
    """
    layers, edges = layers_of(graph, chip)
    receivers: dict[int, list[Edge]] = {i: [] for i in range(len(layers))}
    for edge in edges:
        receivers[edge.sender].append(edge)
    after = {i: {edge.receiver for edge in found} for i, found in receivers.items()}
    try:
        order = list(TopologicalSorter(after).static_order())
    except CycleError as error:
        names = ", ".join(layers[i].name for i in error.args[1])
        raise UserError(f"the network runs in a circle: {names}") from None
    heard = {edge.receiver for edge in edges}
    widths = [1 << bits for bits in range(chip.core.input_axons.bit_length())]

    def split(widest: int) -> list[Tiling]:
        tilings: dict[int, Tiling] = {}
        for i in order:
            one = partial(_tiling, layers[i], _axons(receivers[i], layers, tilings), chip)
            tilings[i] = _fewest(one, [widest] if i in heard else widths, lambda t: t.cores)
        return [tilings[i] for i in range(len(layers))]

    tilings = _fewest(split, widths, lambda way: sum(tiling.cores for tiling in way))
    parts = [
        Part(i, groups, rows, columns)
        for i, (layer, tiling) in enumerate(zip(layers, tilings, strict=True))
        for groups in _cut(layer.groups, tiling.groups)
        for rows in _cut(layer.rows, tiling.rows)
        for columns in _cut(layer.columns, tiling.columns)
    ]
    return Placement(chip, layers, edges, tilings, parts)


def _axons(edges: Sequence[Edge], layers: Sequence[Layer], tilings: Mapping[int, Tiling]) -> int:
    """How many parts hear an output at most, if these are the edges from its layer."""
    spans = [
        (edge.heard(layers[edge.receiver]), edge.hearers(tilings[edge.receiver])) for edge in edges
    ]
    most = (
        sum(count for other, count in spans if max(0, span.start) in other) for span, _ in spans
    )
    # what no layer hears, the host does
    return max(most, default=1)


def _fewest(split: Callable[[int], T], widths: Sequence[int], cores: Callable[[T], int]) -> T:
    """The split at one of these widths that takes the fewest cores, the widest of equals.

    Raises UserError if there is none at any of them.
    """
    found: list[T] = []
    refused: list[UserError] = []
    for width in reversed(widths):
        try:
            found.append(split(width))
        except UserError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return min(found, key=cores)


def _tiling(layer: Layer, axons: int, chip: Chip, widest: int) -> Tiling:
    """A layer split over as few cores as can be if no part takes more than `widest` columns."""
    columns = math.ceil(layer.columns / math.ceil(layer.columns / widest))
    blocks = math.ceil(layer.columns / columns)
    most = capacity(chip)

    def block(groups: int, rows: int) -> Resources:
        return use(layer, groups, rows, columns, axons, blocks - 1, chip)

    # use is linear in rows, and in groups
    rows, binds = _room(block(1, 0), block(1, 1), most)
    if rows < 1:
        raise UserError(
            f"{layer.name} does not fit {chip.name}: one neuron of it needs more "
            f"{_words(binds)} than a core has"
        )
    if blocks > 1 or rows < layer.rows:
        rows = min(rows, layer.rows)
        high = math.ceil(layer.rows / rows)
        return Tiling(1, rows, columns, layer.groups * high * blocks, high, axons, binds)
    groups, binds = _room(block(0, layer.rows), block(1, layer.rows), most)
    cores = math.ceil(layer.groups / groups)
    return Tiling(groups, layer.rows, columns, cores, 1, axons, binds if cores > 1 else None)


def _room(base: Resources, first: Resources, most: Resources) -> tuple[int, str]:
    """How often `first` - `base` fits beside `base`, and the resource that stops it there."""
    times = {
        name: (limit - zero) // max(1, one - zero)
        for name, zero, one, limit in zip(Resources._fields, base, first, most, strict=True)
        if one > zero or zero > limit
    }
    binds = min(times, key=lambda name: times[name])
    return times[binds], binds


def _cut(size: int, step: int) -> list[range]:
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def _words(resource: str) -> str:
    return resource.replace("_", " ")


# --- what came of it ---


def summary(placement: Placement) -> dict[str, Any]:
    """Cores, chips, the systems it fits, what is scarce, and how far from the lower bound it is.

    The lower bound is the largest, over the resources, of what the network asks for, were no layer
    split, by what a core (or the cores of a chip) has. Utilisation is of the cores used;
    plastic_share is of the synaptic memory asked for.
    """
    chip, cores = placement.chip, len(placement.parts)
    wanted = _total(use(x, x.groups, x.rows, x.columns, 1, 0, chip) for x in placement.layers)
    pairs = zip(wanted, capacity(chip), strict=True)
    fewest = max(wanted / has for wanted, has in pairs)
    bound = math.ceil(fewest / chip.cores_per_chip)
    shares = utilisation(placement)
    whole = dict(zip(Resources._fields, shares.mean(axis=0).tolist(), strict=True))
    scarce = max(whole, key=lambda name: whole[name])
    plastic = sum(
        x.groups * (x.rows + x.extra_rows) * x.columns * x.synapse_bits
        for x in placement.layers
        if x.plastic
    )
    mostly_plastic = scarce == "synaptic_memory" and 2 * plastic > wanted.synaptic_memory
    across, total = inter_chip_axons(placement)
    return {
        "chip": chip.name,
        "cores": cores,
        "chips": placement.chips,
        "fits": {name: placement.chips <= chips for name, chips in chip.systems.items()},
        "bottleneck": "plastic state" if mostly_plastic else _words(scarce),
        "lower_bound_cores": math.ceil(fewest),
        "lower_bound_chips": bound,
        "bound_factor": placement.chips / bound,
        "utilisation": whole,
        "plastic_share": plastic / wanted.synaptic_memory,
        "axons": total,
        "inter_chip_axons": across,
        "layers": _rows(placement, shares),
    }


def _rows(placement: Placement, shares: NDArray[np.float64]) -> list[dict[str, Any]]:
    """One dict per layer: its cores, the chips they are on, what binds, how full they are."""
    rows, first = [], 0
    for layer, tiling in zip(placement.layers, placement.tilings, strict=True):
        last = first + tiling.cores - 1
        full = shares[first : last + 1].mean(axis=0).tolist()
        rows.append(
            {
                "name": layer.name,
                "cores": tiling.cores,
                "first_chip": first // placement.chip.cores_per_chip,
                "last_chip": last // placement.chip.cores_per_chip,
                "binds": None if tiling.binds is None else _words(tiling.binds),
                "utilisation": dict(zip(Resources._fields, full, strict=True)),
            }
        )
        first = last + 1
    return rows


def used(placement: Placement, part: Part) -> Resources:
    """What a part uses of its core."""
    layer, tiling = placement.layers[part.layer], placement.tilings[part.layer]
    others = math.ceil(layer.columns / tiling.columns) - 1
    block = len(part.groups), len(part.rows), len(part.columns)
    return use(layer, *block, tiling.axons, others, placement.chip)


def utilisation(placement: Placement) -> NDArray[np.float64]:
    """Shares of what a core has that are used, (cores, resources), both in order."""
    return np.array([used(placement, x) for x in placement.parts]) / capacity(placement.chip)


def inter_chip_axons(placement: Placement) -> tuple[int, int]:
    """How many output axons lead to another chip, and how many there are to cores at all."""
    parts: list[list[tuple[int, Part]]] = [[] for _ in placement.layers]
    for core, part in enumerate(placement.parts):
        parts[part.layer].append((core // placement.chip.cores_per_chip, part))
    across = total = 0
    for edge in placement.edges:
        sender, receiver = placement.layers[edge.sender], placement.layers[edge.receiver]
        sent = [(c, _outputs(sender, p)) for c, p in parts[edge.sender] if p.columns.start == 0]
        taken = [(c, t) for c, p in parts[edge.receiver] for t in _taken(edge, receiver, p)]
        from_chip, sends = np.array([c for c, _ in sent]), np.array([s for _, s in sent])
        to_chip, takes = np.array([c for c, _ in taken]), np.array([t for _, t in taken])
        start = np.maximum.outer(sends[:, 0], takes[:, 0])
        stop = np.minimum.outer(sends[:, 1], takes[:, 1])
        shared = (stop - start).clip(0)
        total += int(shared.sum())
        across += int(shared[from_chip[:, None] != to_chip].sum())
    return across, total


def _outputs(layer: Layer, part: Part) -> tuple[int, int]:
    """The first of a layer's outputs that a part has, and the one after the last."""
    first, last = part.groups.start, part.groups.stop - 1
    return first * layer.rows + part.rows.start, last * layer.rows + part.rows.stop


def _taken(edge: Edge, layer: Layer, part: Part) -> Iterator[tuple[int, int]]:
    """The outputs of the sender that a part of the receiver hears, likewise."""
    way = edge.way
    if way.kernel is not None:
        yield from _field(way.kernel, part.groups, part.columns)
    elif way.to == "columns":
        first, last = part.groups.start, part.groups.stop - 1
        start = first * layer.columns + part.columns.start
        stop = last * layer.columns + part.columns.stop
        yield way.first + start, way.first + stop
    elif part.columns.start == 0:
        start, stop = _outputs(layer, part)
        yield way.first + start, way.first + stop


def _field(kernel: Convolution, positions: range, columns: range) -> Iterator[tuple[int, int]]:
    """The inputs that these columns of a kernel see from these positions, as neurons are in a line.

    Columns are in the order of such a line too: across, down, channel.
    """
    side, after = kernel.side, math.isqrt(kernel.positions)
    shape = kernel.kernel, kernel.kernel, kernel.in_channels
    across, down, channel = np.unravel_index(np.arange(columns.start, columns.stop), shape)
    seen = np.zeros((side, side, kernel.in_channels), dtype=bool)
    for position in positions:
        x, y = (at * kernel.stride - kernel.padding for at in divmod(position, after))
        inside = (x + across >= 0) & (x + across < side) & (y + down >= 0) & (y + down < side)
        seen[(x + across)[inside], (y + down)[inside], channel[inside]] = True
    neurons = np.flatnonzero(seen)
    for run in np.split(neurons, np.flatnonzero(np.diff(neurons) > 1) + 1):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1


def _total(uses: Iterator[Resources]) -> Resources:
    return Resources(*map(sum, zip(*uses, strict=True)))
