"""The plastic transformer as a netlist: steps, counts and Lava are equal, faults are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic, plastic
from neurtransformer.integer.plastic import (
    KEY_MOST,
    WEIGHT_MOST,
    ConvolutionSizes,
    IntegerPlasticTransformer,
    PlasticConfig,
    layout,
)
from neurtransformer.loihi import netlist, netx
from neurtransformer.loihi.episode import simulate_episode
from neurtransformer.loihi.nodes import Spikes
from neurtransformer.loihi.simulate import Backend

CORPUS = Path(__file__).parents[2] / "shared" / "corpus" / "omniglot"
SEEDS = st.integers(0, 2**32 - 1)
T = 8


def sizes(side: int, ways: int, *convolutions: tuple[int, int]) -> PlasticConfig:
    """convolutions: channels that leave each, and the side of its kernel."""
    channels = [1, *(outputs for outputs, _ in convolutions)]
    return PlasticConfig(
        side=side,
        ways=ways,
        convolutions=tuple(
            ConvolutionSizes(inputs=i, outputs=o, kernel=k)
            for i, (o, k) in zip(channels, convolutions, strict=False)
        ),
    )


configs = st.builds(
    sizes,
    st.integers(1, 9),
    st.integers(1, 5),
    st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 5])),
    st.tuples(st.integers(1, 4), st.sampled_from([1, 3])),
)


def random_model(config: PlasticConfig, seed: int) -> IntegerPlasticTransformer:
    """Weights, thresholds and biases from all over their ranges, or at the ends of them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, entry in layout(config).items():
        size = 2.0 ** rng.uniform(0, np.log2(max(entry.high, 2)), entry.shape)
        x = np.clip(np.rint(rng.choice([-1, 1], entry.shape) * size), entry.low, entry.high)
        if entry.home == "synapses":
            x = 2 * np.trunc(x / 2)
        elif name.split(".")[1].startswith("conv"):
            # with room for the sums beside it
            x = np.clip(x, -(2**22), 2**22)
        elif name.endswith("theta"):
            x = np.clip(x, 1, 2.0 ** rng.uniform(0, 21 if "neurons" in name else 15))
        tensors[name] = x.astype(entry.dtype)
    plastic.check(config, tensors, complain)
    return IntegerPlasticTransformer(config, tensors)


def complain(complaint: str) -> None:
    raise AssertionError(complaint)


