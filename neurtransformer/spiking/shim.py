"""The file in a run that lets transformers load it with `trust_remote_code=True`.

It is for programs that nobody can make import neurtransformer first, such as the command lines of
evaluation harnesses. It holds no code of the network, only the import of the installed package.
"""

from pathlib import Path

from neurtransformer.spiking.model import SpikingLanguageModel

FILE = "neurtx_run.py"
_TEXT = '''"""Lets transformers load this folder; the code is in the package neurtransformer."""

from {config.__module__} import {config.__name__}
from {model.__module__} import {model.__name__}

__all__ = ["{config.__name__}", "{model.__name__}"]
'''


def write_shim(run: Path, model: SpikingLanguageModel) -> None:
    """Write the file into the folder of a run that `model` is saved in."""
    text = _TEXT.format(config=type(model.config), model=type(model))
    (run / FILE).write_text(text, encoding="utf-8")


def auto_map(model: SpikingLanguageModel) -> dict[str, str]:
    """What config.json says of the file, for transformers."""
    module = Path(FILE).stem
    return {
        "AutoConfig": f"{module}.{type(model.config).__name__}",
        "AutoModelForCausalLM": f"{module}.{type(model).__name__}",
    }
