"""Run and netlist folders, which `folders.py` makes: found again, their JSON read and written.

A *run* is what `save_pretrained` writes plus `report.json`; a *netlist* has a `manifest.json`.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from neurtransformer import hub, stop
from neurtransformer.errors import UserError, shortened
from neurtransformer.lock import locked
from neurtransformer.provenance import provenance_of, run_sha256

log = logging.getLogger(__name__)

Kind = Literal["run", "netlist", "nir"]

BUNDLED = Path(__file__).parent / "models"
"""What ships with the package: dense models, and runs, which are read and never written."""

HOME: dict[Kind, str] = {"run": "runs", "netlist": "netlists", "nir": "nir-graphs"}
MARKS: dict[Kind, tuple[str, ...]] = {
    "run": ("report.json", "config.json"),
    "netlist": ("manifest.json",),
    "nir": ("manifest.json",),
}
MAKER: dict[Kind, str] = {
    "run": "neurtx convert MODEL",
    "netlist": "neurtx export --target loihi2",
    "nir": "neurtx export --target nir",
}
HOME_VARIABLE = "NEURTX_HOME"
"""The environment variable that names the folder which `home` is."""

MAX_JSON = 2**26
"""Bytes of the largest JSON file that is read, far more than any of ours has."""

PLASTIC = "neurtx_plastic_transformer"
"""The model_type of a plastic transformer."""


# --- finding a folder ---


def is_one(kind: Kind, folder: Path) -> bool:
    """Whether `folder` looks like a run or a netlist."""
    return all((folder / mark).is_file() for mark in MARKS[kind])


def home() -> Path:
    """Where folders go that nobody names a place for: NEURTX_HOME, else the current folder."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(os.path.expanduser(named)).absolute() if named else Path.cwd()


def default_folder(kind: Kind, name: str) -> Path:
    """A free path for a folder made from `name` (a model name, a path): runs/gpt2-nano-spiking in
    `home`, runs/gpt2-nano-spiking-2 and so on."""
    stem = re.sub(r"[^\w.-]+", "-", Path(name).expanduser().resolve().name).strip("-.") or "model"
    if kind == "run":
        stem += "-spiking"
    first = home() / HOME[kind] / stem
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{stem}-{number}")
    return folder


def remember(kind: Kind, folder: Path) -> None:
    """Note `folder` as the last one made here, for `latest`."""
    # a convenience: a folder that cannot be written to must not fail work that is done
    with contextlib.suppress(OSError, UserError):
        note = _note(kind)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, f"{folder.resolve()}\n")


def latest(kind: Kind) -> Path:
    """The last run or netlist made in `home`, else the newest in its runs or netlists. Raises
    UserError if there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        noted = Path(_note(kind).read_text(errors="surrogateescape").rstrip("\n"))
        if is_one(kind, noted):
            return noted
    found = [path for path in (home() / HOME[kind]).glob("[!.]*") if is_one(kind, path)]
    if not found:
        names = ", ".join(bundled(kind))
        other = f"name one that ships: {names}" if names else "name the folder of one"
        raise UserError(f"there is no {kind} here yet: make one with `{MAKER[kind]}`, or {other}")
    return max(found, key=lambda path: path.stat().st_mtime)


def resolve(kind: Kind, given: str | None) -> Path:
    """The folder that a command's RUN or NETLIST means; None is the last one made here.

    The name of a run that ships with the package (`gpt2-nano-spiking`) always means that one. One's
    own of the same name is told apart by a path: `./gpt2-nano-spiking`, `runs/gpt2-nano-spiking`.
    Anything else is a path or, for a run, a repository on the hub, `owner/name`, where there is no
    folder `owner`.

    Raises UserError if there is no such folder or it is not of that kind.
    """
    if given is None:
        return latest(kind)
    if given in bundled(kind):
        _tell_apart(kind, given)
        return BUNDLED / given
    folder = Path(given).expanduser().resolve()
    if kind == "run" and not folder.exists() and _may_be_on_hub(given):
        return _from_hub(given)
    make = f"make a {kind} with `{MAKER[kind]}`"
    if not folder.is_dir():
        if other := not folder.exists() and _named(kind, given):
            raise UserError(other)
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        ships = ", or name one that ships (`neurtx models`)" if bundled(kind) else ""
        raise UserError(f"{folder} {what}: {make}{ships}")
    for mark in MARKS[kind]:
        # a model that was pushed to the hub without its report is a run too, for reading
        if not (folder / mark).is_file() and not (mark == "report.json" and hub.is_cached(folder)):
            raise UserError(
                _another(kind, folder, given)
                or f"{folder} is not a {kind} (no {mark} in it): {make}"
            )
    check_name(folder)
    return folder


_EXPORT = "{0} is a run: export it first with `neurtx export {0} --target loihi2`"
_CONVERT = "{0} is a dense model: convert it first with `neurtx convert {0}`"


def _named(kind: Kind, name: str) -> str | None:
    """What to say of the name of something that ships, but is not of this kind; None of another."""
    if name in bundled("run"):
        return _EXPORT.format(name)
    return _another(kind, BUNDLED / name, name) if re.fullmatch(r"[\w-]+", name) else None


def _another(kind: Kind, folder: Path, given: str) -> str | None:
    """What to say of a folder that holds something else than what was asked for; None if it is
    nothing that is known."""
    from neurtransformer.families import FAMILIES

    def said(file: str, key: str) -> str:
        try:
            return str(read_json(folder / file).get(key))
        except UserError:
            return ""

    if kind == "netlist" and is_one("run", folder):
        return _EXPORT.format(given)
    if said("manifest.json", "format") == "neurtx netlist":
        return f"{given} is a netlist: `neurtx simulate` runs it, and `neurtx place` places it"
    if said("config.json", "model_type") in FAMILIES:
        return _CONVERT.format(given)
    return None


def _tell_apart(kind: Kind, name: str) -> None:
    """Say so if there is a folder of one's own with the name of one that ships."""
    for path, typed in (
        (Path.cwd() / name, f"./{name}"),
        (home() / HOME[kind] / name, str(Path(os.path.relpath(home() / HOME[kind] / name)))),
    ):
        if path.exists():
            log.warning("%s is the %s that ships with neurtx; yours is %s", name, kind, typed)