def sequence(config: PlasticConfig, seed: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawings in counts, some empty and some full, and labels, some without."""
    rng = np.random.default_rng(seed)
    ink = rng.integers(0, T + 1, (tokens, config.side, config.side))
    ink = np.where(rng.random((tokens, 1, 1)) < 0.3, rng.choice([0, T]), ink)
    return ink, rng.integers(-1, config.ways, tokens)


def run(
    folder: Path,
    model: IntegerPlasticTransformer,
    spikes: Spikes,
    backend: Backend,
    seed: int,
    tokens: int,
) -> dict[str, Any]:
    netlist.write(folder, model, None, spikes)
    found = netlist.read_plastic(folder)
    for name, tensor in model.tensors.items():
        assert np.array_equal(tensor, found.model.tensors[name]), name
    return simulate_episode(found, *sequence(model.config, seed, tokens), backend)


# --- the integer model ---


@given(configs, SEEDS, st.sampled_from([1, T]))
def test_steps_are_counts(config: PlasticConfig, seed: int, phase: int) -> None:
    model = random_model(config, seed)
    ink, labels = sequence(config, seed, 5)
    trace = model.steps(ink, labels, phase)
    counts = model.keys(ink)
    assert np.array_equal(trace["keys.spikes"].sum(1), 2 * counts)
    assert not trace["keys.spikes"][:, :-1].any()
    reads, weights = model.reads(counts, labels)
    assert np.array_equal(trace["logits.x"][:, -1], reads)
    assert np.array_equal(trace["attention.weight"][:, -1], weights)
    assert np.array_equal(trace["ink.spikes"].sum(1).reshape(5, -1), plastic.in_line(ink[:, None]))
    for name, x in trace.items():
        assert x.shape[:2] == (5, phase), name
        assert np.abs(x).max() <= arithmetic.LIMIT, name


@given(configs, SEEDS)
def test_the_last_reads_are_those_of_the_query(config: PlasticConfig, seed: int) -> None:
    model = random_model(config, seed)
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, KEY_MOST + 1, (3, 6, config.keys))
    labels = rng.integers(-1, config.ways, (3, 6))
    reads = model.query_reads(counts, labels)
    for one, label, read in zip(counts, labels, reads, strict=True):
        assert np.array_equal(model.reads(one, label)[0][-1], read)


@given(SEEDS, st.integers(1, 8), st.integers(1, 20))
def test_the_weights_are_what_the_rule_writes(seed: int, ways: int, tokens: int) -> None:
    """Token after token, as the docstring has it: read, then write, at most 255."""
    model = random_model(sizes(4, ways, (3, 3)), 0)
    rng = np.random.default_rng(seed)
    counts = rng.choice([0, 1, 50, KEY_MOST], (tokens, model.config.keys))
    labels = rng.integers(-1, ways, tokens)
    reads, weights = model.reads(counts, labels)
    weight = np.zeros((ways, model.config.keys), dtype=np.int64)
    for i, label in enumerate(labels):
        assert np.array_equal(reads[i], weight @ (2 * counts[i]))
        if label >= 0:
            weight[label] = np.minimum(weight[label] + counts[i], WEIGHT_MOST)
        assert np.array_equal(weights[i], weight)


# --- Lava ---


@pytest.mark.usefixtures("lava")
@given(SEEDS, st.integers(1, 9), st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_our_convolution_is_lavas(seed: int, side: int, kernel: int, stride: int) -> None:
    from lava.proc.conv import utils

    from neurtransformer.loihi.stock import convolved

    rng = np.random.default_rng(seed)
    picture = rng.integers(-T, T + 1, (side, side, 3)).astype(np.int32)
    kernels = rng.integers(-128, 128, (4, kernel, kernel, 3)).astype(np.int32)
    pair = np.array([kernel // 2] * 2), np.array([stride] * 2)
    size, padding, strides = np.array([kernel] * 2), *pair
    theirs = utils.conv(picture, kernels, size, strides, padding, np.array([1, 1]), 1)
    assert np.array_equal(convolved(picture, kernels, *pair), theirs)


@pytest.mark.usefixtures("lava")
def test_stock_netx_reads_kernels_as_torch_has_them(tmp_path: Path) -> None:
    from neurtransformer.loihi.nodes import Convolution
    from neurtransformer.loihi.plastic_graph import plastic_networks
    from neurtransformer.loihi.stock import convolved, stock_convolution

    rng = np.random.default_rng(0)
    config = sizes(7, 2, (2, 5), (3, 3))
    weight = 2 * rng.integers(-127, 128, (3, 2, 3, 3)).astype(np.int16)
    node = plastic_networks(config, "binary")[0].nodes[3]
    assert isinstance(node, Convolution) and node.side == 4
    made = netx.convolution(weight.shape, node.side, node.stride, node.padding)
    netx.write_layer(tmp_path / "a.net", made, weight, np.zeros(3), None, T)
    assert np.array_equal(netx.read_layer(tmp_path / "a.net", made, weight.shape), weight)
    process = stock_convolution(tmp_path / "a.net", node)
    picture = rng.integers(0, T, (1, 2, 4, 4))
    kernels, padding, stride = (
        np.asarray(x.init) for x in (process.weight, process.padding, process.stride)
    )
    ours = convolved(picture[0].transpose(2, 1, 0), kernels, padding, stride)
    x, y = (torch.from_numpy(array.astype(np.float32)) for array in (picture, weight))
    theirs = F.conv2d(x, y, stride=2, padding=1)[0].numpy()
    assert np.array_equal(ours, theirs.transpose(2, 1, 0))


@pytest.mark.usefixtures("lava")
@pytest.mark.parametrize(
    ("config", "spikes", "seed"),
    [
        (sizes(6, 3, (3, 5), (4, 3)), "binary", 0),
        (sizes(5, 2, (2, 3), (3, 1), (2, 3)), "graded", 1),
        (sizes(1, 1, (1, 1)), "binary", 2),
    ],
)
def test_lava_is_the_integer_model(
    tmp_path: Path, config: PlasticConfig, spikes: Spikes, seed: int
) -> None:
    found = run(tmp_path, random_model(config, seed), spikes, "lava", seed, 5)
    assert found["compared"] > 0 and found["mismatches"] == 0, found


@pytest.mark.usefixtures("lava")
@pytest.mark.slow
@settings(max_examples=25)
@given(configs, st.sampled_from(["binary", "graded"]), SEEDS, st.integers(1, 8))
def test_lava_is_the_integer_model_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    config: PlasticConfig,
    spikes: Spikes,
    seed: int,
    tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("netlist")
    found = run(folder, random_model(config, seed), spikes, "lava", seed, tokens)
    assert found["compared"] > 0 and found["mismatches"] == 0, found


@pytest.mark.usefixtures("lava")
def test_lava_saturates_as_the_integer_model(tmp_path: Path) -> None:
    """Six drawings of one character at full scale: a weight stays at 255, and all else at 0."""
    config = sizes(3, 2, (2, 3))
    model = random_model(config, 0)
    tensors = {**model.tensors, "decoder.keys.theta": np.ones(config.keys, dtype=np.int32)}
    tensors["decoder.keys.bias"] = np.full(config.keys, 2**19, dtype=np.int32)
    model = IntegerPlasticTransformer(config, tensors)
    netlist.write(tmp_path, model, None, "graded")
    ink, labels = np.full((7, 3, 3), T), np.array([1] * 6 + [-1])
    assert model.keys(ink).min() == KEY_MOST
    reads, weights = model.reads(model.keys(ink), labels)
    assert weights[-1, 1].min() == WEIGHT_MOST and not weights[-1, 0].any()
    assert reads[-1].tolist() == [0, 2 * KEY_MOST * WEIGHT_MOST * config.keys]
    found = simulate_episode(netlist.read_plastic(tmp_path), ink, labels, "lava")
    assert found["mismatches"] == 0 and found["text"] == "1"


@pytest.mark.usefixtures("lava")
@pytest.mark.parametrize("spikes", ["binary", "graded"])
def test_lava_meets_a_threshold_exactly(tmp_path: Path, spikes: Spikes) -> None:
    """Membranes one below, at and one above what makes a count of 1, 2, 63, 64, and far beyond."""
    model = random_model(sizes(1, 1, (15, 1)), 0)
    tensors = {name: np.zeros_like(x) if "conv" in name else x for name, x in model.tensors.items()}
    steps = np.array([1, 2, 63, 64, 5000])
    # a count is rounded: half a threshold is enough for the next one
    bias = (10 * steps - 5)[:, None] + [-1, 0, 1]
    tensors["decoder.keys.bias"] = bias.reshape(-1).astype(np.int32)
    tensors["decoder.keys.theta"] = np.full(15, 10, dtype=np.int32)
    model = IntegerPlasticTransformer(model.config, tensors)
    ink = np.full((2, 1, 1), T)
    expected = np.minimum(steps[:, None] + [-1, 0, 0], KEY_MOST)
    assert np.array_equal(model.keys(ink)[0], expected.reshape(-1))
    netlist.write(tmp_path, model, None, spikes)
    found = simulate_episode(netlist.read_plastic(tmp_path), ink, np.array([0, -1]), "lava")
    assert found["mismatches"] == 0


@pytest.mark.usefixtures("lava")
def test_a_difference_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees one wrong weight in one step."""
    from neurtransformer.loihi import runner

    config = sizes(4, 2, (2, 3))
    model = random_model(config, 0)
    netlist.write(tmp_path, model, None, "binary")

    def wrong(found: netlist.Netlist, network: Any, sent: dict[str, np.ndarray]) -> Any:
        sources = {f"{name}.spikes" for name in network.sources}
        trace = {name: x.copy() for name, x in sent.items() if name not in sources}
        trace["attention.weight"][1, 3, 1, 0] += 5
        return trace, 1

    monkeypatch.setattr(runner, "run_network", wrong)
    found = simulate_episode(netlist.read_plastic(tmp_path), *sequence(config, 0, 3), "lava")
    assert (found["mismatches"], found["max_abs_difference"]) == (1, 5)
    assert found["first_mismatch"] == "decoder.attention.weight"


def test_steps_that_are_not_the_counts_are_told(tmp_path: Path) -> None:
    config = sizes(4, 2, (2, 3))
    netlist.write(tmp_path, random_model(config, 0), None, "binary")
    found = netlist.read_plastic(tmp_path)
    keys, (ink, _) = found.model.keys, sequence(config, 0, 3)
    found.model.keys = lambda ink: keys(ink) ^ 1  # type: ignore[method-assign]
    values = simulate_episode(found, ink, np.array([0, 1, -1]), "integer")
    assert values["mismatches"] > 0 and values["first_mismatch"] == "decoder.counts"


# --- files ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plastic")
    netlist.write(folder, random_model(sizes(6, 3, (3, 5), (4, 3)), 0), None, "binary")
    return folder


def manifest_says(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A manifest that says something else, with the right checksum."""

    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        values = json.loads(path.read_text())
        change(values)
        try:
            parsed = netlist.Manifest.model_validate(values)
        except ValueError:
            pass
        else:
            values["checksum"] = netlist.checksum(parsed)
        path.write_text(json.dumps(values))

    return edit


def other_kernels(folder: Path) -> None:
    """A file that is sound, but of another shape, and listed as it is."""
    weight = np.full((3, 1, 3, 3), 2, dtype=np.int16)
    path = folder / "netx" / "decoder.conv0.net"
    made = netx.convolution(weight.shape, 6, 2, 1)
    netx.write_layer(path, made, weight, np.zeros(3), None, T)

    def relist(values: dict[str, Any]) -> None:
        entry = netlist._entry(path)
        values["files"]["netx/decoder.conv0.net"] = entry.model_dump()

    manifest_says(relist)(folder)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "rule": (
        manifest_says(lambda x: x["networks"][0]["nodes"][-2].update(rule="2^1*x0*x1*y1")),
        "rule",
    ),
    "teacher": (
        manifest_says(lambda x: x["networks"][0]["nodes"][-2].update(teacher="ink")),
        "does not fit the config",
    ),
    "ways": (manifest_says(lambda x: x["config"].update(ways=4)), "does not fit the config"),
    "timesteps": (manifest_says(lambda x: x["config"].update(timesteps=4)), "timesteps"),
    "keys": (manifest_says(lambda x: x["config"].update(side=4096)), "too many"),
    "kernel": (
        manifest_says(lambda x: x["config"]["convolutions"][0].update(kernel=4)),
        "odd sides",
    ),
    "kernels": (other_kernels, "shape"),
    "no file": (lambda folder: (folder / "netx/decoder.conv1.net").unlink(), "is missing"),
    "chip": (lambda folder: (folder / "chip.safetensors").unlink(), "is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(folder: Path, tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    copy = tmp_path / "netlist"
    shutil.copytree(folder, copy)
    netlist.read_plastic(copy)
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        netlist.read(copy)
    assert "\n" not in str(error.value)


def test_tensors_out_of_range_are_refused() -> None:
    """A kernel and a bias whose sums leave 24 bits, and a multiplier that is another."""
    config = sizes(6, 3, (3, 5), (4, 3))
    for name, value, message in (
        ("decoder.conv0.bias", arithmetic.LIMIT, "24 bits"),
        ("decoder.logits.shift", 1, "out of range"),
        ("decoder.conv1.weight", 3, "odd"),
    ):
        tensors = dict(random_model(config, 0).tensors)
        tensors[name] = np.full_like(tensors[name], value)
        with pytest.raises(AssertionError, match=message):
            plastic.check(config, tensors, complain)


def test_too_large_an_episode_is_refused(tmp_path: Path) -> None:
    model = random_model(sizes(1, 4096, (64, 1)), 0)
    netlist.write(tmp_path, model, None, "binary")
    with pytest.raises(UserError, match="too many to compare"):
        simulate_episode(netlist.read_plastic(tmp_path), *sequence(model.config, 0, 40), "integer")


# --- commands ---


def test_by_commands(neurtx: Callable[..., Any], tiny_netlist: Path) -> None:
    made = neurtx("export", "omniglot-plastic", "--target", "loihi2", "--json")
    values = json.loads(made.stdout)
    assert values["synapses"] == 25 * 32 + 9 * 64 * (32 + 64 + 64) and values["weight_bits"] == 8
    placed = json.loads(neurtx("place", "--json").stdout)
    assert placed["netlist"] == values["netlist"] and placed["fits"]["one chip"]
    attention = placed["layers"][-1]
    assert attention["name"] == "decoder.attention" and attention["cores"] == 1
    integer = ("--backend", "integer")
    for arguments, message in (
        (("simulate", "--prompt", "a", *integer), "not text"),
        (("simulate",), "--prompt TEXT"),
        (("simulate", "--prompt", "a", "--data", "."), "--prompt TEXT"),
        (("simulate", "--data", ".", "--tokens", "3", *integer), "--tokens"),
        (("simulate", "--data", ".", *integer), "holds no Omniglot"),
        (("simulate", str(tiny_netlist), "--data", ".", *integer), "not drawings"),
        (("eval", "omniglot-plastic"), "reads drawings, not text: use `neurtx icl omniglot`"),
        (("report", "omniglot-plastic"), "icl omniglot"),
        (("icl", "omniglot", "gpt2-nano-spiking", "--data", "."), "no plastic transformer"),
    ):
        failed = neurtx(*arguments)
        assert failed.returncode == 2, arguments
        assert message in failed.stderr and failed.stderr.count("\n") == 1, arguments


def test_drawings_of_another_size(neurtx: Callable[..., Any], folder: Path) -> None:
    failed = neurtx("simulate", str(folder), "--data", ".", "--backend", "integer")
    assert failed.returncode == 2 and "sides than 28" in failed.stderr


def test_simulate_real_drawings(neurtx: Callable[..., Any]) -> None:
    if not CORPUS.is_dir():
        pytest.skip("no Omniglot in ../shared/corpus/omniglot")
    neurtx("export", "omniglot-plastic", "--target", "loihi2", "--spikes", "graded")
    found = neurtx("simulate", "--data", str(CORPUS), "--backend", "integer", "--json")
    values = json.loads(found.stdout)
    assert values["mismatches"] == 0 and values["tokens"] == 21 and values["text"]
