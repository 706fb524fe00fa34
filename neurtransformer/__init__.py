"""neurtransformer: a pretrained GPT-2 becomes a spiking network and a Loihi 2 netlist.

After `import neurtransformer`, run folders load with `AutoModelForCausalLM.from_pretrained`. The
import itself loads neither torch nor transformers, which take seconds: the model registers itself
when transformers' auto classes are imported.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

_MODEL = "neurtransformer.spiking.model"
_AUTO = "transformers.models.auto.configuration_auto"
# What our model imports from transformers. These import each other in circles, so ours may only be
# imported when none of them is half imported.
_NEEDS = {
    _AUTO: "AutoConfig",
    "transformers.models.auto.modeling_auto": "AutoModelForCausalLM",
    "transformers.models.gpt2.configuration_gpt2": "GPT2Config",
    "transformers.modeling_utils": "PreTrainedModel",
    "transformers.generation.utils": "GenerationMixin",
}


def _register() -> None:
    """Import our model, which registers itself at its end, if transformers is ready for it."""
    half = (n in sys.modules and not hasattr(sys.modules[n], a) for n, a in _NEEDS.items())
    if _AUTO in sys.modules and _MODEL not in sys.modules and not any(half):
        importlib.import_module(_MODEL)


class _RegisterAfter(importlib.abc.MetaPathFinder):
    """Calls `_register` right after one module of transformers has been imported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


_register()
for _name in _NEEDS.keys() - sys.modules.keys():
    sys.meta_path.insert(0, _RegisterAfter(_name))
