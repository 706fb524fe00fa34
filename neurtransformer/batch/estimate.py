"""How long the jobs of a batch may take and how much memory, before any of them has run: a guess.

A job is `START` seconds of loading libraries, and work that grows with the parameters of the model
times the tokens that it reads:

    seconds = START + PRICE[step] x parameters x tokens / cores

The prices are what gpt2-nano and SmolLM2-135M took on two cores of an ordinary server, in seconds
of one core; another processor is off by its speed, and a GPU by much more. The tokens are those
that the options and the recipe say: calibration's, all steps of a training and the text that the
model writes for it, the limits of `eval` and `energy`, those that `export` measures on, and of
`simulate` the prompt (a token for four letters) and what follows. Memory is

    bytes = BASE + 4 x parameters x COPIES[step] + 16 x vocabulary x tokens of a batch

for libraries, tensors of the size of the model (a training has teacher, network, gradients and two
of AdamW), and logits. Models of the hub that have no short name have no estimate.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

from neurtransformer.batch.config import Step
from neurtransformer.batch.plan import Job, Source
from neurtransformer.dense import KNOWN, check
from neurtransformer.errors import UserError
from neurtransformer.families import FAMILIES
from neurtransformer.families.base import Sizes

START = 6.0
BASE = 0.6e9

PRICE: dict[Step, float] = {
    "convert": 7e-10,
    "finetune": 2.5e-10,
    "eval": 1e-9,
    "energy": 1e-9,
    "export": 3e-9,
    "simulate": 2e-6,
    "place": 0.0,
}
COPIES: dict[Step, int] = {
    "convert": 2,
    "finetune": 6,
    "eval": 3,
    "energy": 2,
    "export": 4,
    "simulate": 4,
    "place": 2,
}
# what the commands take where no option says otherwise
_LIMIT = {"eval": 8192, "energy": 4096}
_MEASURED, _LETTERS, _FOLLOWING, _LONGEST = 2048, 4, 8, 1024


class Estimate(NamedTuple):
    """Seconds of the clock and bytes of memory; None where the model's size is not known."""

    seconds: float | None
    bytes: float | None


def estimate(job: Job, cores: int | None = None) -> Estimate:
    """What a job may cost on so many cores, on all of this machine's if nobody says."""
    found = _sizes(job.model)
    if found is None:
        return Estimate(None, None)
    parameters, sizes = found
    tokens, batch = _tokens(job, sizes)
    work = PRICE[job.step] * parameters * tokens / (cores or os.cpu_count() or 1)
    memory = BASE + 4 * parameters * COPIES[job.step] + 16 * sizes.vocabulary * batch
    return Estimate(START + work, memory)


def _tokens(job: Job, sizes: Sizes) -> tuple[int, int]:
    """Tokens that a job reads in all, and at once."""
    options, block = job.options, min(_LONGEST, sizes.context)
    if job.step == "convert":
        calibration = job.recipe.calibration
        return calibration.tokens, min(calibration.block, block)
    if job.step == "finetune":
        recipe = job.recipe.finetune.changed(steps=options.get("steps"))
        block = min(recipe.block, block)
        written = 0 if options.get("text") else recipe.self_written * block
        return recipe.steps * recipe.blocks_a_step * block + written, recipe.batch * block
    if job.step in _LIMIT:
        return int(options.get("limit", _LIMIT[job.step])), block
    if job.step == "simulate":
        following = int(options.get("tokens", _FOLLOWING))
        return len(options["prompt"]) // _LETTERS + following, 0
    return _MEASURED, 0


def _sizes(model: Source) -> tuple[int, Sizes] | None:
    """The parameters of a model and its geometry, from its config."""
    if known := KNOWN.get(str(model.given)):
        family, sizes = FAMILIES[known.family], known.sizes
    else:
        try:
            config = check(Path(str(model.given)))
        except UserError:
            return None  # its conversion will say why
        family = FAMILIES[config["model_type"]]
        sizes = family.sizes(config)
    return sum(math.prod(shape) for shape in family.shapes(sizes).values()), sizes
