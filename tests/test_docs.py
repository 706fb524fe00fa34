"""What README, docs and model cards tell people to type, and where they say that things are."""

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import neurtransformer
from neurtx.main import neurtx as group

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "neurtransformer"
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *LIBRARY.glob("models/*/README.md"),
    )
    # what was typed once may not be a command any more
    if path.name not in ("CHANGELOG.md", "LOG.md")
)

# --- finding commands ---

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(
    r"^ *```(?P<language>\w*)\n(?P<fenced>.*?)^ *```$|(?P<indented>^ {4}[^\n]*(?:\n+ {4}[^\n]*)*)",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`([^`]+)`")
# a command begins a line, or stands behind a prompt or what a shell has before it
_COMMAND = re.compile(
    r"(?:^|[;&|(] *|\$ |\bdo +)(?:\w+=\S+ +)*(neurtx(?: [^;&|#]*)?)(?: *$|[;&|#])"
)
# as in `neurtx eval [RUN]`
_OPTIONAL = re.compile(r"\[([A-Z_]+)\]")


class Typed(NamedTuple):
    """A command in a page. whole: it stands in a code block, where nothing may be missing."""

    page: str
    words: tuple[str, ...]
    whole: bool


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The blocks of code of a page, in its order, with their language; "" if they are indented.
    What a backslash at the end of a line continues is one line."""
    for match in _BLOCK.finditer(text):
        code = textwrap.dedent(match["fenced"] or match["indented"] or "")
        yield match["language"] or "", re.sub(r"\\\n\s*", " ", code)


def commands(page: str, text: str) -> Iterator[Typed]:
    """All commands `neurtx ...` of a page."""
    for _, block in blocks(text):
        for line in block.splitlines():
            for match in _COMMAND.finditer(line.strip()):
                yield Typed(page, _words(match.group(1)), True)
    for match in _INLINE.finditer(_BLOCK.sub("", text)):
        code = " ".join(match.group(1).split())
        if code == "neurtx" or code.startswith("neurtx "):
            yield Typed(page, _words(code), False)


def _words(line: str) -> tuple[str, ...]:
    line = _OPTIONAL.sub(r"\1", line).strip()
    if line.count("'") % 2:  # of what is around it, as in sbatch --wrap '...'
        line = line.removesuffix("'")
    return tuple(shlex.split(line)[1:])


FOUND = [
    typed
    for path in PAGES
    for typed in commands(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
]


def check(words: tuple[str, ...], *, whole: bool) -> None:
    """Parse a command as the command line does, without running it. Raises click's errors for one
    that is unknown, and for options, choices and numbers that are not taken."""
    if not words or words[0] == "COMMAND" or words[0].startswith("-"):
        return
    command: click.Command | None = group
    context = click.Context(group, info_name="neurtx")
    rest = list(words)
    while isinstance(command, click.Group):
        if not rest:
            assert not whole, f"`neurtx {' '.join(words)}` lacks a task"
            return
        name = rest.pop(0)
        command = command.get_command(context, name)
        if command is None:
            raise click.UsageError(f"No such command {name!r}")
    assert command is not None
    # it would take hold of standard output
    rest = [word for word in rest if word != "--json" or not _has_json(command)]
    try:
        command.make_context(words[0], rest, parent=context)
    except click.exceptions.Exit:
        pass  # --help
    except click.MissingParameter:
        if whole:
            raise


def _has_json(command: click.Command) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


@pytest.mark.parametrize(
    "typed", FOUND, ids=lambda typed: f"{typed.page}: {' '.join(typed.words)[:60]}"
)
def test_every_command_in_the_docs_is_one(typed: Typed, capsys: pytest.CaptureFixture) -> None:
    check(typed.words, whole=typed.whole)


def test_there_are_commands_in_the_docs() -> None:
    """A mistake in the patterns would make the test above pass with nothing to check."""
    assert len(FOUND) > 100
    assert len({typed.page for typed in FOUND}) > 10
    assert sum(typed.whole for typed in FOUND) > 30
    seen = {typed.words[0] for typed in FOUND if typed.words}
    assert seen >= set(group.list_commands(click.Context(group)))


@pytest.mark.parametrize(
    "line",
    [
        "neurtx covert gpt2-nano",
        "neurtx convert gpt2-nano --coding both",
        "neurtx convert gpt2-nano --time-steps 8",
        "neurtx export --target loihi3",
        "neurtx eval --limit many",
        "neurtx icl regression --ways 5",
        "neurtx convert",
        "neurtx simulate --tokens none",
    ],
)
def test_a_wrong_command_in_the_docs_is_noticed(line: str) -> None:
    page = f"Text.\n\n```console\n$ {line}   # a comment\n```\n"
    (typed,) = commands("page", page)
    with pytest.raises(click.UsageError):
        check(typed.words, whole=typed.whole)


def test_commands_are_found_wherever_they_stand() -> None:
    page = """Type `neurtx models`, or `neurtx convert
MODEL`, not `neurtransformer`.

    neurtx eval runs/mine \\
      --limit 64    # short
    for m in a b; do neurtx place $m --json; done

```sh
$ neurtx doctor && neurtx install
neurtx: an answer
```
"""
    found = [" ".join(typed.words) for typed in commands("page", page)]
    assert sorted(found) == sorted(
        [
            "models",
            "convert MODEL",
            "eval runs/mine --limit 64",
            "place $m --json",
            "doctor",
            "install",
        ]
    )


