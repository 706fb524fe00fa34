"""Netlist folders and netx files: what is written is read back, what is spoilt is refused."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from neurtransformer.errors import UserError
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist, netx
from neurtransformer.loihi.attention.linear import SSA
from neurtransformer.loihi.attention.ttfs import Race
from neurtransformer.loihi.nodes import Synapses
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.load import load_run

SEEDS = st.integers(0, 2**32 - 1)
CHANNELS = {"linear": 5, "ttfs": 3}
"""Query, key and value neurons for each channel of c_attn's input."""

# c_attn, 1 + 4 + 4 times 64 x 64 in 2 blocks; 4096 tokens and 64 positions in, 4096 tokens out
SYNAPSES = {
    kind: 2 * (channels + 9) * 64 * 64 + 64 * (4096 + 64) + 4096 * 64
    for kind, channels in CHANNELS.items()
}
Copy = Callable[[Path], Path]


@pytest.fixture
def model(either_run: Path) -> IntegerGPT2:
    return IntegerGPT2.from_spiking(load_run(either_run)[0])


@pytest.fixture
def folder(tiny_netlist: Path) -> Path:
    """A netlist. For reading only: `copy_of` makes one to spoil."""
    return tiny_netlist


# --- netx files ---


def even(seed: int, outputs: int, inputs: int, low: int = -127) -> np.ndarray:
    rng = np.random.default_rng(seed)
    most = int(rng.integers(0, 128))
    return (2 * rng.integers(max(low, -most), most + 1, (outputs, inputs))).astype(np.int16)


@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.sampled_from([-127, 0]))
def test_netx_round_trip(
    tmp_path_factory: pytest.TempPathFactory, seed: int, outputs: int, inputs: int, low: int
) -> None:
    path = tmp_path_factory.mktemp("netx") / "a.net"
    weight = even(seed, outputs, inputs, low)
    bias = np.random.default_rng(seed).integers(-(2**22), 2**22, outputs)
    netx.write_projection(path, weight, bias, np.full(outputs, 3), 8)
    assert (netx.read_projection(path, inputs, outputs, netx.silent_inputs(weight)) == weight).all()


@pytest.mark.parametrize("most", [0, 16, 256])
def test_without_a_positive_weight_there_is_a_silent_input(tmp_path: Path, most: int) -> None:
    weight = np.zeros((3, 4), np.int16)
    weight[1, 2] = -most
    netx.write_projection(tmp_path / "a.net", weight, np.zeros(3), None, 8)
    with h5py.File(tmp_path / "a.net") as file:
        assert file["layer/1/weight"].shape == (3, 5)
        assert (file["layer/1/weight"][()] > 0).any()
    assert (netx.read_projection(tmp_path / "a.net", 4, 3, 1) == weight).all()


