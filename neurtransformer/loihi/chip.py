"""What a neurocore has, and what each kind of node of a netlist asks of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from neurtransformer.recipe import Section, checked, settings

if TYPE_CHECKING:
    from neurtransformer.loihi.nodes import Convolution, Matrix, Node

Limit = Annotated[int, Field(strict=True, ge=1, le=2**40)]


class Core(Section):
    """What one core has."""

    neurons: Limit
    synaptic_bytes: Limit
    neuron_bytes: Limit
    input_axons: Limit
    output_axons: Limit


class Width(Section):
    """Bits of a weight, of a word of state, and of what is stored for an axon."""

    weight: Limit
    state: Limit
    input_axon: Limit
    output_axon: Limit


class Chip(Section):
    """A chip description; `configs/loihi2.yaml` says where each figure comes from.

    systems: name -> number of chips.
    """

    name: str
    cores_per_chip: Limit
    core: Core
    width: Width
    systems: dict[str, Limit]


class Resources(NamedTuple):
    """What is used of a core, or what it has. Memory is in bits."""

    neurons: int
    synaptic_memory: int
    neuron_memory: int
    input_axons: int
    output_axons: int


def load_chip(path: Path | None = None) -> Chip:
    """The chip of `configs/loihi2.yaml`, with what the YAML file at `path` says put over it.

    Raises UserError for a file that is not there or says what is not known.
    """
    return checked(Chip, settings("loihi2.yaml", path), path, "configs/loihi2.yaml")


def capacity(chip: Chip) -> Resources:
    """What one core has."""
    core = chip.core
    memory = 8 * core.synaptic_bytes, 8 * core.neuron_bytes
    return Resources(core.neurons, *memory, core.input_axons, core.output_axons)


@dataclass(frozen=True)
class Way:
    """Where the outputs of a sender go in a layer, from its output `first` on: to the columns of
    its matrices, group after group; to its rows, likewise; or to the fields of `kernel`, at each
    position."""

    to: Literal["columns", "rows", "fields"]
    first: int = 0
    kernel: "Convolution | None" = None


@dataclass(frozen=True)
class Layer:
    """A node with neurons and the synapses that lead to them: `groups` equal matrices of `rows`
    outputs by `columns` inputs. A projection is one group, a head of attention is one, so is each
    position of a convolution's kernel, and where channels just pass through, each channel is one.

    row_bits, column_bits: state and parameters of a neuron, and of an input whose spikes wait.
    table_bits: held once by each core. column_axons: input axons per column. row_axons: input axons
    of a neuron beside its matrix. extra_rows: neurons of each part of a group beside its rows.
    hears: the ways of what its node hears with no other node's synapses between; within: of what
    the layer before it sends, of the same node.
    """

    name: str
    groups: int
    rows: int
    columns: int
    synapse_bits: int
    row_bits: int
    table_bits: int
    column_bits: int = 0
    column_axons: int = 1
    row_axons: int = 0
    extra_rows: int = 0
    plastic: bool = False
    hears: tuple[Way, ...] = (Way("rows"),)
    within: tuple[Way, ...] = ()


def demand(name: str, node: "Node", matrices: Sequence["Matrix"], beside: int, chip: Chip) -> Layer:
    """What the neurons of a node, and the synapses that lead to them, ask for.

    matrices: the nodes of synapses that lead to it, itself if it is one. beside: how many other
    layers each of its neurons hears, one spike a channel. A kernel is charged at each of its
    positions, as if its weights were not shared.
    """
    groups, rows, columns = node.outputs, 1, max(1, beside)
    if len(matrices) == 1:
        groups, rows, columns = matrices[0].extent
    elif matrices:
        groups, rows, columns = 1, node.outputs, sum(matrix.inputs for matrix in matrices)
    traces = [matrix.traces for matrix in matrices if matrix.traces]
    return Layer(
        name=name,
        groups=groups,
        rows=rows,
        columns=columns,
        synapse_bits=chip.width.weight,
        row_bits=node.words * chip.width.state + sum(traces),
        table_bits=node.table_bits,
        column_bits=sum(traces),
        row_axons=beside + len(traces) if matrices else 0,
        plastic=bool(traces),
    )


def use(
    layer: Layer, groups: int, rows: int, columns: int, axons: int, others: int, chip: Chip
) -> Resources:
    """What a block of a layer uses of its core. Matrices are stored dense: each weight in its
    width, and an entry for each input axon.

    axons: output axons of a neuron. others: parts that sum for the same rows. All of these are
    charged as the one that adds the sums is.
    """
    neurons = groups * (rows + layer.extra_rows)
    inputs = groups * (columns * layer.column_axons + rows * (layer.row_axons + others))
    outputs = groups * rows * axons
    row_synapses = columns * layer.synapse_bits + others * chip.width.weight
    return Resources(
        neurons,
        neurons * row_synapses + inputs * chip.width.input_axon,
        neurons * layer.row_bits
        + groups * columns * layer.column_bits
        + layer.table_bits
        + outputs * chip.width.output_axon,
        inputs,
        outputs,
    )
