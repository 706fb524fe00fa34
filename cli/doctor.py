"""`neurtx doctor`: what is installed, what is missing, and what to type.

It must work where nothing else does, so it imports no package that may be broken: each import it
wants to see happens in a process of its own.
"""

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from .install import PINS, version
from .options import reporting
from .output import answer, is_silent

_FREE_GB = 2.0
_REINSTALL = "pip install --force-reinstall --no-deps "
# PyPI's torch for Linux brings gigabytes of CUDA; with this option pip takes the build for CPUs
_CPU_BUILDS = "--extra-index-url https://download.pytorch.org/whl/cpu "


def _bounded(name: str) -> str:
    """A package with the versions of it that neurtransformer takes, for pip."""
    try:
        named = importlib.metadata.requires("neurtransformer") or []
    except importlib.metadata.PackageNotFoundError:
        named = []
    fits = (line for line in named if re.match(rf"{name}\b(?!-)", line))
    return f"'{next(fits, name).partition(';')[0].strip()}'"


# what to see work -> the code that shows it, and what to type when it does not
_PROBES = {
    "transformers works": (
        "from transformers import GPT2LMHeadModel",
        f"{_REINSTALL}{_bounded('transformers')}",
    ),
    "datasets works": (
        "import datasets",
        _REINSTALL + " ".join(map(_bounded, ("datasets", "pyarrow"))),
    ),
    "spikingjelly works": (
        "from spikingjelly.activation_based import neuron",
        "pip uninstall -y spikingjelly; neurtx install spikingjelly",
    ),
    "lava netx works": (
        """
import contextlib
with contextlib.suppress(ModuleNotFoundError):
    import neurtransformer.loihi.lava_compat
from lava.lib.dl.netx import hdf5
""",
        "pip uninstall -y lava-nc lava-dl; neurtx install lava",
    ),
    "torch works": (
        "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')",
        f"{_REINSTALL}{_CPU_BUILDS}{_bounded('torch')}",
    ),
}


# what `neurtx install` fetches -> the probe that shows that it works, and what needs it
_INSTALLED = {
    "spikingjelly": ("spikingjelly works", "eval --mode steps"),
    "lava": ("lava netx works", "simulate --backend lava, and Lava's part of icl"),
}


@dataclass
class Check:
    """One thing looked at; `fix` is what to type when it is not `ok`. needed_for: the commands that
    need it, None if all or most do."""

    name: str
    wanted: str
    found: str | None
    ok: bool
    fix: str | None = None
    needed_for: str | None = None


@click.command()
@reporting
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what is installed, what is missing, and what to type.

    The exit code is 0 if all is well, and else 1. With `--quiet` it lists only what is missing.
    """
    # side by side, for each import takes seconds
    pinned = _pinned()
    absent = {
        _INSTALLED[name][0]
        for name, packages in PINS.items()
        if any(version(package) is None for package in packages)
    }
    probes = {name: _start(code) for name, (code, _) in _PROBES.items() if name not in absent}
    checks = [_system(), _python(), *_dependencies(), *pinned, _model(), _compiled(), _disk()]
    checks += [_finish(name, process) for name, process in probes.items()]
    device = next((c.found for c in checks if c.name == "torch works" and c.ok), None)
    ok = all(check.ok for check in checks)
    if as_json:
        found = [asdict(check) for check in checks]
        answer({"ok": ok, "device": device, "checks": found}, as_json=True)
    else:
        # in plain lines, for the library that draws tables may be the one that is missing
        for check in checks:
            if not (check.ok and is_silent()):
                click.echo(_told(check))
    ctx.exit(0 if ok else 1)


def _told(check: Check) -> str:
    line = f"{'ok' if check.ok else '!!'}  {check.name:<18} {check.found or 'missing'}"
    if check.ok:
        return line
    only = f", only for {check.needed_for}" if check.needed_for else ""
    return f"{line} (wanted: {check.wanted}{only}); type: {check.fix}"


def _system() -> Check:
    ok = sys.platform.startswith(("linux", "darwin"))
    fix = None if ok else "nothing that helps here: neurtx runs on Linux and macOS"
    return Check("system", "Linux or macOS", platform.system(), ok, fix)


def _python() -> Check:
    ok = (3, 11) <= sys.version_info < (3, 13)
    fix = None if ok else "python3.11 -m venv .venv, and install neurtx there"
    return Check("python", ">=3.11,<3.13", platform.python_version(), ok, fix)


def _dependencies() -> list[Check]:
    try:
        from packaging.requirements import Requirement

        named = importlib.metadata.requires("neurtransformer") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("neurtransformer", "installed", None, False, "pip install neurtransformer")]
    except ImportError:
        return [Check("packaging", "installed", None, False, "pip install packaging")]
    checks = []
    for requirement in map(Requirement, named):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = version(requirement.name)
        ok = found is not None and requirement.specifier.contains(found, prereleases=True)
        index = _CPU_BUILDS if requirement.name == "torch" else ""
        fix = None if ok else f"pip install {index}'{requirement.name}{requirement.specifier}'"
        wanted = str(requirement.specifier) or "any"
        checks.append(Check(requirement.name, wanted, found, ok, fix))
    return checks


def _pinned() -> list[Check]:
    checks = []
    for name, packages in PINS.items():
        for package, pin in packages.items():
            found = version(package)
            ok = found == pin
            fix = None if ok else f"neurtx install {name}"
            checks.append(Check(package, f"=={pin}", found, ok, fix, _INSTALLED[name][1]))
    return checks


def _model() -> Check:
    # finding a package does not run it
    spec = importlib.util.find_spec("neurtransformer")
    found = False
    if spec is not None and spec.origin is not None:
        found = (
            Path(spec.origin).with_name("models").joinpath("gpt2-nano/model.safetensors").is_file()
        )
    fix = None if found else "git checkout neurtransformer/models (or install the wheel again)"
    return Check("gpt2-nano", "bundled model", "there" if found else None, found, fix)


def _compiled() -> Check:
    """Whether fused.c was compiled; all works without it."""
    spec = importlib.util.find_spec("neurtransformer")
    there = (
        spec is not None
        and spec.origin is not None
        and any(Path(spec.origin).parent.glob("spiking/_fused.*"))
    )
    found = "yes" if there else "no, so generating text is slower; pip needs a C compiler for it"
    return Check("compiled code", "yes", found, True)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    ok = free >= _FREE_GB
    fix = None if ok else "cd to a disk with more room"
    return Check("disk", f">={_FREE_GB:g} GB free here", f"{free:.1f} GB", ok, fix)


def _start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(name: str, process: subprocess.Popen[str]) -> Check:
    """The outcome of a probe; `found` is what it printed, or the last line of its complaint."""
    try:
        printed, complaint = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        printed, complaint = "", "no answer within 120 s"
    if process.returncode == 0:
        return Check(name, "yes", printed.strip() or "yes", True)
    needed_for = next((use for probe, use in _INSTALLED.values() if probe == name), None)
    reason = next((line for line in reversed(complaint.splitlines()) if line.strip()), "killed")
    # the registry's torchvision is a CUDA build: beside a CPU torch it breaks transformers
    fix = "pip uninstall -y torchvision" if "torchvision" in complaint else _PROBES[name][1]
    return Check(name, "yes", reason[:100], False, fix, needed_for)
