"""NIR graphs, read back by `nir` and run by simulators, count what the integer network counts."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fuzzing import CONFIG, tensors_of
from neurtransformer import nir_export
from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT, Integers
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import GeluNeurons
from neurtransformer.integer.quantise import gelu_table
from neurtransformer.runs import read_json
from neurtransformer.spiking.load import load_run

Reset = Literal["to v_reset", "subtract"]
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", params=["tiny_race_run", "tiny_run"])
def run(request: pytest.FixtureRequest) -> Path:
    """A run of each kind of attention; that of the race is phase coded."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(run: Path) -> IntegerGPT2:
    return IntegerGPT2.from_spiking(load_run(run)[0])


# --- simulators ---


def interpret(graph: nir.NIRGraph, driven: Integers, reset: Reset = "to v_reset") -> np.ndarray:
    """NIR's published equations by forward Euler, dt = 1: input (steps, ..., n) to output.

    A node takes the sum of the edges that enter it, from the same step; v > threshold fires.
    """
    order, pending = [], dict(graph.nodes)
    while pending:
        ready = [k for k in pending if not any(b == k and a in pending for a, b in graph.edges)]
        order += ready
        for name in ready:
            del pending[name]
    state: dict[str, np.ndarray] = {}
    out = []
    for x in driven.astype(np.float32):
        value: dict[str, np.ndarray] = {}
        for name in order:
            node = graph.nodes[name]
            arriving = sum(value[a] for a, b in graph.edges if b == name)
            if isinstance(node, nir.Input):
                value[name] = x
            elif isinstance(node, nir.Output):
                value[name] = np.asarray(arriving)
            elif isinstance(node, nir.Affine):
                value[name] = arriving @ node.weight.T + node.bias
            elif isinstance(node, nir.Linear):
                value[name] = arriving @ node.weight.T
            else:
                assert isinstance(node, nir.IF) and node.v_reset is not None
                v = state.get(name, np.float32(0)) + node.r * arriving
                fires = v > node.v_threshold
                rest = node.v_reset if reset == "to v_reset" else v - node.v_threshold
                value[name], state[name] = fires.astype(np.float32), np.where(fires, rest, v)
        out.append(value["output"])
    return np.stack(out)


def spikingjelly(path: Path, driven: Integers) -> np.ndarray:
    """The file, imported and run by SpikingJelly."""
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    network, state = import_from_nir(path, dt=1.0), None
    out = []
    with torch.no_grad():
        for x in torch.from_numpy(driven.astype(np.float32)):
            y, state = network(x, state)
            out.append(y.numpy())
    return np.stack(out)


def fired(graph: nir.NIRGraph, spikes: Integers, fire_steps: int) -> list[Integers]:
    """Output of the fire steps under both resets; in the integration steps no spike may leave."""
    driven = nir_export.drive(spikes, fire_steps)
    outs = [interpret(graph, driven, reset) for reset in ("to v_reset", "subtract")]
    for out in outs:
        assert not out[: len(spikes)].any()
    return [out[len(spikes) :].astype(np.int64) for out in outs]


def totals(graph: nir.NIRGraph, spikes: Integers, fire_steps: int) -> list[Integers]:
    """What comes out of a graph that `drive` drives, added up, under both resets."""
    driven = nir_export.drive(spikes, fire_steps)
    assert driven.shape[-1:] == tuple(graph.nodes["input"].input_type["input"])
    resets: tuple[Reset, Reset] = ("to v_reset", "subtract")
    return [interpret(graph, driven, reset).sum(0).astype(np.int64) for reset in resets]


# --- neurons ---


def some_counts(rng: np.random.Generator, tokens: int, inputs: int, most: int) -> Integers:
    """Signed counts, (tokens, inputs), the first token silent and the next ones at their ends."""
    counts = rng.integers(-most, most + 1, (tokens, inputs))
    counts[0] = 0
    counts[1:3] = [[most], [-most]]
    return counts


