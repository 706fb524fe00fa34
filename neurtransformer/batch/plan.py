"""What is to be done for a batch: its entries, and the jobs that they are made of.

An *entry* is one model with one recipe, seed and text. A *job* is one step of it, known by the
SHA-256 of all that its result depends on: the options, the model, the recipe, the text, the job
before it and the versions of neurtx, torch and transformers. Entries that have all of that in
common share the job: a conversion knows neither seed nor text, a training no text, and a netlist
is the same whatever text its loss was measured on.

Files count by what is in them, models and data sets of the hub by their names. Where a step
computes does not count, so that a batch may move to another machine, except of a training.
"""

import fnmatch
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurtransformer import hub
from neurtransformer.batch.config import (
    CPYTHON,
    DEFAULT,
    STEPS,
    Config,
    RecipeOptions,
    Section,
    Step,
)
from neurtransformer.dense import ALIASES, KNOWN, check
from neurtransformer.errors import UserError
from neurtransformer.gguf_file import SUFFIX
from neurtransformer.hub import FILES
from neurtransformer.provenance import versions
from neurtransformer.recipe import MAX_YAML, Recipe, load_recipe
from neurtransformer.runs import MAX_JSON

_PROSE = {".txt", ".text", ".md"}
# options that name a file or, but for a chip, a data set
_SOURCES = ("text", "chip")
_PART = 2**20  # bytes


@dataclass(frozen=True)
class Source:
    """A model, text or recipe of the batch. given: what a command is given for it, if anything;
    identity: what its content or name comes to."""

    name: str
    given: str | None
    identity: Any


@dataclass(frozen=True, eq=False)
class Job:
    """One step. needs: the job whose run or netlist it reads. words: what its command is given
    beside that and a place for what it makes. recipe: that of the run."""

    step: Step
    label: str
    hash: str
    needs: "Job | None"
    words: tuple[str, ...]
    model: Source
    recipe: Recipe
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For people and folders, and no other job's."""
        return f"{self.step}-{self.label}-{self.hash[:12]}"


@dataclass(frozen=True)
class Entry:
    """One row of the results: what it stands for, and its jobs in order."""

    id: str
    model: str
    recipe: str
    seed: int
    text: str
    jobs: Mapping[Step, Job]


def planned(config: Config, path: Path, only: Sequence[str] = ()) -> list[Entry]:
    """The entries of the batch in the file at `path` that `only` names (see `chosen`), in the order
    in which they are worked on.

    Raises UserError for a file that is not there, a recipe that is none, a name given twice, or
    what fits nothing in `only`.
    """
    base = path.absolute().parent
    models = _named("models", ((_model(m.model, base), m.name) for m in config.models))
    texts = _named("texts", ((_text(t.text, base), t.name) for t in config.texts))
    recipes = _named("recipes", ((_recipe(r, base), r.name) for r in config.recipes))
    found = {
        ".".join((model.name, recipe.name, str(seed), text.name)): (model, recipe, seed, text)
        for model in models
        for recipe in recipes
        for seed in config.seeds
        for text in texts
    }
    # those that are left out lend no jobs to those that are not
    maker = _Maker(config, base)
    return [
        Entry(name, model.name, recipe.name, seed, text.name, maker.jobs(model, recipe, seed, text))
        for name in chosen(list(found), only)
        for model, recipe, seed, text in [found[name]]
    ]