def test_what_stands_in_a_file_of_netx(tmp_path: Path) -> None:
    """All that stock netx reads: its neurons share a threshold, and their bias comes each step."""
    weight = np.array([[-256, 2, 0], [254, -2, 4]], np.int16)
    bias, theta = np.array([80_000, -24]), np.array([10**6, 500_000])
    for name, thresholds, expected in (
        ("a", theta // 10**4, 75),  # the median of 100 and 50
        ("b", theta, 2**17 - 1),
        ("c", None, 2**17 - 1),
    ):
        netx.write_projection(tmp_path / name, weight, bias, thresholds, 8)
        with h5py.File(tmp_path / name) as file:
            values: dict[str, Any] = {}
            file.visititems(
                lambda k, x, v=values: v.update({k: x[()]}) if hasattr(x, "shape") else None
            )
        found = {
            k: v.tolist() if isinstance(v, np.ndarray | np.integer) else v
            for k, v in values.items()
        }
        assert found == {
            "layer/0/type": b"input",
            "layer/0/shape": [3],
            "layer/1/type": b"dense",
            "layer/1/shape": [2],
            "layer/1/weight": weight.tolist(),
            "layer/1/bias": [4095, -3],
            "layer/1/neuron/type": b"CUBA",
            "layer/1/neuron/iDecay": 4096,
            "layer/1/neuron/vDecay": 0,
            "layer/1/neuron/vThMant": expected,
        }


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([[1, 2]], "odd"),
        ([[256, -2]], "reach"),
        ([[-258, 2]], "reach"),
        ([[0.5, 2.0]], "floats"),
        ([2, 4], "matrix"),
    ],
)
def test_what_netx_would_spoil_is_refused(tmp_path: Path, weight: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        netx.write_projection(tmp_path / "a.net", np.array(weight), np.zeros(1), None, 8)


# --- whole folders ---


@pytest.mark.parametrize("spikes", ["binary", "graded"])
def test_round_trip(model: IntegerGPT2, nano_tokenizer: Any, tmp_path: Path, spikes: Any) -> None:
    manifest = netlist.write(tmp_path, model, nano_tokenizer, spikes)
    found = netlist.read_text(tmp_path)
    assert found.manifest == manifest
    assert found.model.config == model.config
    assert found.model.tensors.keys() == model.tensors.keys()
    for name, x in model.tensors.items():
        assert np.array_equal(found.model.tensors[name], x), name
    assert found.tokenizer.encode("a word") == nano_tokenizer.encode("a word")
    kind = model.config.attention
    assert manifest.totals.synapses == SYNAPSES[kind]
    (node,) = [x for x in manifest.networks[1].nodes if isinstance(x, SSA | Race)]
    if isinstance(node, SSA):
        assert (kind, node.heads, node.dim, node.key_dim) == ("linear", 2, 32, 64)
    else:
        assert (kind, node.heads, node.dim, node.positions) == ("ttfs", 2, 32, 64)
    # encode, query, key and value, merged, those of the race; encode, hidden; before the LM head
    block = 64 + CHANNELS[kind] * 64 + 64 + node.firing + 64 + 256
    assert manifest.totals.neurons == 2 * block + 64
    assert node.firing == (2 * 64 if kind == "ttfs" else 0)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == manifest.files.keys() | {"manifest.json"}


def test_a_network_without_attention_output_survives(
    tiny_run: Path, nano_tokenizer: Any, tmp_path: Path
) -> None:
    """The control without attention: a projection of zeros, which stock netx cannot read."""
    spiking = load_run(tiny_run)[0]
    spiking.blocks[0].attn.c_proj.weight.data.zero_()
    silent = IntegerGPT2.from_spiking(spiking)
    manifest = netlist.write(tmp_path, silent, nano_tokenizer, "binary")
    by_file = {n.file: n for net in manifest.networks for n in net.nodes if isinstance(n, Synapses)}
    assert by_file["netx/h.0.attn.c_proj.net"].silent_inputs == 1
    assert not netlist.read_text(tmp_path).model.tensors["h.0.attn.c_proj.weight"].any()


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = read_json(folder / "manifest.json")
    change(manifest)
    with contextlib.suppress(ValidationError):
        found = netlist.Manifest.model_validate(manifest)
        manifest["checksum"] = netlist.checksum(found)
    write_json(folder / "manifest.json", manifest)


def sign_anew(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed, so that only its content tells."""
    entry = netlist._entry(folder / name).model_dump()
    edit(folder, lambda manifest: manifest["files"].update({name: entry}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        netlist.read_text(folder)
    assert "\n" not in str(caught.value)


FILES = ("netx/h.1.mlp.c_fc.net", "chip.safetensors", "netx/embed.table.net", "manifest.json")


@pytest.mark.parametrize("name", [*FILES, "tokenizer/tokenizer.json"])
def test_missing_file(folder: Path, copy_of: Copy, name: str) -> None:
    spoilt = copy_of(folder)
    (spoilt / name).unlink()
    refused(spoilt, "missing")


@pytest.mark.parametrize("name", [*FILES, "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("signed", [False, True])
def test_file_cut_short(folder: Path, copy_of: Copy, name: str, signed: bool) -> None:
    spoilt = copy_of(folder)
    whole = (spoilt / name).read_bytes()
    (spoilt / name).write_bytes(whole[: len(whole) // 2])
    if signed and name != "manifest.json":
        sign_anew(spoilt, name)
    refused(spoilt, "cut short|damaged|bytes|does not load")


@pytest.mark.parametrize("name", FILES[:3])
def test_one_bit_flipped(folder: Path, copy_of: Copy, name: str) -> None:
    spoilt = copy_of(folder)
    data = bytearray((spoilt / name).read_bytes())
    data[-20] ^= 4
    (spoilt / name).write_bytes(data)
    refused(spoilt, "not the file that the manifest describes")


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("version", value=1), "version"),
        (_set("format", value="other"), "not a neurtx"),
        (_set("config", "timesteps", value=8), "does not fit|not the file"),
        (_set("config", "timesteps", value=0), "timesteps"),
        (_set("config", "timesteps", value="4"), "timesteps"),
        (_set("config", "heads", value=3), "heads"),
        (_set("config", "attention", value="nonsense"), "attention must be .*ttfs.*, not nonsense"),
        (_set("config", "layers", value=1), "networks"),
        (_set("config", "vocabulary", value=5000), "does not fit"),
        (_set("spikes", value="graded"), "does not fit"),
        (_set("spikes", value="phase"), "spikes"),
        (_set("extra", value=1), "extra"),
        (_set("totals", "synapses", value=1), "totals"),
        (_set("config", "stream_bits", value=3), "does not fit"),
        (_set("networks", 0, "wires", value=[]), "does not fit"),
        (_set("networks", 0, "nodes", 1, "weight_bits", value=4), "weight_bits"),
        (_set("networks", 0, "nodes", 1, "file", value="../x.net"), "does not fit"),
        (_set("networks", 1, "nodes", 2, "state_bits", value=16), "state_bits"),
        (_set("networks", 1, "nodes", 3, "kind", value="softmax"), "kind|nodes"),
        (_set("networks", value={}), "networks"),
        (_set("files", value={}), "does not list"),
        (lambda manifest: manifest["files"].pop("chip.safetensors"), "not list chip.safetensors"),
        (lambda manifest: manifest["files"].pop(FILES[0]), f"not list {FILES[0]}"),
        (_set("files", "../../etc/passwd", value={"sha256": "0" * 64, "bytes": 1}), "outside"),
        (_set("files", "/etc/passwd", value={"sha256": "0" * 64, "bytes": 1}), "outside"),
        (_set("files", "more.bin", value={"sha256": "0" * 64, "bytes": 1}), "missing"),
    ],
)
def test_manifest_that_lies(
    folder: Path, copy_of: Copy, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    spoilt = copy_of(folder)
    edit(spoilt, change)
    refused(spoilt, message)


@pytest.mark.parametrize("version", [8, 9, 10])
def test_older_netlists_are_read(folder: Path, copy_of: Copy, version: int) -> None:
    """Which do not know of signed digits, those before version 10 of no neurons that stop, that of
    version 8 of no innate first token either, and were signed without them."""
    old = copy_of(folder)
    unknown = ["digits"]
    unknown += ["hidden_timesteps", "hidden_spikes", "carries"] if version < 10 else []
    unknown += ["first_token", "innate"] if version == 8 else []

    def before(manifest: dict[str, Any]) -> None:
        manifest["version"] = version
        nodes = [node for network in manifest["networks"] for node in network["nodes"]]
        for values in (manifest["config"], *nodes):
            for name in unknown:
                values.pop(name, None)

    edit(old, before)
    found, now = netlist.read_text(old), netlist.read_text(folder)
    assert found.manifest.networks == now.manifest.networks
    assert found.model.config == now.model.config and found.model.config.first_token is None
    assert found.model.config.digits == "binary"
    edit(old, _set("config", "first_token", value=3))
    refused(old, "does not fit")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\0\1", '{"format": "neurtx netlist"}'])
def test_manifest_that_is_none(folder: Path, copy_of: Copy, text: str) -> None:
    spoilt = copy_of(folder)
    (spoilt / "manifest.json").write_text(text)
    refused(spoilt, "manifest|version")


@pytest.mark.parametrize(
    ("dataset", "value", "message"),
    [
        ("layer/1/weight", np.full((256, 64), 3, np.int16), "odd"),
        ("layer/1/weight", np.full((256, 64), 2.0), "integers"),
        ("layer/1/weight", np.full((256, 63), 2, np.int16), r"shape|\(256, 63\)"),
        ("layer/1/weight", np.full((256, 64), 300, np.int16), "reach"),
        ("layer/1/bias", np.full(256, 5000, np.int16), "biases"),
        ("layer/1/bias", np.zeros(3, np.int16), "shape"),
        ("layer/1/neuron/vThMant", 0, "threshold"),
        ("layer/1/neuron/vDecay", 4096, "vDecay"),
        ("layer/1/neuron/type", np.bytes_("SDNN"), "type"),
        ("layer/1/type", None, "must be a group of"),
        ("layer/1/weight", None, "must be a group of"),
    ],
)
def test_netx_file_with_other_content(
    folder: Path, copy_of: Copy, dataset: str, value: Any, message: str
) -> None:
    spoilt = copy_of(folder)
    name = "netx/h.0.mlp.c_fc.net"
    with h5py.File(spoilt / name, "r+") as file:
        del file[dataset]
        if value is not None:
            file[dataset] = value
    sign_anew(spoilt, name)
    refused(spoilt, message)


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("chip.safetensors", "h.0.attn.qkv.theta", np.zeros(320, np.int32), "range"),
        ("chip.safetensors", "h.0.attn.ssa.shift", np.full(2, 99, np.int32), "range"),
        ("chip.safetensors", "h.0.attn.c_attn.bias", np.zeros(3, np.int32), "should be"),
        ("chip.safetensors", "head.encode.theta", np.ones(64, np.float32), "should be"),
        ("chip.safetensors", "unheard.of", np.zeros(1, np.int32), "not expected"),
    ],
)
def test_tensors_with_other_content(
    folder: Path, copy_of: Copy, file: str, name: str, value: np.ndarray, message: str
) -> None:
    spoilt = copy_of(folder)
    save_file({**load_file(spoilt / file), name: value}, spoilt / file)
    sign_anew(spoilt, file)
    refused(spoilt, message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("h.1.attn.race.width", np.zeros(2, np.int32), "range"),
        ("h.1.attn.race.gain", np.full(64, 255, np.int32), "range"),
        ("h.1.attn.race.gain", np.ones(2, np.int32), "should be"),
        ("h.0.attn.ssa.shift", np.ones(2, np.int32), "not expected"),
    ],
)
def test_tensors_of_a_race_with_other_content(
    tiny_race_netlist: Path, copy_of: Copy, name: str, value: np.ndarray, message: str
) -> None:
    spoilt, file = copy_of(tiny_race_netlist), "chip.safetensors"
    save_file({**load_file(spoilt / file), name: value}, spoilt / file)
    sign_anew(spoilt, file)
    refused(spoilt, message)


# --- commands ---


def neurtx(*arguments: str) -> int:
    from neurtx.main import neurtx as group

    return group.main(list(arguments), standalone_mode=False) or 0


def test_export_and_simulate_by_command(
    either_run: Path,
    copy_of: Copy,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where the last netlist is noted
    run, target = copy_of(either_run), tmp_path / "net"
    assert neurtx("export", str(run), "--target", "loihi2", "--out", str(target), "--json") == 0
    values = json.loads(capfd.readouterr().out)
    assert values["netlist"] == str(target) and values["weight_bits"] == 8
    assert values["files"] == sum(path.is_file() for path in target.rglob("*"))
    kind = read_json(run / "config.json")["attention"]
    assert values["synapses"] == SYNAPSES[kind] and values["neurons"] > 0
    assert 0.8 < values["ppl_ratio_to_spiking"] < 1.25
    assert read_json(run / "report.json")["integer"]["ppl_ratio"] == values["ppl_ratio"]

    shutil.rmtree(run)  # the netlist is complete without it
    arguments = (str(target), "--prompt", "of the", "--backend", "integer", "--json")
    assert neurtx("simulate", *arguments) == 0
    values = json.loads(capfd.readouterr().out)
    assert values["backend"] == "integer" and values["mismatches"] == 0
    assert values["tokens"] > 0 and values["steps"] > 0 and values["text"] and values["same_text"]


def test_a_tokenizer_may_have_all_tokens_of_the_model_and_no_more(
    whole: Path, original: netlist.TextNetlist
) -> None:
    most = max(original.tokenizer.get_vocab().values())
    assert len(netlist._tokenizer(whole, most + 1)) == most + 1
    with pytest.raises(UserError, match=f"does not fit the model's {most} tokens"):
        netlist._tokenizer(whole, most)


def test_nothing_is_left_of_a_failed_export(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(netlist, "save_file", full)
    with pytest.raises(OSError):
        neurtx("export", str(tiny_run), "--target", "loihi2", "--out", str(tmp_path / "net"))
    assert not list(tmp_path.iterdir())


def test_callers_mistakes(
    tiny_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = (
        ("export", str(tiny_run), "--target", "loihi2", "--out", str(folder)),
        ("export", str(tiny_run), "--target", "nir", "--spikes", "graded"),
        ("export", str(tmp_path), "--target", "loihi2"),
        ("simulate", str(tmp_path), "--prompt", "a"),
        ("simulate", str(folder), "--prompt", "", "--backend", "integer"),
        ("simulate", str(folder), "--prompt", "word " * 99, "--backend", "integer"),
    )
    for arguments in mistakes:
        with pytest.raises(UserError) as caught:
            neurtx(*arguments)
        assert "\n" not in str(caught.value)
        assert capsys.readouterr().out == ""


def test_lava_is_imported_only_when_needed() -> None:
    code = (
        "import sys, neurtransformer.loihi.netlist, neurtransformer.loihi.simulate;"
        "sys.exit('lava' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_a_netlist_needs_no_torch(whole: Path) -> None:
    """The integers are a specification of their own: NumPy is enough."""
    code = (
        "import sys; from pathlib import Path;"
        "from neurtransformer.loihi import netlist, place;"
        "netlist.read(Path(sys.argv[1]));"
        "print({'torch', 'spikingjelly', 'transformers', 'lava'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(whole)]
    assert subprocess.check_output(command, text=True).strip() == "set()"