@given(SEEDS, st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 16]))
@example(0, 1, 1, 1)
def test_rate_neurons(seed: int, inputs: int, outputs: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    weight = 2 * rng.integers(-127, 128, (outputs, inputs)) * rng.integers(0, 2, (outputs, 1))
    reach = int((most * np.abs(weight).sum(1)).max())
    bias = rng.integers(-reach // 2 - 2, reach // 2 + 3, outputs)
    # small thresholds, where half of one is rounded down; ordinary ones; some out of reach
    theta = rng.choice([1, 2, 3, 2 + reach // most, 3 + 2 * reach], outputs)
    counts = some_counts(rng, 9, inputs, most)
    # one membrane stands at a tie, half a threshold above a whole number of them
    u = counts @ weight.T + bias
    bias[0] += int(theta[0] * most - theta[0] // 2 - u[3, 0]) if abs(u[3, 0]) < reach else 0
    u = counts @ weight.T + bias
    levels = nir_export.rate_levels(theta, most)
    graph = nir_export._sequence(
        **dict(zip("ab", nir_export.level_neurons(weight, bias, levels, most), strict=True))
    )
    graph = nir.dict2NIRNode(graph.to_dict())
    trains, _ = arithmetic.fire_steps(u, theta, most, False, most, most, "rate")
    for out in (
        *fired(graph, counts[None], most),
        *fired(graph, binary_spikes(counts, most), most),
    ):
        assert (out.sum(0) == arithmetic.fire_counts(u, theta, most, False)).all()
        assert (out[::-1] == trains).all()


@given(st.integers(1, LIMIT), st.sampled_from([1, 2, 4, 16, 256]), st.data())
@example(1, 1, None)
@example(LIMIT, 16, None)
def test_levels_are_where_counts_change(theta: int, most: int, data: Any) -> None:
    level = nir_export.rate_levels(np.array([theta]), most)[0]
    near = np.concatenate([level - 1, level, [-LIMIT, -1, 0, 1, LIMIT]])
    if data is not None:
        near = np.append(near, data.draw(st.integers(-LIMIT, LIMIT)))
    u = near[np.abs(near) <= LIMIT][:, None]
    expected = arithmetic.fire_counts(u, np.array([theta]), most, False)
    assert ((level <= u).sum(1) == expected[:, 0]).all()


EXACT_HALF = nir_export.EXACT // 2


def test_a_membrane_that_float32_cannot_hold_is_refused() -> None:
    one = np.array([[1]])
    nir_export.level_neurons(one * (EXACT_HALF - 1), one[0] * 0, one, 1)
    with pytest.raises(UserError, match="float32"):
        nir_export.level_neurons(one * EXACT_HALF, one[0] * 0, one, 1)


TABLE = gelu_table(torch.nn.GELU("tanh"))


def some_gelu(rng: np.random.Generator, neurons: int, most: int) -> tuple[GeluNeurons, Integers]:
    """GELU neurons, ordinary and odd: thresholds of 1, centres that make rest spike or saturate,
    membranes that are coarse or fine; and the largest magnitude of their membranes."""
    reach = rng.choice([0, 1, 300, 5000, 200_000], neurons)
    # a membrane of `reach` is worth about 1 to 16
    fine = np.log2(np.maximum(reach, 1)).astype(int) - arithmetic.GELU_BITS
    hidden = GeluNeurons(
        mantissa=rng.integers(4, 8, neurons),
        shift=fine + rng.integers(-2, 3, neurons),
        center=rng.choice([0, -2785, -2000, 40_000, -40_000, LIMIT], neurons),
        theta=rng.choice([1, 7, 100, 1536, 4000, LIMIT // most], neurons),
        table=TABLE,
    )
    return hidden, reach


@given(SEEDS, st.integers(1, 8), st.sampled_from([1, 2, 8, 32, 255]))
def test_gelu_neurons(seed: int, neurons: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    hidden, reach = some_gelu(rng, neurons, most)
    neuron, sign, levels = nir_export.gelu_levels(hidden, reach, most)
    assert (np.diff(np.minimum(levels, LIMIT), axis=1)[levels[:, 1:] < LIMIT] > 0).all()
    around = levels[levels < nir_export.NEVER]
    u = np.concatenate([around, around - 1, np.arange(-5000, 5001, 7), [200_000, -200_000]])
    u = np.clip(u[:, None], -reach, reach)
    count = np.zeros_like(u)
    reached = (levels[:, :, None] <= u.T[neuron, None]).sum(1)
    np.add.at(count.T, neuron, sign[:, None] * reached)
    expected = arithmetic.fire_counts(hidden.membrane(u), hidden.theta, most, signed=False)
    assert (count == expected).all()


# --- chains of a network ---


def chains_of(model: IntegerGPT2, block: int) -> dict[str, nir_export.Chain]:
    config, attention = model.config, model.attention[block]
    return {
        "qkv": nir_export.qkv_chain(attention),
        "c_proj": nir_export.c_proj_chain(attention),
        "mlp": nir_export.feedforward_chain(
            model.feedforward[block], config.most, config.hidden_most
        ),
    }


def expected_of(model: IntegerGPT2, block: int, counts: dict[str, Integers]) -> dict[str, Integers]:
    """What the integer network makes of counts (tokens, width) of each chain: counts, and
    membranes."""
    config, attention, mlp = model.config, model.attention[block], model.feedforward[block]
    u = attention.c_attn.counts(counts["qkv"])
    theta, signed = attention.qkv_theta, attention.qkv_signed
    y = mlp.hidden.membrane(mlp.c_fc.counts(counts["mlp"]))
    hidden = arithmetic.fire_counts(y, mlp.hidden.theta, config.hidden_most, signed=False)
    return {
        "qkv": arithmetic.fire_counts(u, theta, attention.qkv.most, signed),
        "c_proj": attention.c_proj.counts(counts["c_proj"]),
        "mlp": mlp.c_proj.counts(hidden),
    }


def merged(chain: dict[str, Any], total: Integers) -> Integers:
    """Totals (..., channels) of a chain: pairs of neurons become one channel."""
    part = {k: total[..., slice(*channels)] for k, channels in chain.items()}
    for name in [k for k in part if k.endswith("_negative")]:
        part[name.removesuffix("_negative")] -= part.pop(name)
    return np.concatenate(list(part.values()), axis=-1)


def binary_spikes(counts: Integers, timesteps: int) -> Integers:
    """The T binary spikes that carry `counts`: (T, *counts.shape)."""
    step = np.arange(timesteps).reshape(-1, *[1] * counts.ndim)
    return np.where(step < np.abs(counts), np.sign(counts), 0)


def some_tokens(model: IntegerGPT2) -> dict[str, Integers]:
    """What arrives at each chain of a block: in front of it the attention, or the feed-forward
    block, has its own code."""
    rng = np.random.default_rng(0)
    width, attention = model.config.width, model.config.attention_code
    own = some_counts(rng, 40, width, attention.most)
    return {"qkv": own, "c_proj": own, "mlp": some_counts(rng, 40, width, model.config.most)}


@pytest.mark.parametrize("block", [0, 1])
def test_chains_equal_the_integer_network(model: IntegerGPT2, tmp_path: Path, block: int) -> None:
    counts = some_tokens(model)
    expected = expected_of(model, block, counts)
    for name, chain in chains_of(model, block).items():
        nir.write(tmp_path / "a.nir", chain.graph)
        graph = nir.read(tmp_path / "a.nir")
        most = int(np.abs(counts[name]).max())
        for spikes in (counts[name][None], binary_spikes(counts[name], most)):
            for total in totals(graph, spikes, chain.fire_steps):
                assert (merged(chain.output, total) == expected[name]).all(), name
        assert np.ptp(expected[name]) > 2  # not a silent network


@given(
    SEEDS,
    st.sampled_from([(2, 1), (4, 2), (8, 1)]),
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from(["rate", "phase"]),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 4),
)
def test_drive_is_for_every_graph(
    seed: int,
    width: tuple[int, int],
    hidden: int,
    timesteps: int,
    coding: str,
    batch: list[int],
    steps: int,
) -> None:
    """Networks of all sizes, driven by counts that come in any parts, tokens in any arrangement."""
    values = {"width": width[0], "heads": width[1], "hidden": hidden, "timesteps": timesteps}
    config = CONFIG.model_copy(update={**values, "coding": coding})
    tensors = tensors_of(seed, config) | {"h.0.mlp.hidden.table": TABLE.astype(np.int32)}
    network = IntegerGPT2(config, tensors)
    rng = np.random.default_rng(seed)
    counts = rng.integers(-config.most, config.most + 1, (*batch, config.width))
    sums = rng.integers(-config.most, config.most + 1, (steps, *counts.shape))
    sums[-1] = counts
    parts = np.diff(sums, axis=0, prepend=0)
    try:
        chains = chains_of(network, 0)
    except UserError:  # a membrane that float32 cannot hold
        assume(False)
    expected = expected_of(network, 0, dict.fromkeys(chains, counts))
    for name, chain in chains.items():
        for total in totals(chain.graph, parts, chain.fire_steps):
            assert (merged(chain.output, total) == expected[name]).all(), name


def test_chains_in_spikingjelly(model: IntegerGPT2, tmp_path: Path) -> None:
    counts = some_tokens(model)
    expected = expected_of(model, 0, counts)
    for name, chain in chains_of(model, 0).items():
        nir.write(tmp_path / "a.nir", chain.graph)
        driven = nir_export.drive(counts[name][None], chain.fire_steps)
        out = spikingjelly(tmp_path / "a.nir", driven).sum(0)
        assert (merged(chain.output, out) == expected[name]).all(), name


# --- the command ---


def test_export_by_command(neurtx: Any, run: Path, model: IntegerGPT2, tmp_path: Path) -> None:
    done = neurtx("export", str(run), "--target", "nir", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    folder = Path(values["netlist"])
    assert folder.parent == tmp_path / "nir-graphs"
    manifest = read_json(folder / "manifest.json")
    assert values["files"] == len(list(folder.iterdir())) == 1 + 2 * 3
    assert values["weight_bits"] == 8 and "LayerNorm" in values["left_out"]
    # at the least 6 projections of 64 x 64 for q, k, v: pairs of each of a race's three, or two for
    # q, two for k and the pairs of v
    assert values["neurons"] > 2 * (6 + 4) * 64 and values["synapses"] > 2 * 15 * 64 * 64

    # another program: it knows the manifest, not the library
    counts = some_tokens(model)
    expected = [expected_of(model, block, counts) for block in (0, 1)]
    for entry in manifest["graphs"]:
        path = folder / entry["file"]
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        graph, steps = nir.read(path), entry["fire_steps"]
        assert {k: type(node).__name__ for k, node in graph.nodes.items()} == entry["nodes"]
        channels = int(graph.nodes["input"].input_type["input"][0])
        parts = entry["file"].split(".")
        given = counts[parts[-2]]
        driven = np.zeros((1 + steps, len(given), channels), dtype=np.int64)
        driven[0, :, : entry["inputs"]] = given
        if steps:
            driven[0, :, entry["start"]] = 1
            for step, channel in enumerate(range(*entry["clock"])):
                driven[1 + step, :, channel] = 1
        total = interpret(graph, driven).sum(0)
        right = expected[int(parts[1])][parts[-2]]
        assert (merged(entry["output"], total) == right).all(), path

    assert "no netlist here yet" in neurtx("simulate", "--prompt", "a").mistake()
    neurtx("simulate", str(folder), "--prompt", "a").mistake()
    words = ("export", str(run), "--target", "nir", "--out", str(folder))
    assert "--force" in neurtx(*words).mistake()
    again = neurtx(*words, "--force")
    assert again.returncode == 0, again.stderr


def test_the_loop_of_the_docs(
    neurtx: Any, run: Path, model: IntegerGPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nirtorch")
    text = (Path(__file__).parent.parent / "docs" / "nir.md").read_text()
    section = text.partition("## How to drive a graph")[2].partition("\n## ")[0].splitlines()
    loop = "\n".join(line[4:] for line in section if line.startswith("    "))
    assert "entry = ..." in loop
    loop = loop.replace("entry = ...", "")
    assert neurtx("export", str(run), "--target", "nir", "--out", "n").returncode == 0
    monkeypatch.chdir("n")
    counts = some_tokens(model)
    entries = read_json(Path("manifest.json"))["graphs"]
    assert len(entries) == 3 * model.config.layers
    for entry in entries:
        block_number, name = entry["file"].split(".")[1], entry["file"].split(".")[-2]
        names = {"entry": entry, "counts": counts[name]}
        with torch.no_grad():
            exec(loop, names)
        total = names["total"].numpy().astype(np.int64)
        expected = expected_of(model, int(block_number), counts)[name]
        assert (merged(entry["output"], total) == expected).all(), entry["file"]


def test_callers_mistakes(neurtx: Any, tiny_run: Path, tmp_path: Path) -> None:
    words = ("export", str(tiny_run), "--target", "nir")
    assert "--spikes" in neurtx(*words, "--spikes", "graded").mistake()
    assert "does not exist" in neurtx("export", "no-run", "--target", "nir").mistake()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_failed_export(
    neurtx: Callable[..., Any], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nir, "write", full)
    assert neurtx("export", str(tiny_run), "--target", "nir").returncode != 0
    assert not list(tmp_path.iterdir())
