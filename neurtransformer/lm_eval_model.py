"""The plug for EleutherAI's lm-evaluation-harness: `lm_eval run --model neurtx`.

The harness finds it by the entry point `lm_eval.models` of this package, from the first version on
that looks for entry points, and imports it only when it is asked for. Earlier versions have it
after an import of this module.
"""

from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

import neurtransformer  # noqa: F401  (registers the model with transformers)
from neurtransformer import runs

NAME = "neurtx"


@register_model(NAME)
class NeurtxLM(HFLM):
    """A run, as the harness's own class for transformers models handles it.

    pretrained: the folder of a run, the name of one that ships with the package, or a repository
    on the hub. What else the harness's `hf` takes (`dtype`, `batch_size`, `device`) is taken too.
    Raises UserError if there is no such run.
    """

    _max_length: int | None

    def __init__(self, pretrained: str, **options: Any) -> None:
        super().__init__(str(runs.resolve("run", pretrained)), **options)
        if self._max_length is None:
            # the innate first token takes one of the positions that the harness would count
            self._max_length = self.model.config.context
