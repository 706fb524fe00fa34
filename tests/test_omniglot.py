"""Omniglot in context: archives, episodes, and the forms of the plastic transformer."""

import copy
import importlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from neurtransformer import hub
from neurtransformer.errors import UserError
from neurtransformer.icl import evaluate, omniglot, plastic
from neurtransformer.icl.omniglot import PIXELS, Drawings, Episodes, draw_episodes
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.integer.plastic import KEY_MOST, WEIGHT_MOST, IntegerPlasticTransformer

CORPUS = Path(__file__).parents[2] / "shared" / "corpus" / "omniglot"
DRAWERS = 4
T = plastic.CONFIG.timesteps


@pytest.fixture(scope="module")
def real() -> Drawings:
    """The characters of the alphabets that training never saw."""
    if not CORPUS.is_dir():
        pytest.skip("no Omniglot in ../shared/corpus/omniglot")
    return omniglot.load_drawings(CORPUS).of(omniglot.HELD_OUT)


def strokes(seed: int) -> np.ndarray:
    """A drawing of three lines, (105, 105) bool; seeds 10 n to 10 n + 9 differ a little."""
    of_character = np.random.default_rng(seed // 10).integers(15, 90, (3, 4))
    ends = of_character + np.random.default_rng(seed).integers(-4, 5, (3, 4))
    drawn = np.zeros((PIXELS, PIXELS), dtype=bool)
    for x0, y0, x1, y1 in ends:
        t = np.linspace(0, 1, 200)
        x, y = (np.rint(a + (b - a) * t).astype(int) for a, b in ((x0, x1), (y0, y1)))
        for dx, dy in np.ndindex(3, 3):
            drawn[y + dy, x + dx] = True
    return drawn


def png(drawn: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(~drawn).save(file, "PNG")
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)


def alphabet(name: str, characters: int, first: int = 0) -> dict[str, bytes]:
    return {
        f"images_evaluation/{name}/character{c + 1:02}/{c:04}_{d + 1:02}.png": png(
            strokes(10 * (first + c) + d)
        )
        for c in range(characters)
        for d in range(DRAWERS)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation archive of one alphabet, one that training saw, and two runs of 3 classes."""
    path = tmp_path_factory.mktemp("omniglot")
    members = {**alphabet("Made_up", 8), **alphabet("Greek", 2, 50)}
    archive(path / "images_evaluation.zip", {"images_evaluation/": b"", **members})
    runs: dict[str, bytes] = {}
    for run in ("run01", "run02"):
        lines = []
        for i in range(3):
            runs[f"{run}/training/class{i + 1:02}.png"] = png(strokes(10 * i))
            runs[f"{run}/test/item{i + 1:02}.png"] = png(strokes(10 * ((i + 1) % 3) + 1))
            label = (i + 1) % 3 + 1
            lines.append(f"{run}/test/item{i + 1:02}.png {run}/training/class{label:02}.png")
        runs[f"{run}/class_labels.txt"] = "\n".join(lines).encode()
    archive(path / "all_runs.zip", runs)
    return path


@pytest.fixture(scope="module")
def encoders() -> plastic.Encoders:
    return plastic.load()[0]


@pytest.fixture(scope="module")
def model(encoders: plastic.Encoders) -> IntegerPlasticTransformer:
    return plastic.quantised(encoders["float"])


@pytest.fixture(scope="module")
def episodes(folder: Path, model: IntegerPlasticTransformer) -> tuple[np.ndarray, Episodes]:
    """Key counts of the made-up drawings, and 40 episodes of 4 ways and 2 shots."""
    ink = omniglot.load_drawings(folder).ink
    counts = plastic.key_counts(model, plastic.ink_counts(ink.reshape(-1, 28, 28), T))
    return counts, draw_episodes(len(ink), DRAWERS, 4, 2, 40, 0)


# --- drawings and episodes ---


def test_drawings_come_from_archives(folder: Path) -> None:
    drawings = omniglot.load_drawings(folder)
    assert drawings.ink.shape == (10, DRAWERS, 28, 28) and drawings.ink.dtype == np.float32
    assert sorted(set(drawings.alphabet)) == ["Greek", "Made_up"]
    assert drawings.ink.min() == 0 and 0.5 < drawings.ink.max() <= 1
    # sorted by alphabet, so Greek comes first
    assert np.allclose(drawings.ink[2, 1], omniglot.shrink(strokes(1)[None])[0])
    assert drawings.of(("Greek",), others=True).size == (8, DRAWERS)


def test_arrays_and_archives_hold_the_same(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(folder / "images_evaluation.zip") as file:
        names = sorted(name for name in file.namelist() if name.endswith(".png"))
        images = [~np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names]
    array = np.array(images, np.uint8).reshape(10, DRAWERS, PIXELS, PIXELS)
    labels = np.array(["Greek"] * 2 + ["Made_up"] * 8)
    np.savez_compressed(tmp_path / omniglot.ARRAYS, images=array, alphabet=labels)
    ours, theirs = (omniglot.load_drawings(path) for path in (folder, tmp_path))
    assert np.array_equal(ours.ink, theirs.ink) and np.array_equal(ours.alphabet, theirs.alphabet)


def test_official_runs(folder: Path) -> None:
    found = omniglot.load_runs(folder)
    assert found is not None
    ink, runs = found
    assert len(ink) == 12 and runs.ways == 3 and runs.shots_each == 1
    assert runs.answer.tolist() == [1, 2, 0] * 2
    for query, context, answer in zip(runs.query, runs.shots, runs.answer, strict=True):
        distance = ((ink[context] - ink[query]) ** 2).sum((1, 2))
        assert distance.argmin() == answer


GOOD = "a/Made_up/character01/0001_01.png"


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("other.zip", {}, "holds no Omniglot"),
        ("images_evaluation.zip", {"../a/b/character01/1_01.png": b""}, "holds no Omniglot"),
        ("images_evaluation.zip", {GOOD: b"no picture"}, "is no PNG"),
        ("images_evaluation.zip", {GOOD: png(np.zeros((9, 9), bool))}, "not 105 x 105"),
        ("images_evaluation.zip", {GOOD: bytes(10**6)}, "too large"),
        ("omniglot_small_105.npz", {"images.npy": b"1"}, "cannot be read"),
    ],
)
def test_what_is_no_omniglot_is_refused(
    tmp_path: Path, name: str, members: dict[str, bytes], message: str
) -> None:
    archive(tmp_path / name, members)
    with pytest.raises(UserError, match=message):
        omniglot.load_drawings(tmp_path)


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images_evaluation.zip").write_text("no zip")
    with pytest.raises(UserError, match="no zip archive"):
        omniglot.load_drawings(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        omniglot.load_drawings(tmp_path / "missing")
    for characters, drawers in ((4, 20), (5, 1)):  # the query is one more drawing
        with pytest.raises(UserError, match="needs 5 characters"):
            draw_episodes(characters, drawers, 5, 1, 1, 0)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(UserError, match="--data FOLDER"):
        omniglot.load_from_hub()


def test_the_hubs_rows_become_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Rows(list):
        features = {"alphabet": type("Names", (), {"names": ["Alpha", "Beta"]})}  # noqa: RUF012

    rows = Rows(
        {"image": Image.fromarray(~strokes(10 * c + d)), "alphabet": c // 2, "label": c}
        for d in range(3)
        for c in range(4)
    )
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    drawings = omniglot.load_from_hub()
    assert drawings.alphabet.tolist() == ["Alpha", "Alpha", "Beta", "Beta"]
    assert np.allclose(drawings.ink[3, 2], omniglot.shrink(strokes(32)[None])[0])


def test_episodes_are_what_they_say() -> None:
    drawn = draw_episodes(9, 6, 5, 3, 200, 0)
    assert drawn.shots.shape == drawn.labels.shape == (200, 15) and drawn.shots_each == 3
    for shots, labels, query, answer in zip(
        drawn.shots, drawn.labels, drawn.query, drawn.answer, strict=True
    ):
        assert query not in shots and len(set(shots.tolist())) == 15
        for label in range(5):
            assert len({shot // 6 for shot in shots[labels == label]}) == 1
        assert {query // 6} == {shot // 6 for shot in shots[labels == answer]}
    # neither place nor label gives the answer away
    assert np.bincount(drawn.answer, minlength=5).min() > 20
    assert not np.array_equal(drawn.labels[0], drawn.labels[1])
    parts = list(drawn.batches(150))
    assert [len(part.query) for part in parts] == [150, 50]
    assert np.array_equal(np.concatenate([part.shots for part in parts]), drawn.shots)


# --- the network ---


def test_the_query_shows_no_label(
    model: IntegerPlasticTransformer, episodes: tuple[np.ndarray, Episodes]
) -> None:
    counts, drawn = episodes
    drawings, labels = plastic.tokens(drawn)
    assert drawings.shape == labels.shape == (40, 9)
    assert (labels[:, -1] == -1).all() and np.array_equal(labels[:, :-1], drawn.labels)
    assert np.array_equal(drawings[:, -1], drawn.query)
    # and what its label is changes no read
    other = Episodes(drawn.shots, drawn.labels, drawn.query, (drawn.answer + 1) % 4, 4)
    for read in (
        lambda x: plastic.integer_reads(model, counts, x, LIMIT),
        lambda x: plastic.integer_reads(model, counts, x),
    ):
        assert np.array_equal(read(drawn), read(other))


def test_reads_are_sums_over_the_shots(
    encoders: plastic.Encoders,
    model: IntegerPlasticTransformer,
    episodes: tuple[np.ndarray, Episodes],
) -> None:
    """Each form against the sum of ``q.k`` over the shots of a label, written out."""
    counts, drawn = episodes
    expected = np.zeros((40, 4))
    for i in range(40):
        for shot, label in zip(drawn.shots[i], drawn.labels[i], strict=True):
            expected[i, label] += (counts[shot] * counts[drawn.query[i]]).sum()
    # two shots cannot saturate a weight
    for most in (WEIGHT_MOST, LIMIT):
        reads = plastic.integer_reads(model, counts, drawn, most)
        assert np.array_equal(reads, 2 * expected)
    keys = torch.from_numpy(counts).float() / KEY_MOST
    theirs = plastic.float_reads(encoders["float"], keys, drawn).numpy()
    gain = encoders["float"].gain.exp().item()
    assert np.allclose(theirs / gain, expected / KEY_MOST**2 / 2, rtol=1e-3)


@pytest.mark.usefixtures("lava")
def test_lava_is_the_integer_model(
    folder: Path, encoders: plastic.Encoders, episodes: tuple[np.ndarray, Episodes]
) -> None:
    """All of the trained network, from a drawing to the logits."""
    ink = omniglot.load_drawings(folder).ink.reshape(-1, 28, 28)
    found = evaluate.Evaluation(encoders, ink, 4).in_lava(episodes[1], 1)
    assert found is not None and found["compared"] > 10**6 and found["mismatches"] == 0


def test_integer_counts_are_the_encoders(
    folder: Path, encoders: plastic.Encoders, episodes: tuple[np.ndarray, Episodes]
) -> None:
    """8-bit weights, 17 levels of a hidden neuron and the norm's table move keys by 2 % or so."""
    ink = omniglot.load_drawings(folder).ink.reshape(-1, 28, 28)
    theirs = plastic.keys(encoders["float"], ink).numpy() * KEY_MOST
    # from (channel, row, column) to Lava's line of neurons
    theirs = theirs.reshape(-1, 64, 2, 2).transpose(0, 3, 2, 1).reshape(len(ink), -1)
    assert np.abs(episodes[0] - theirs).mean() < 0.02 * KEY_MOST


def test_more_ways_than_it_was_trained_for(encoders: plastic.Encoders) -> None:
    assert plastic.quantised(encoders["float"], 30).config.ways == 30
    assert plastic.quantised(encoders["float"], 3).config.ways == plastic.CONFIG.ways


def test_nothing_but_the_plastic_weights_changes(
    folder: Path,
    encoders: plastic.Encoders,
    model: IntegerPlasticTransformer,
    episodes: tuple[np.ndarray, Episodes],
) -> None:
    """Evaluating changes no tensor, and an episode reads the same whatever came before it."""
    counts, drawn = episodes
    ink = omniglot.load_drawings(folder).ink.reshape(-1, 28, 28)
    evaluation = evaluate.Evaluation(encoders, ink, 4)

    def everything() -> list[np.ndarray]:
        tensors = [t.numpy().copy() for e in encoders.values() for t in e.state_dict().values()]
        return [*tensors, *(x.copy() for x in evaluation.model.tensors.values())]

    before, counted = everything(), evaluation.counts.copy()
    stored = load_file(plastic.SHIPPED / "model.safetensors")
    first = evaluation.measure(drawn)
    assert all(map(np.array_equal, before, everything()))
    assert np.array_equal(counted, evaluation.counts)
    again = load_file(plastic.SHIPPED / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    assert evaluation.measure(drawn) == first
    alone = [plastic.integer_reads(model, counts, one)[0] for one in drawn.batches(1)]
    assert np.array_equal(np.stack(alone), plastic.integer_reads(model, counts, drawn))
    for encoder in encoders.values():
        assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


# --- what ships ---


def test_it_learns_unseen_characters_in_context(real: Drawings, encoders: plastic.Encoders) -> None:
    evaluation = evaluate.Evaluation(encoders, real.ink.reshape(-1, 28, 28), 5)
    found = evaluation.measure(draw_episodes(*real.size, 5, 1, 500, 1))["accuracy"]
    assert found["float"] > 0.7 > 0.5 > found["nearest_pixel"]
    assert abs(found["float"] - found["quantised"]) < 0.05
    assert abs(found["lava"] - found["quantised"]) < 0.02


def test_by_command(folder: Path, capfd: pytest.CaptureFixture) -> None:
    from neurtx.main import neurtx

    arguments = ["icl", "omniglot", "--data", str(folder), "--episodes", "30", "--json"]
    assert not neurtx.main([*arguments, "--ways", "4", "--shots", "2"], standalone_mode=False)
    values = json.loads(capfd.readouterr().out)
    assert values["ways"] == 4 and values["shots"] == 2 and values["alphabets"] == ["Made_up"]
    forms = {"float", "quantised", "lava", "softmax", "nearest_pixel", "linear_readout"}
    assert set(values["accuracy"]) == set(values["interval"]) == forms
    # three thick lines are told apart by everything
    assert all(share > 0.8 for share in values["accuracy"].values()), values["accuracy"]
    assert values["official_runs"]["episodes"] == 6
    assert values["run"] == str(plastic.SHIPPED)
    with pytest.raises(UserError, match="5-way 5-shot needs"):
        neurtx.main(arguments, standalone_mode=False)


def test_a_training_becomes_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neurtx: Callable[..., Any]
) -> None:
    """The script trains on background alphabets alone, and `icl` leaves out what it saw."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    script = importlib.import_module("train_omniglot")
    monkeypatch.setattr(script, "WAYS", 6)
    monkeypatch.setattr(script, "QUERIES", 2)
    data = tmp_path / "data"
    data.mkdir()
    members = {**alphabet("Made_up", 4), **alphabet("Sanskrit", 2, 40)}
    archive(data / "images_background.zip", members)
    shutil.copy(folder / "images_evaluation.zip", data)
    made = CliRunner().invoke(script.main, [str(data), str(tmp_path / "run"), "--steps", "2"])
    assert made.exit_code == 0, made.output
    encoders, trained_on = plastic.load(tmp_path / "run")
    assert trained_on == ("Made_up",) and set(encoders) == set(plastic.NAMES)
    report = json.loads((tmp_path / "run" / "report.json").read_text())["training"]
    assert report["characters"] == 4 and report["steps"] == 2 and report["losses"]["float"] > 0
    arguments = ["--data", str(data), "--ways", "3", "--shots", "1", "--episodes", "5", "--json"]
    values = json.loads(neurtx("icl", "omniglot", str(tmp_path / "run"), *arguments).stdout)
    assert values["alphabets"] == ["Greek", "Sanskrit"] and values["characters"] == 4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda x: x.replace(b"neurtx_plastic", b"other"), "no plastic transformer"),
        ("config.json", lambda x: x.replace(b'"side": 28', b'"side": "28"'), "config.json"),
        ("config.json", lambda x: x.replace(b'"side": 28', b'"side": 29'), "sides of 28"),
        ("config.json", lambda x: x.replace(b'"kernel": 5', b'"kernel": 7'), "does not fit"),
        ("config.json", lambda x: x.replace(b'"Korean"', b"3"), "names of alphabets"),
        ("config.json", lambda x: x.replace(b'"outputs": 32', b'"outputs": 16'), "do not follow"),
        ("model.safetensors", lambda x: x[:-10], "model.safetensors"),
        ("model.safetensors", lambda x: x[:-2] + b"\x00\x7e", "NaN"),
    ],
)
def test_a_damaged_run_is_refused(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    for part in ("config.json", "model.safetensors"):
        data = (plastic.SHIPPED / part).read_bytes()
        changed = change(data) if part == name else data
        assert part != name or changed != data
        (tmp_path / part).write_bytes(changed)
    with pytest.raises(UserError, match=message):
        plastic.load(tmp_path)


def test_weights_that_are_no_integers(encoders: plastic.Encoders) -> None:
    """A bias that no membrane of 24 bits holds."""
    large = copy.deepcopy(encoders["float"])
    bias = large.get_parameter("norms.1.bias")
    bias.data[3] = 1e6
    with pytest.raises(UserError, match="out of range"):
        plastic.quantised(large)


def test_saved_is_loaded(tmp_path: Path, encoders: plastic.Encoders) -> None:
    plastic.save(tmp_path, encoders, ("Alpha",))
    found, trained_on = plastic.load(tmp_path)
    assert trained_on == ("Alpha",)
    for name, encoder in encoders.items():
        for key, tensor in encoder.state_dict().items():
            assert torch.equal(found[name].state_dict()[key], tensor), key
