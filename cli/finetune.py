"""`neurtx finetune`: surrogate-gradient training of a run."""

from functools import partial
from pathlib import Path
from typing import Literal

import click

from .options import device_option, reporting, teacher_option, text_option
from .output import answer


@click.command()
@click.argument("run", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A folder for a copy to train; RUN stays as it is.",
)
@text_option("Text to train on")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Optimisation steps in all.  [default: as in the recipe]",
)
@click.option(
    "--train",
    type=click.Choice(["ssa", "blocks"]),
    help="What to train. ssa: the attention and all thresholds. blocks: all weights of every "
    "block; embeddings and LM head stay as they are.  [default: as in the recipe]",
)
@click.option(
    "--spikes-budget",
    type=click.FloatRange(0, 1, min_open=True),
    help="How much of today's spike cost may remain, above 0 to 1: 0.6 means 60 %.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the random numbers: the text that the teacher writes and the order of batches.",
)
@click.option("--force", is_flag=True, help="Replace a run that stands at --out.")
@device_option
@teacher_option
@reporting
def command(
    run: str | None,
    out: Path | None,
    text: str | None,
    steps: int | None,
    train: Literal["ssa", "blocks"] | None,
    spikes_budget: float | None,
    resume: bool,
    seed: int,
    force: bool,
    device: str,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Train RUN to predict what the dense model that it was made from predicts.

    That dense model is called the teacher. Fast weights (attention `linear`) first learn the output
    of each of the teacher's attention layers; a race (`ttfs`) is close to it from the start, and
    its recipe leaves that stage out (`match_share: 0`).

    With `--spikes-budget 0.6` RUN also learns to do with 60 % of what its spikes cost: synaptic
    operations for one half, and the spikes themselves for the other. Training then begins with
    higher thresholds where spikes matter least, without the channels of the attention that are
    worth less than their spikes, and keeps to the budget from the first step.

    The weights of RUN are replaced when training has ended. Until then only RUN/checkpoint changes,
    and `--resume` goes on from there. With `--out` all of that happens to a copy of RUN, which may
    then be a run that ships with the package or stands on the hub.

    In several processes (`torchrun --nproc-per-node 8 -m neurtx finetune`, or `accelerate
    launch`) each process takes batches of its own, and one of them writes and prints.
    """
    from neurtransformer import api, runs

    from . import progress

    if force and out is None:
        raise click.UsageError("--force is for --out: the weights of RUN are replaced anyway")

    folder = runs.resolve("run", run)
    values = api.finetune(
        folder,
        out,
        text=text,
        steps=steps,
        train=train,
        spikes_budget=spikes_budget,
        resume=resume,
        device=device,
        seed=seed,
        teacher=teacher,
        force=force,
        # not when it is done: by then others may have been made
        on_start=partial(runs.remember, "run"),
        progress=progress,
    )

    from accelerate import PartialState

    if PartialState().is_main_process:
        answer(values, as_json=as_json, title="fine-tuned", command="finetune")
