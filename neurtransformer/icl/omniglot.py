"""Omniglot: drawings from archives, N-way K-shot episodes and the official one-shot runs.

Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015) has 1,623 characters of 50 alphabets, each
drawn once by 20 people. An *episode* shows K drawings of each of N characters with their labels,
then one more drawing, the query, by someone else. Characters of an episode come from all alphabets
alike, as in Vinyals et al. (arXiv 1606.04080); those of an official run are all of one alphabet.

Drawings are held as ink, (28, 28) float32 in 0..1: what share of a field of the 105 x 105 pixels is
drawn on. Archives are read in memory and never unpacked to a disk.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from neurtransformer import hub
from neurtransformer.errors import UserError, shortened

Inks = NDArray[np.float32]
Indices = NDArray[np.int64]

PIXELS = 105
SIDE = 28

HELD_OUT = ("Early_Aramaic", "Sanskrit")
"""Alphabets of the background sets that training never sees."""

BACKGROUND = (
    "images_background_small1.zip",
    "images_background_small2.zip",
    "images_background.zip",
)
ARCHIVES = (*BACKGROUND, "images_evaluation.zip")
ARRAYS = "omniglot_small_105.npz"
RUNS = "all_runs.zip"
HUB = "dpdl-benchmark/omniglot"
"""A copy of TensorFlow's: image, alphabet and label; its split `test` is the evaluation set."""

MOST_MEMBERS = 50_000
MOST_BYTES = 100_000
"""Of one drawing in an archive; those of Omniglot have about 200."""

MOST_ARRAY_BYTES = 2**29


@dataclass(frozen=True)
class Drawings:
    """ink: (characters, drawers, 28, 28). alphabet: the name of each character's, (characters,)."""

    ink: Inks
    alphabet: NDArray[np.str_]

    @property
    def size(self) -> tuple[int, int]:
        """Characters and drawers."""
        return self.ink.shape[0], self.ink.shape[1]

    def of(self, alphabets: tuple[str, ...], *, others: bool = False) -> "Drawings":
        """The characters of these alphabets, or of all others."""
        chosen = np.isin(self.alphabet, alphabets) != others
        return Drawings(self.ink[chosen], self.alphabet[chosen])


@dataclass(frozen=True)
class Episodes:
    """Indices into the drawings, flat: character times drawers plus drawer.

    shots: the context in the order it is shown, (episodes, ways * shots). labels: 0..ways - 1, the
    same shape. query: (episodes,). answer: its label, (episodes,).
    """

    shots: Indices
    labels: Indices
    query: Indices
    answer: Indices
    ways: int

    @property
    def shots_each(self) -> int:
        """K."""
        return self.shots.shape[1] // self.ways

    def batches(self, size: int) -> Iterator["Episodes"]:
        """All episodes, at most `size` at a time."""
        for start in range(0, len(self.query), size):
            part = slice(start, start + size)
            yield Episodes(
                self.shots[part], self.labels[part], self.query[part], self.answer[part], self.ways
            )


def draw_episodes(
    characters: int, drawers: int, ways: int, shots: int, number: int, seed: int
) -> Episodes:
    """Episodes with labels and order drawn anew for each; the query is none of the shots.

    Raises UserError if there are not enough characters or drawers.
    """
    if characters < ways or drawers <= shots:
        raise UserError(
            f"{ways}-way {shots}-shot needs {ways} characters and {shots + 1} drawings of each: "
            f"here are {characters} and {drawers}"
        )
    rng = np.random.default_rng(seed)
    chosen = rng.random((number, characters)).argsort(-1)[:, :ways]
    people = rng.random((number, ways, drawers)).argsort(-1)[..., : shots + 1]
    flat = chosen[..., None] * drawers + people
    answer = rng.integers(0, ways, number)
    order = rng.random((number, ways * shots)).argsort(-1)
    labels = np.broadcast_to(np.repeat(np.arange(ways), shots), order.shape)
    return Episodes(
        np.take_along_axis(flat[..., :shots].reshape(number, -1), order, 1),
        np.take_along_axis(labels, order, 1),
        flat[np.arange(number), answer, shots],
        answer,
        ways,
    )