def _may_be_on_hub(given: str) -> bool:
    owner, slash, _ = given.partition("/")
    return bool(slash) and hub.may_be_id(given) and not Path(owner).exists()


def _from_hub(repository: str) -> Path:
    """The run in a repository of the hub, from the local cache or fetched into it."""

    def check(config: Path) -> None:
        kind = read_json(config).get("model_type")
        if kind != PLASTIC and not str(kind).startswith("spiking_"):
            raise UserError(
                f"'{repository}' holds a {kind} model, not a run: "
                f"`neurtx convert {repository}` makes one of it"
            )

    found = hub.cached(repository)
    if found is not None and (found / "model.safetensors").is_file():
        check(found / "config.json")
        return found
    if not hub.reachable():
        raise UserError(
            f"{Path(repository).resolve()} does not exist, and there is no network to look for "
            f"'{repository}' on {hub.endpoint()}: make a run with `{MAKER['run']}`"
        )
    return hub.fetch(repository, check)


def check_name(folder: Path) -> None:
    """Raise UserError if the name of `folder` is not UTF-8."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{folder}: the name is not UTF-8, which the library of tokenizers needs: rename it"
        ) from None


def bundled(kind: Kind) -> list[str]:
    """Names of the folders of that kind that ship with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if is_one(kind, folder))


def is_read_only(folder: Path) -> bool:
    """Whether `folder` is read and never written: it ships with the package, or is the hub's."""
    return folder.parent == BUNDLED or hub.is_cached(folder)


def _note(kind: Kind) -> Path:
    return home() / ".neurtx" / f"last-{kind}"


def is_plastic(run: Path) -> bool:
    """Whether a run is a plastic transformer (icl/plastic.py), not a GPT-2."""
    return read_json(run / "config.json").get("model_type") == PLASTIC


# --- JSON files ---


def plain(value: Any) -> Any:
    """`value` with nothing in it but what JSON can hold: paths become strings, NumPy and torch
    scalars and arrays numbers and lists, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` (see `plain`) to `path`, keys in the order given; the old file stays until
    the new one is complete."""
    write_text(path, json.dumps(plain(values), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`; the old file stays until the new one is complete."""
    # names of files may be bytes that are no UTF-8: they come out as they were
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for `content`. Raises UserError if something that is no file stands at `path`."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no ordinary file: name another one")  # /dev/null, or a folder
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with stop.held():
        try:
            fresh.write_bytes(content)
            try:
                fresh.replace(path)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EBUSY):
                    raise
                shutil.copyfile(fresh, path)  # a file that is mounted is written in its place
        finally:
            fresh.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError if there is none."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a folder, not a JSON file")
        # whoever opens a pipe waits, and a device may never end
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JSON:
            raise UserError(f"{path} is no JSON file of at most {MAX_JSON} bytes")
        with path.open("rb") as file:
            values = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        why = shortened(error)
        raise UserError(f"{path} is not valid JSON ({why}): it may be cut short") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values


# --- the report of a run ---


def update_report(
    run: Path,
    section: str,
    values: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Set `values` in one section of the run's report.json; other keys and sections stay.

    provenance: what `provenance.stamp` says of values that were measured together. They replace
    the section, unless it is of the run's present weights and they are not.
    The report of a run that ships with the package, or came from the hub, stays as it is. One that
    is damaged or cannot be written is a warning: what was measured is still to be said.
    """
    if is_read_only(run):
        return
    try:
        read_json(run / "report.json")
    except UserError as error:
        log.warning("%s is not noted: %s", section, error)
        return
    with _opened_report(run, section) as report:
        old = report.get(section) or {}
        if provenance is None:
            report[section] = {**old, **values}
        elif _is_of_now(old, provenance, run):
            log.info("%s keeps the %s of its present weights, which are others", run, section)
        else:
            report[section] = {**values, "provenance": provenance}


def add_training(run: Path, values: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Make `values` the section `finetune` of report.json; the training that stood there becomes
    the last of `earlier_trainings`."""
    with _opened_report(run, "finetune") as report:
        last = report.get("finetune")
        # killed just after it was recorded, and then resumed: the same training
        again = provenance_of(last).get("weights_sha256") == provenance["weights_sha256"]
        if last and not again:
            report["earlier_trainings"] = [*(report.get("earlier_trainings") or []), last]
        report["finetune"] = {**values, "provenance": provenance}


def _is_of_now(old: Any, provenance: Mapping[str, Any], run: Path) -> bool:
    """Whether a section is of the run's present weights, and what would replace it is not."""
    before, after = (x.get("weights_sha256") for x in (provenance_of(old), provenance))
    if before is None or before == after:
        return False
    return before == run_sha256(run, read_json(run / "config.json"))


@contextlib.contextmanager
def _opened_report(run: Path, section: str) -> Iterator[dict[str, Any]]:
    with locked(run):
        path = run / "report.json"
        report = read_json(path)
        yield report
        try:
            write_json(path, report)
        except OSError as error:
            log.warning("%s is not noted in %s: %s", section, path, error.strerror)