# --- README's first steps ---

START = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Start\n")[2]
START = START.partition("\n## ")[0]
STEPS = [match.group(1) for match in re.finditer(r"```console\n\$ (.*?)```", START, re.DOTALL)]


def run_steps(neurtx: Any, more: dict[str, list[str]]) -> None:
    """Run README's first steps, with more options for some, and look in what they print for every
    row that README shows."""
    assert len(STEPS) == 4
    for step in STEPS:
        line, *shown = step.strip().splitlines()
        words = shlex.split(line)[1:]
        done = neurtx(*words, *more.get(words[0], []))
        assert done.returncode == 0, done.stderr
        printed = [row.split("  ")[0] for row in map(str.strip, done.stdout.splitlines())]
        for row in shown:
            name = re.split(r"\s{2,}", row.strip())[0]
            assert name in printed, f"{line}: README shows {name}, the command prints {printed}"


def test_readme_first_steps_run(neurtx: Any, tmp_path: Path) -> None:
    """As README has them, but for shorter texts and without Lava."""
    config, text = tmp_path / "short.yaml", tmp_path / "text.txt"
    config.write_text("calibration: {tokens: 256, block: 128}\n")
    text.write_text("The neuron fires when its membrane reaches the threshold, and rests. " * 60)
    run_steps(
        neurtx,
        {
            "convert": ["--config", str(config), "--text", str(text)],
            "eval": ["--limit", "128", "--block", "128"],
            "export": ["--text", str(text)],
            "simulate": ["--backend", "integer"],
        },
    )


@pytest.mark.slow
@pytest.mark.usefixtures("lava")
def test_readme_first_steps_run_as_they_stand(neurtx: Any) -> None:
    run_steps(neurtx, {})


# --- where the docs say that things are ---


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [_anchor(heading) for heading in headings], f"{page.name}: {target}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_readme_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name


def test_readme_names_every_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    inside = [path.name for path in LIBRARY.iterdir() if path.is_dir()]
    for name in [*inside, "cli", "configs", "scripts", "tests", "docs", "neurtransformer"]:
        assert name.startswith("_") or re.search(rf"^ +{name}/ ", readme, re.MULTILINE), name


def test_python_page_names_every_public_function() -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    for name in neurtransformer.__all__:
        assert f"`{name}(" in page or f"neurtransformer.{name}" in page, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_the_docs_is_python(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for called in ast.walk(ast.parse(code)):
            if isinstance(called, ast.Call) and isinstance(called.func, ast.Attribute):
                of = called.func.value
                if isinstance(of, ast.Name) and of.id == "neurtransformer":
                    function = getattr(neurtransformer, called.func.attr)
                    names = {str(keyword.arg): None for keyword in called.keywords}
                    inspect.signature(function).bind(*called.args, **names)


# --- which package imports which ---

APART = ("generate", "nir_export")


def part(module: str) -> str:
    """The part of docs/architecture.md's table that a module of ours is of."""
    first = module.split(".")[1] if "." in module else "base"
    return first if first in APART or (LIBRARY / first).is_dir() else "base"


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "neurtransformer":
            yield from (f"neurtransformer.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_packages_import_what_the_docs_say() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = page.partition("| part | imports")[2].partition("\n\n")[0].splitlines()[2:]
    allowed = {}
    for row in rows:
        name, others, _ = (cell.strip() for cell in row.strip("|").split("|"))
        allowed[name] = set(re.findall(r"\w+", others))
    seen: dict[str, set[str]] = {name: set() for name in allowed}
    for file in LIBRARY.rglob("*.py"):
        ours = part(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if file == LIBRARY / "__init__.py":
            continue  # it hands on what api/ has
        if file.is_relative_to(LIBRARY / "models"):
            continue  # belongs to a run that ships
        for module in imported(file):
            assert not module.startswith(("neurtx", "cli")), file
            if module.split(".")[0] == "neurtransformer" and part(module) not in (ours, "base"):
                seen[ours].add(part(module))
    assert seen == allowed
    for at, name in enumerate(allowed):
        upward = allowed[name] & set(list(allowed)[at + 1 :])
        assert name == "base" or not upward, f"{name} imports {upward}, which stand above it"


def test_no_file_imports_itself_by_whatever_way_round() -> None:
    """By what is imported at the top of files; a function may import what it needs when called."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in LIBRARY.rglob("*.py")
    }
    # a package takes its own modules from itself
    arrows = {name: {*at_the_top(file)} & files.keys() - {name} for name, file in files.items()}
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in arrows[name]:
                follow(other, (*way, name))
            done.add(name)

    for name in files:
        follow(name, ())
    assert sum(map(len, arrows.values())) > 300


def at_the_top(file: Path) -> Iterator[str]:
    """The modules that a file imports when it is imported, submodules that it takes by name too."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            taken = [f"{node.module}.{alias.name}" for alias in node.names]
            package = (ROOT / Path(*node.module.split("."))).is_dir()
            yield from taken if package else []
            yield node.module


def test_the_version_to_cite_is_this_one() -> None:
    import yaml

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == neurtransformer.__version__
    assert f"({cited['date-released']})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
