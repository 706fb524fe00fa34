"""Placing on cores and chips: no limit broken, everything placed once, near the lower bound."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from neurtransformer.dense import KNOWN
from neurtransformer.errors import UserError
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.plastic import ConvolutionSizes, PlasticConfig
from neurtransformer.loihi.attention.linear import SSA
from neurtransformer.loihi.chip import Chip, Core, capacity, load_chip
from neurtransformer.loihi.graph import networks
from neurtransformer.loihi.network import Network, in_line, timed
from neurtransformer.loihi.nodes import (
    Accumulator,
    CodingNeurons,
    GeluNeurons,
    Node,
    Source,
    Synapses,
)
from neurtransformer.loihi.place import (
    Part,
    Placement,
    _outputs,
    _taken,
    graph_of,
    inter_chip_axons,
    place,
    summary,
    used,
)
from neurtransformer.loihi.plastic_graph import plastic_networks
from neurtransformer.recipe import load_recipe

LOIHI2 = load_chip()
FAMILY_FACTOR = 1.35
"""Chips of a GPT-2 of the family, over the lower bound."""
FACTOR = 1.75
"""Cores of any network on Loihi 2, over the lower bound and one more for each layer."""


# --- random networks and chips ---


def gpt2(layers: int, heads: int, dim: int, hidden: int, vocabulary: int) -> IntegerConfig:
    return IntegerConfig(
        layers=layers,
        width=heads * dim,
        heads=heads,
        hidden=hidden,
        vocabulary=vocabulary,
        positions=vocabulary,
        timesteps=8,
        coding="rate",
        epsilon=1e-5,
        stream_bits=0,
    )


def graphs(config: IntegerConfig) -> st.SearchStrategy[list[Any]]:
    return st.sampled_from([networks(config, "binary", {}), networks(config, "graded", {})])


def pictures(side: int, ways: int, channels: list[int], kernels: list[int]) -> list[Any]:
    """The graph of a plastic transformer: convolutions, and synapses that learn."""
    config = PlasticConfig(
        side=side,
        ways=ways,
        convolutions=tuple(
            ConvolutionSizes(inputs=i, outputs=o, kernel=k)
            for i, o, k in zip([1, *channels], channels, kernels, strict=False)
        ),
    )
    return list(plastic_networks(config, "binary"))


sizes = st.integers(1, 60)
learning = st.builds(
    pictures,
    st.integers(1, 9),
    st.integers(1, 6),
    st.lists(st.integers(1, 5), min_size=2, max_size=2),
    st.lists(st.sampled_from([1, 3, 5]), min_size=2, max_size=2),
)
small = st.builds(gpt2, st.integers(1, 2), st.integers(1, 5), st.integers(1, 20), sizes, sizes)
large = st.builds(
    gpt2,
    st.integers(1, 6),
    st.integers(4, 28),
    st.sampled_from([32, 64, 80, 128]),
    st.integers(256, 8192),
    st.integers(256, 60_000),
)
any_graph = small.flatmap(graphs) | learning
cores = st.builds(
    Core,
    neurons=st.integers(1, 400),
    synaptic_bytes=st.integers(40, 4000),
    neuron_bytes=st.integers(600, 6000),
    input_axons=st.integers(4, 300),
    output_axons=st.integers(4, 300),
)
chips = st.builds(
    lambda core, per_chip: LOIHI2.model_copy(update={"core": core, "cores_per_chip": per_chip}),
    cores,
    st.integers(1, 9),
)


def placed(graph: list[Any], chip: Chip) -> Placement:
    """The placement; a draw whose neurons are too large for the chip is none."""
    try:
        return place(graph, chip)
    except UserError as error:
        assert "does not fit" in str(error)
        assume(False)
        raise


# --- laws ---


@given(any_graph, chips)
def test_every_neuron_and_synapse_is_placed_once(graph: list[Any], chip: Chip) -> None:
    placement = placed(graph, chip)
    counts = [np.zeros((x.groups, x.rows, x.columns), int) for x in placement.layers]
    for part in placement.parts:
        block = np.ix_(part.groups, part.rows, part.columns)
        counts[part.layer][block] += 1
    assert all((count == 1).all() for count in counts)
    assert [part.layer for part in placement.parts] == sorted(p.layer for p in placement.parts)
    assert sum(tiling.cores for tiling in placement.tilings) == len(placement.parts)


@given(small)
def test_every_node_has_its_layer(config: IntegerConfig) -> None:
    both: list[list[Any]] = [networks(config, "binary", {}), networks(config, "graded", {})]
    for graph in both:
        layers = place(graph, LOIHI2).layers
        wanted: dict[str, tuple[int, int]] = {}
        for network in graph:
            for node, behind in pairwise([*network.nodes, None]):
                if isinstance(node, Synapses):
                    wanted[f"{network.name}.{node.name}"] = node.outputs, node.inputs
                    assert behind is None or behind.outputs == node.outputs
            before = [None, *network.nodes]
            for node, ahead in zip(network.nodes, before, strict=False):
                if not isinstance(node, Synapses | Source) and not isinstance(ahead, Synapses):
                    columns = node.key_dim if isinstance(node, SSA) else 1
                    wanted[f"{network.name}.{node.name}"] = node.outputs, columns
        assert {x.name: (x.groups * x.rows, x.columns) for x in layers} == wanted


@given(any_graph, chips)
def test_no_core_is_over_a_limit(graph: list[Any], chip: Chip) -> None:
    """Axons are counted anew, from which part hears which output of which other."""
    placement = placed(graph, chip)
    layers, parts = placement.layers, placement.parts
    hearers = [np.zeros(x.groups * x.rows, int) for x in layers]
    inputs = [0] * len(parts)
    for core, part in enumerate(parts):
        for edge in placement.edges:
            if edge.receiver == part.layer:
                for start, stop in _taken(edge, layers[part.layer], part):
                    heard = hearers[edge.sender][max(0, start) : max(0, stop)]
                    heard += 1
                    inputs[core] += len(heard)
    for core, part in enumerate(parts):
        layer = layers[part.layer]
        neurons = len(part.groups) * (len(part.rows) + layer.extra_rows)
        weights = neurons * len(part.columns) * layer.synapse_bits
        own = slice(*_outputs(layer, part)) if part.columns.start == 0 else slice(0)
        outputs = int(hearers[part.layer][own].sum())
        counted = neurons, weights, neurons * layer.row_bits, inputs[core], outputs
        claimed = used(placement, part)
        assert all(c <= d for c, d in zip(counted, claimed, strict=True)), (layer, part)
        assert all(c <= d for c, d in zip(claimed, capacity(chip), strict=True)), (layer, part)
    assert inter_chip_axons(placement)[1] == sum(h.sum() for h in hearers)


@given(any_graph, chips, st.data())
def test_a_smaller_chip_never_needs_fewer_cores(
    graph: list[Any], chip: Chip, data: st.DataObject
) -> None:
    less = {
        name: data.draw(st.integers(max(1, value // 2), value), label=name)
        for name, value in chip.core.model_dump().items()
    }
    smaller = placed(graph, chip.model_copy(update={"core": Core(**less)}))
    larger = place(graph, chip)
    assert len(larger.parts) <= len(smaller.parts)
    assert larger.chips <= smaller.chips


@given(any_graph, chips)
def test_chips_are_at_least_the_bound(graph: list[Any], chip: Chip) -> None:
    found = summary(placed(graph, chip))
    assert found["chips"] >= found["lower_bound_chips"] >= 1
    assert found["bound_factor"] >= 1
    assert all(0 <= share <= 1 for share in found["utilisation"].values())
    assert found["cores"] == sum(layer["cores"] for layer in found["layers"])
    assert found["inter_chip_axons"] <= found["axons"]
    assert found["fits"] == {n: found["chips"] <= c for n, c in chip.systems.items()}
    assert found["chips"] == math.ceil(found["cores"] / chip.cores_per_chip)


@given(large.flatmap(graphs))
def test_loihi_2_is_near_the_bound(graph: list[Any]) -> None:
    found = summary(place(graph, LOIHI2))
    cores = FACTOR * found["lower_bound_cores"] + len(found["layers"])
    assert found["cores"] <= cores


@pytest.mark.parametrize("name", KNOWN)
def test_the_family_is_near_the_bound(name: str) -> None:
    found = summary(place(graph_of(KNOWN[name]), LOIHI2))
    assert found["bound_factor"] <= FAMILY_FACTOR
    assert found["bottleneck"] == "synaptic memory"
    assert found["fits"]["Hala Point"]
    assert found["fits"]["one chip"] == (name == "gpt2-nano")
    # each layer starts where the one before ends
    for before, after in pairwise(found["layers"]):
        assert after["first_chip"] - before["last_chip"] in (0, 1)


# --- single cases, by hand ---


def chip_with(**core: int) -> Chip:
    changed = LOIHI2.core.model_copy(update=core)
    return LOIHI2.model_copy(update={"core": changed})


def network(*nodes: Node) -> list[Network]:
    return [timed("n", nodes, in_line(nodes), 1, 1)]


def matrix(name: str, outputs: int, inputs: int) -> Synapses:
    return Synapses(name=name, outputs=outputs, inputs=inputs, file="x.net")


def accumulator(name: str, outputs: int) -> Accumulator:
    return Accumulator(
        name=name, outputs=outputs, payload_bits=24, receives="rate", bias="b", fraction_bits=0
    )


def one_matrix(outputs: int, inputs: int, *more: Node) -> list[Network]:
    host = Source(name="host", outputs=inputs, payload_bits=1)
    return network(host, matrix("c_fc", outputs, inputs), accumulator("end", outputs), *more)


def one_ssa(heads: int, dim: int, key_dim: int) -> list[Network]:
    return network(
        SSA(
            name="ssa",
            outputs=heads * dim,
            payload_bits=13,
            heads=heads,
            dim=dim,
            key_dim=key_dim,
            level_bits=3,
            mean_bits=8,
        )
    )


# of fast weights c_attn has two queries and two keys for each value
@pytest.mark.parametrize(("attention", "channels"), [("ttfs", 3), ("linear", 5)])
def test_what_a_model_by_name_asks_for(
    monkeypatch: pytest.MonkeyPatch, attention: str, channels: int
) -> None:
    assert load_recipe().attention == "ttfs"
    recipe = load_recipe(attention=attention)
    monkeypatch.setattr("neurtransformer.loihi.place.load_recipe", lambda: recipe)
    graph: list[Any] = graph_of(KNOWN["gpt2-small"])
    weights = sum(n.inputs * n.outputs for net in graph for n in net.nodes if n.kind == "synapses")
    block = 768 * (channels * 768 + 768 + 2 * 3072)
    assert weights == 12 * block + 768 * (50257 + 1024) + 50257 * 768
    assert {n.most for net in graph for n in net.nodes if n.kind == "gelu_neurons"} == {16}
    assert {net.slots for net in graph if net.name.endswith("attn")} == {
        recipe.attention_code.timesteps
    }


def test_the_stream_goes_from_network_to_network() -> None:
    """From what ends one to the norm of the next, and by it to what ends that."""
    placement = place(networks(gpt2(1, 2, 4, 8, 9), "binary", {}), LOIHI2)
    names = [layer.name.removeprefix("h.0.") for layer in placement.layers]
    found = {(names[edge.sender], names[edge.receiver]) for edge in placement.edges}
    assert found == {
        ("embed.table", "attn.norm"),
        ("embed.table", "attn.c_proj"),
        ("attn.norm", "attn.encode"),
        ("attn.encode", "attn.c_attn"),
        ("attn.c_attn", "attn.ssa"),
        ("attn.ssa", "attn.merged"),
        ("attn.merged", "attn.c_proj"),
        ("attn.c_proj", "mlp.norm"),
        ("attn.c_proj", "mlp.c_proj"),
        ("mlp.norm", "mlp.encode"),
        ("mlp.encode", "mlp.c_fc"),
        ("mlp.c_fc", "mlp.c_proj"),
        ("mlp.c_proj", "head.norm"),
        ("head.norm", "head.encode"),
        ("head.encode", "head.lm_head"),
    }


def test_matrices_of_one_population_lie_side_by_side() -> None:
    """Columns of two that lead to the same neurons: 4 of the first, then 6 of the second."""
    host = Source(name="host", outputs=3, payload_bits=1)
    first, second, end = (accumulator(n, k) for n, k in (("first", 4), ("second", 6), ("end", 5)))
    to_first, to_second = matrix("to_first", 4, 3), matrix("to_second", 6, 3)
    behind, beside = matrix("behind", 5, 4), matrix("beside", 5, 6)
    nodes = host, to_first, first, to_second, second, behind, beside, end
    wires = [
        *in_line([host, to_first, first, behind, end]),
        *in_line([host, to_second, second, beside, end]),
    ]
    placement = place([timed("n", nodes, wires, 1, 1)], LOIHI2)
    names = [layer.name for layer in placement.layers]
    last = names.index("n.behind")
    layer = placement.layers[last]
    assert (layer.rows, layer.columns) == (5, 10)
    for columns, hears in ((range(4), "n.to_first"), (range(4, 10), "n.to_second")):
        part = Part(last, range(1), range(5), columns)
        for edge in placement.edges:
            if edge.receiver == last:
                sender = placement.layers[edge.sender]
                ((start, stop),) = _taken(edge, layer, part)
                heard = range(sender.rows)[max(0, start) : max(0, stop)]
                assert len(heard) == (sender.rows if sender.name == hears else 0)


def test_split_by_outputs() -> None:
    # 100 weights and entries for 100 axons of 32 bits: 3,200 + 800 bits a neuron
    chip = chip_with(synaptic_bytes=(3200 + 800 * 7) // 8)
    placement = place(one_matrix(20, 100), chip)
    assert [part.rows for part in placement.parts] == [range(7), range(7, 14), range(14, 20)]
    assert placement.tilings[0].binds == "synaptic_memory"


def test_split_by_inputs() -> None:
    # 200 inputs on 128 axons: two parts of 100, and 28 axons left for the sums of the other
    placement = place(one_matrix(40, 200), chip_with(input_axons=128))
    blocks = [(part.rows, part.columns) for part in placement.parts]
    halves = range(100), range(100, 200)
    assert blocks == [(rows, x) for rows in (range(28), range(28, 40)) for x in halves]


def test_a_fan_out_takes_output_axons() -> None:
    """Eight senders that four cores hear each, with room for 12 axons a core: three to a core."""
    graph = one_matrix(8, 10, matrix("c_proj", 8, 8), accumulator("last", 8))
    chip = chip_with(output_axons=12, synaptic_bytes=(8 * 32 + 2 * 8 * 8) // 8)
    placement = place(graph, chip)
    assert placement.tilings[1].cores == 4
    assert placement.tilings[0].axons == 4
    assert all(used(placement, part).output_axons <= 12 for part in placement.parts)


def test_heads_share_a_core_or_are_split() -> None:
    graph = one_ssa(4, 2, 4)
    (whole_heads,) = place(graph, LOIHI2).parts
    assert whole_heads.groups == range(4)
    # a head is 3 rows of 4 words, the divisor's among them, and 10 axons
    head = 3 * 4 * 24 + 10 * 32
    assert len(place(graph, chip_with(synaptic_bytes=2 * head // 8)).parts) == 2
    assert len(place(graph, chip_with(synaptic_bytes=head // 8 - 1)).parts) == 8
    assert summary(place(graph, chip_with(synaptic_bytes=head // 8)))["plastic_share"] < 0.5


def test_plastic_state_is_named_where_it_is_most_of_the_memory() -> None:
    graph = one_ssa(1, 64, 128)
    assert summary(place(graph, LOIHI2))["bottleneck"] == "plastic state"


@pytest.mark.parametrize("limit", ["input_axons", "output_axons", "neuron_bytes", "synaptic_bytes"])
def test_a_neuron_that_is_too_large_is_named(limit: str) -> None:
    with pytest.raises(UserError, match=r"\w+\.\w+ does not fit Loihi 2: one neuron") as end:
        place(graph_of(KNOWN["gpt2-nano"]), chip_with(**{limit: 1}))
    assert "\n" not in str(end.value)


AXON = LOIHI2.width.output_axon
FIRING: Any = {"name": "end", "outputs": 3, "receives": "rate", "bias": "b"}


# node -> neurons, bits of synapses and axons, bits of states and tables, input and output axons of
# one part that holds all of it, with an output axon of 16 bits each
@pytest.mark.parametrize(
    ("node", "expected"),
    [
        # u, v, bias, theta of 24 bits
        (
            CodingNeurons(
                **FIRING, payload_bits=2, sends="rate", most=4, unsigned=0, input_shift=0
            ),
            (3, 3 * 10 * 8 + 10 * 32, 3 * 4 * 24, 10),
        ),
        # and center, mantissa with shift; the GELU
        (
            GeluNeurons(**FIRING, payload_bits=2, sends="rate", most=8),
            (3, 3 * 10 * 8 + 10 * 32, 3 * 6 * 24 + 256 * 16, 10),
        ),
        # and the threshold of -1
        (
            GeluNeurons(**FIRING, payload_bits=2, sends="phase", most=7, digits="signed"),
            (3, 3 * 10 * 8 + 10 * 32, 3 * 7 * 24 + 256 * 16, 10),
        ),
        # u, bias, mantissa with shift, and the stream of two phases
        (
            Accumulator(**FIRING, payload_bits=24, delay=2, fraction_bits=0),
            (3, 3 * 10 * 8 + 10 * 32, 3 * 5 * 24, 10),
        ),
    ],
)
def test_what_neurons_ask_for_by_hand(node: Node, expected: tuple[int, ...]) -> None:
    host = Source(name="host", outputs=10, payload_bits=1)
    placement = place(network(host, matrix("c_fc", 3, 10), node), LOIHI2)
    (part,) = placement.parts
    neurons, synapses, states, inputs = expected
    assert tuple(used(placement, part)) == (neurons, synapses, states + 3 * AXON, inputs, 3)


def test_what_attention_asks_for_by_hand() -> None:
    placement = place(one_ssa(4, 2, 5), LOIHI2)
    (part,) = placement.parts
    neurons, inputs = 4 * 3, 4 * (2 * 5 + 2)  # the divisor's neuron; queries, keys and values
    assert tuple(used(placement, part)) == (
        neurons,
        neurons * 5 * 24 + inputs * LOIHI2.width.input_axon,
        # u and v; counts that wait, 4 bits for each key; the reciprocals
        neurons * 2 * 24 + 4 * 5 * 4 + 128 * 8 + 8 * AXON,
        inputs,
        8,
    )
