"""What a neurocore has, and what each kind of node of a netlist asks of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from neurtransformer.errors import UserError
from neurtransformer.recipe import Section, checked, settings

Limit = Annotated[int, Field(strict=True, ge=1, le=2**40)]

TABLE_BITS = {"gelu_neurons": 256 * 16, "norm": 192 * 8, "ssa": 128 * 8}
"""What a core with such neurons holds once: the GELU, a LayerNorm's root, the SSA's divisor."""


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
    return checked(Chip, settings("loihi2.yaml", path), path)


def capacity(chip: Chip) -> Resources:
    """What one core has."""
    core = chip.core
    memory = 8 * core.synaptic_bytes, 8 * core.neuron_bytes
    return Resources(core.neurons, *memory, core.input_axons, core.output_axons)


@dataclass(frozen=True)
class Layer:
    """A node with neurons and the synapses that lead to them: `groups` equal matrices of `rows`
    outputs by `columns` inputs. A projection is one group, a head of attention is one, so is each
    position of a convolution's kernel, and where channels just pass through, each channel is one.

    row_bits, column_bits: state and parameters of a neuron, and of an input whose spikes wait.
    table_bits: held once by each core. column_axons: input axons per column. row_axons: input axons
    of a neuron beside its matrix. extra_rows: neurons of each part of a group beside its rows.
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


def demand(name: str, node: Any, matrices: Sequence[Any], beside: int, chip: Chip) -> Layer:
    """What the neurons of a node, and the synapses that lead to them, ask for.

    matrices: the nodes of synapses that lead to it. beside: how many other layers each of its
    neurons hears, one spike a channel. A channel is one compartment with two states, u and v, even
    if its spikes are signed: a graded spike of one bit and sign carries those. A kernel is charged
    at each of its positions, as if its weights were not shared.
    Raises UserError for a kind of node that is not known here.
    """
    u_and_v = 2
    match node.kind:
        case "synapses" | "convolution" | "plastic_synapses":
            words = u_and_v
        case "coding_neurons" | "key_neurons":
            words = u_and_v + 2  # bias, theta
        case "gelu_neurons":
            words = u_and_v + 4  # bias, theta, center, mantissa and shift
        case "norm":
            words = 1  # the channel, until the sum is there
        case "accumulator":
            words = 3 + node.delay  # u, bias, mantissa and shift, the stream that waits
        case "ssa":
            return Layer(
                name=name,
                groups=node.heads,
                rows=node.dim,
                columns=node.key_dim,
                synapse_bits=node.state_bits,
                row_bits=u_and_v * chip.width.state,
                table_bits=TABLE_BITS["ssa"],
                column_bits=node.level_bits + 1,
                column_axons=2,
                row_axons=1,
                extra_rows=1,
                plastic=True,
            )
        case kind:
            raise UserError(f"{name}: it is not known what a node of kind '{kind}' needs on a chip")
    kinds = {matrix.kind for matrix in matrices}
    groups, rows, columns = node.outputs, 1, max(1, beside)
    if kinds == {"convolution"}:
        (kernel,) = matrices
        groups, rows, columns = kernel.positions, kernel.out_channels, kernel.fan_in
    elif matrices:
        groups, rows, columns = 1, node.outputs, sum(matrix.inputs for matrix in matrices)
    learns = [matrix for matrix in matrices if matrix.kind == "plastic_synapses"]
    return Layer(
        name=name,
        groups=groups,
        rows=rows,
        columns=columns,
        synapse_bits=chip.width.weight,
        row_bits=words * chip.width.state + sum(matrix.trace_bits for matrix in learns),
        table_bits=TABLE_BITS.get(node.kind, 0),
        column_bits=sum(matrix.trace_bits for matrix in learns),
        row_axons=beside + len(learns) if matrices else 0,
        plastic=bool(learns),
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