# --- files ---


def load_drawings(folder: Path, archives: tuple[str, ...] = ARCHIVES) -> Drawings:
    """The drawings of all these archives in a folder, or of `ARRAYS`.

    A character that two archives hold (all of Greek and Latin in the two small ones) counts once.
    Raises UserError if there is none, or one is not what it should be.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'")
    found: dict[tuple[str, str], dict[int, Inks]] = {}
    for path in (folder / name for name in archives):
        if path.exists():
            for alphabet, character, drawer, ink in _archive(path):
                found.setdefault((alphabet, character), {})[drawer] = ink
    if not found:
        if (folder / ARRAYS).exists():
            return _arrays(folder / ARRAYS)
        raise UserError(f"{folder} holds no Omniglot: put {archives[-1]} or {archives[0]} there")
    return _stacked(found, str(folder))


def _stacked(found: dict[tuple[str, str], dict[int, Inks]], where: str) -> Drawings:
    """By alphabet and character, and by drawer."""
    drawers = {tuple(sorted(drawn)) for drawn in found.values()}
    if len(drawers) > 1:
        raise UserError(f"{where}: some characters lack drawings, an archive may be damaged")
    names = sorted(found)
    ink = np.stack([[found[name][d] for d in min(drawers)] for name in names])
    return Drawings(ink, np.array([alphabet for alphabet, _ in names]))


def load_from_hub() -> Drawings:
    """The evaluation set's drawings from `HUB`. Raises UserError where it is not to be had."""
    wanted = f"give --data FOLDER with {ARCHIVES[-1]} (github.com/brendenlake/omniglot has it)"
    if not hub.reachable():
        raise UserError(f"no network to {hub.endpoint()} for Omniglot: {wanted}")
    import datasets

    try:
        rows = datasets.load_dataset(HUB, split="test")
        alphabets = rows.features["alphabet"].names
    except Exception as error:  # the library raises dozens of kinds
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"data set {HUB} is not to be had ({line}): {wanted}") from error
    found: dict[tuple[str, str], list[Inks]] = {}
    for row in rows:
        drawn = np.asarray(row["image"].convert("L")) < 128
        if drawn.shape != (PIXELS, PIXELS):
            raise UserError(f"data set {HUB} is not what it was: {wanted}")
        name = alphabets[row["alphabet"]], str(row["label"])
        found.setdefault(name, []).append(shrink(drawn[None])[0])
    return _stacked({name: dict(enumerate(inks)) for name, inks in found.items()}, HUB)


def load_runs(folder: Path) -> tuple[Inks, Episodes] | None:
    """The official one-shot runs as ink (drawings, 28, 28) and one episode for each of their
    queries, or None where `RUNS` is not in the folder. Raises UserError."""
    path = folder / RUNS
    if not path.exists():
        return None
    with _opened(path) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"run\d\d/\w+\.txt", name)]
        pairs = [line.split() for name in sorted(names) for line in _text(archive, name)]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{path} holds no official runs")
        files = sorted({name for pair in pairs for name in pair})
        ink = np.stack([shrink(_drawing(archive, name)[None])[0] for name in files])
    index = {name: i for i, name in enumerate(files)}
    classes = {
        run: sorted({shot for _, shot in pairs if shot.startswith(run)})
        for run in {shot.split("/")[0] for _, shot in pairs}
    }
    if any(query.split("/")[0] != shot.split("/")[0] for query, shot in pairs):
        raise UserError(f"{path} has a run whose answers are in another: fetch it again")
    if len({len(names) for names in classes.values()}) != 1:
        raise UserError(f"{path} has runs of different sizes: fetch it again")
    context = [classes[query.split("/")[0]] for query, _ in pairs]
    shots = np.array([[index[name] for name in names] for names in context])
    answer = np.array([names.index(shot) for (_, shot), names in zip(pairs, context, strict=True)])
    labels = np.tile(np.arange(shots.shape[1]), (len(shots), 1))
    query = np.array([index[query] for query, _ in pairs])
    return ink, Episodes(shots, labels, query, answer, shots.shape[1])