def chosen(ids: Sequence[str], only: Sequence[str]) -> list[str]:
    """The ids that `only` names: by one, a pattern such as `gpt2-nano.*`, or as the third of ten
    parts of the plan, `3/10`; all if it is empty. Raises UserError for what fits nothing."""
    found: set[str] = set() if only else set(ids)
    for word in only:
        if part := re.fullmatch(r"(\d+)/(\d+)", word):
            number, parts = int(part[1]), int(part[2])
            if not 1 <= number <= parts:
                raise UserError(f"--only {word}: the parts are numbered from 1 to {parts}")
            begin, end = ((n * len(ids)) // parts for n in (number - 1, number))
            # of more parts than entries some have nothing to do, which is no mistake
            found.update(ids[begin:end])
            continue
        fitting = [each for each in ids if fnmatch.fnmatchcase(each, word)]
        if not fitting:
            raise UserError(f"--only {word} fits no entry: `--dry-run` lists them")
        found.update(fitting)
    return [each for each in ids if each in found]


def jobs_of(entries: Iterable[Entry]) -> list[Job]:
    """The jobs of some entries in order, each once and behind the one it needs."""
    return list(dict.fromkeys(job for entry in entries for job in entry.jobs.values()))


class _Maker:
    """Makes jobs, of which those with the same hash are one."""

    def __init__(self, config: Config, base: Path) -> None:
        self.config = config
        self.versions = versions()
        self.known: dict[str, Job] = {}
        self.given: dict[Step, dict[str, Any]] = {}
        self.identities: dict[Step, dict[str, Any]] = {}
        for step in config.steps:
            given = config.options(step)
            identity = dict(given)
            for key in _SOURCES:
                if key in given:
                    source = _text(given[key], base) if key == "text" else _file(given[key], base)
                    given[key], identity[key] = source.given, source.identity
            if step != "finetune":  # which adds up over its steps what devices round differently
                identity.pop("device", None)
            self.given[step], self.identities[step] = given, identity

    def jobs(self, model: Source, recipe: Source, seed: int, text: Source) -> dict[Step, Job]:
        made: dict[Step, Job] = {}
        loaded = Recipe.model_validate(recipe.identity)

        def make(step: Step, label: str, needs: Job | None, identity: Any, **given: Any) -> Job:
            options = {**self.given[step], **given}
            hashed = [step, self.identities[step], identity, self.versions]
            digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
            words = _words(options)
            job = Job(step, label, digest, needs, words, model, loaded, options)
            made[step] = self.known.setdefault(digest, job)
            return made[step]

        wanted = [step for step in STEPS if step in self.config.steps]
        label = f"{model.name}.{recipe.name}"
        identity = [model.identity, recipe.identity]
        run = make("convert", label, None, identity, **json.loads(recipe.given or "{}"))
        if "finetune" in wanted:
            label = f"{label}.{seed}"
            run = make("finetune", label, run, [run.hash, seed], seed=seed)
        # the weights of a netlist and the form of its spikes, and not the text beside them
        netlist = [run.hash, self.identities.get("export")]
        for step in wanted:
            if step in ("eval", "energy", "export"):
                on = f"{label}.{text.name}"
                make(step, on, run, [run.hash, text.identity], text=text.given)
            elif step in ("simulate", "place"):
                make(step, label, made["export"], netlist)
        return made


def _words(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not None
    )


# --- models, recipes and texts ---


def _named(what: str, found: Iterable[tuple[Source, str | None]]) -> list[Source]:
    """Sources under the names that they are given, else their own. Raises UserError for two of
    one name."""
    sources: dict[str, Source] = {}
    for source, given in found:
        name = given or _name(source.name)
        if name in sources:
            raise UserError(f"{what}: two have the name {name}: give each a `name` of its own")
        sources[name] = Source(name, source.given, source.identity)
    return list(sources.values())


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")[:60] or "unnamed"


def _model(given: str, base: Path) -> Source:
    place = base / os.path.expanduser(given)
    if given not in KNOWN and place.is_dir():
        files = sorted({file for pattern in FILES for file in place.glob(pattern)})
        digest = _sha256 if _is_whole(place) else _size  # its conversion will say why
        identity = {file.name: digest(file) for file in files if file.is_file()}
        return Source(place.resolve().name, str(place.resolve()), identity)
    if given not in KNOWN and place.is_file() and place.suffix == SUFFIX:
        return Source(place.stem, str(place.resolve()), _sha256(place))
    name = ALIASES.get(given, given)
    # without a slash the hub has only those that have a short name here
    if name not in KNOWN and not ("/" in name and hub.may_be_id(name)):
        raise UserError(f"models: no model folder at {place}; `neurtx models` lists the names")
    return Source(name.rpartition("/")[2], name, name)


def _text(given: str, base: Path) -> Source:
    if given == CPYTHON:
        return Source(CPYTHON, None, None)
    place = base / os.path.expanduser(given)
    if place.is_file():
        return Source(place.stem, str(place.resolve()), _sha256(place, text=True))
    if place.suffix in _PROSE or not hub.may_be_id(given.partition(":")[0]):
        raise UserError(f"there is no text file {place}")
    return Source(given.rpartition("/")[2], given, given)


def _file(given: str, base: Path) -> Source:
    place = base / os.path.expanduser(given)
    if not place.is_file():
        raise UserError(f"there is no file {place}")
    if place.stat().st_size > MAX_YAML:
        raise UserError(f"{place} has more than {MAX_YAML:,} bytes: it is no file of settings")
    return Source(place.stem, str(place.resolve()), _sha256(place))


def _recipe(options: RecipeOptions, base: Path) -> Source:
    """`given` holds the options of `neurtx convert` as JSON."""
    given = _without_name(options)
    file = None
    if given.get("config") == DEFAULT:
        del given["config"]
    elif "config" in given:
        file = Path(str(_file(given["config"], base).given))
        given["config"] = str(file)
    recipe = load_recipe(
        file, options.timesteps, attention=options.attention, coding=options.coding
    )
    parts = [file.stem] if file else []
    parts += [str(value) for key, value in given.items() if key != "config"]
    return Source("-".join(parts) or DEFAULT, json.dumps(given), recipe.model_dump())


def _without_name(options: Section) -> dict[str, Any]:
    return options.model_dump(exclude_none=True, exclude={"name"})


def _is_whole(folder: Path) -> bool:
    """Whether a model's folder passes the checks of its conversion: files of one that does not may
    say that they are of any size."""
    try:
        check(folder)
    except UserError:
        return False
    return all(_size(file) <= MAX_JSON for file in folder.glob("*.json") if file.is_file())


def _size(file: Path) -> int:
    return file.stat().st_size


def _sha256(file: Path, *, text: bool = False) -> str:
    """Raises UserError for a file that cannot be read; with `text`, for one that holds none too."""
    try:
        status = file.stat()
        return _sha256_of(file, text, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


@functools.lru_cache
def _sha256_of(file: Path, text: bool, _size: int, _changed: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(_PART):
            if text and b"\0" in part:  # of a file with a hole there may be terabytes
                raise UserError(f"{file} is not text (it holds NUL bytes)")
            digest.update(part)
    return digest.hexdigest()
