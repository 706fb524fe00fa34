"""neurtransformer: a pretrained GPT-2 or Llama becomes a spiking network and a Loihi 2 netlist.

The public functions are `convert`, `finetune`, `evaluate`, `export`, `simulate` and `load`. Each
but the last does what the command of its name does (`evaluate` that of `neurtx eval`) and returns
what the command prints as JSON. All raise `UserError`, with one line that says how to mend it, for
a mistake of the caller. `docs/python-api.md` shows them at work.

After `import neurtransformer`, run folders also load with `AutoModelForCausalLM.from_pretrained`.
The import itself loads neither torch nor transformers, which take seconds: the functions import
what they need when they are called, and the model registers itself when transformers' auto classes
are imported. Where it cannot, transformers goes on without it.
"""

import importlib
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from neurtransformer.api import convert, evaluate, export, finetune, load, simulate
from neurtransformer.errors import UserError

__all__ = [
    "UserError",
    "convert",
    "evaluate",
    "export",
    "finetune",
    "load",
    "simulate",
]

__version__ = "0.1.0"

_MODEL = "neurtransformer.spiking.model"
_AUTO = "transformers.models.auto.configuration_auto"
# What our model imports from transformers. These import each other in circles, so ours may only be
# imported when none of them is half imported.
_NEEDS = {
    _AUTO: "AutoConfig",
    "transformers.models.auto.modeling_auto": "AutoModelForCausalLM",
    "transformers.models.gpt2.configuration_gpt2": "GPT2Config",
    "transformers.models.llama.configuration_llama": "LlamaConfig",
    "transformers.modeling_layers": "GradientCheckpointingLayer",
    "transformers.modeling_utils": "PreTrainedModel",
    "transformers.generation.utils": "GenerationMixin",
}
_failed = False


def _register() -> None:
    """Import our model, which registers itself at its end, if transformers is ready for it.

    Whatever keeps it from that (a package of ours is missing, a torchvision that does not fit
    torch) is told and no more: who imports transformers may want another model of it.
    """
    global _failed
    half = (n in sys.modules and not hasattr(sys.modules[n], a) for n, a in _NEEDS.items())
    if _failed or _AUTO not in sys.modules or _MODEL in sys.modules or any(half):
        return
    try:
        importlib.import_module(_MODEL)
    except Exception as error:
        _failed = True
        # of a chain of failed imports the first says what is wrong
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        why = f"{type(first).__name__}: {first}"
        warnings.warn(
            f"neurtransformer: spiking models do not load here ({why}): `neurtx doctor` says "
            "what to type",
            stacklevel=2,
        )


class _RegisterAfter(importlib.abc.MetaPathFinder):
    """Calls `_register` right after a module of `_NEEDS` has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _NEEDS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find else None
            if spec is not None:
                return _registering(spec)
        return None


def _registering(spec: ModuleSpec) -> ModuleSpec:
    """`spec`, whose loader calls `_register` when it has run the module."""
    if spec.loader is not None:
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
    return spec


_register()
if _MODEL not in sys.modules:
    sys.meta_path.insert(0, _RegisterAfter())