def shrink(drawn: NDArray) -> Inks:
    """Drawings (n, 105, 105), 1 or True where there is ink, to (n, 28, 28) shares of ink."""
    fields = torch.from_numpy(np.asarray(drawn, np.float32))
    return F.adaptive_avg_pool2d(fields[None], SIDE)[0].numpy()


_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)
"""What reading a member of a damaged archive raises."""


def _archive(path: Path) -> Iterator[tuple[str, str, int, Inks]]:
    """Alphabet, character, drawer and ink of drawings `folder/Greek/character01/0394_01.png`."""
    pattern = re.compile(r"[^/]+/([^/]+)/(character\d+)/\d+_(\d+)\.png")
    with _opened(path) as archive:
        parts = [part for name in archive.namelist() if (part := pattern.fullmatch(name))]
        for part in parts:
            ink = shrink(_drawing(archive, part[0])[None])[0]
            yield part[1], part[2], int(part[3]), ink


def _opened(path: Path) -> zipfile.ZipFile:
    if not path.is_file():  # a pipe would be waited for, and a device never ends
        raise UserError(f"{path} is no ordinary file: fetch it again")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        why = shortened(error)
        raise UserError(f"{path} is no zip archive ({why}): fetch it again") from None
    if len(archive.namelist()) > MOST_MEMBERS:
        archive.close()
        raise UserError(f"{path} has more than {MOST_MEMBERS:,} files: that is not Omniglot")
    return archive


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member that is no larger, unpacked, than any of Omniglot; what its header says of its size
    is not trusted."""
    try:
        with archive.open(name) as file:
            data = file.read(MOST_BYTES + 1)
    except (*_UNREADABLE, KeyError, RuntimeError, NotImplementedError) as error:
        why = shortened(error)
        raise UserError(f"{archive.filename}: {name} cannot be read ({why})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{archive.filename}: {name} is too large for a drawing")
    return data


def _text(archive: zipfile.ZipFile, name: str) -> list[str]:
    return _member(archive, name).decode("ascii", "replace").splitlines()


def _drawing(archive: zipfile.ZipFile, name: str) -> NDArray[np.bool_]:
    """A PNG of 105 x 105, black on white, as (105, 105), True where there is ink."""
    data = _member(archive, name)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size == (PIXELS, PIXELS):
                return np.asarray(image.convert("L")) < 128
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{archive.filename}: {name} is no PNG ({shortened(error)})") from None
    raise UserError(f"{archive.filename}: {name} is not {PIXELS} x {PIXELS} pixels")


def _arrays(path: Path) -> Drawings:
    """images: (characters, drawers, 105, 105) uint8, 1 = ink. alphabet: (characters,)."""
    with _opened(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MOST_ARRAY_BYTES:
            raise UserError(f"{path} is too large")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, alphabet = arrays["images"], arrays["alphabet"]
    except (*_UNREADABLE, KeyError, MemoryError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} cannot be read: {shortened(error)}") from None
    fits = images.ndim == 4 and images.size and images.shape[2:] == (PIXELS, PIXELS)
    fits = fits and images.dtype == np.uint8 and alphabet.shape == images.shape[:1]
    if not fits or images.max() > 1:
        raise UserError(f"{path}: images must be (characters, drawers, 105, 105) of 0 and 1")
    return Drawings(np.stack([shrink(drawn) for drawn in images]), np.asarray(alphabet, np.str_))
