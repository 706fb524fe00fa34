"""`neurtx finetune`: surrogate-gradient training of a run."""

from typing import Literal

import click

from .output import answer, json_option, teacher_option


@click.command()
@click.argument("run", required=False)
@click.option("--text", help="Text to train on: a file, - or a hub data set.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Optimisation steps in all.  [default: as in the recipe]",
)
@click.option(
    "--train",
    type=click.Choice(["ssa", "blocks"]),
    help="Train the attention and all thresholds, or all of every block.",
)
@click.option(
    "--spikes-budget",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of what its spikes cost that the run may keep.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@teacher_option
@json_option
def command(
    run: str | None,
    text: str | None,
    steps: int | None,
    train: Literal["ssa", "blocks"] | None,
    spikes_budget: float | None,
    resume: bool,
    device: str,
    seed: int,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Train RUN to follow its dense teacher.

    The teacher is the dense model that RUN was made from. RUN learns to predict the next token as
    the teacher does. Fast weights (attention `linear`) first learn the output of each of the
    teacher's attention layers; a race (`ttfs`) is close to it from the start, and its recipe leaves
    that stage out (`match_share: 0`).

    With `--spikes-budget 0.6` RUN also learns to do with 60 % of what its spikes cost: synaptic
    operations for three quarters, and for one the spikes themselves. Training then begins with
    higher thresholds where spikes matter least, and keeps to the budget from the first step.

    The weights of RUN are replaced when training has ended. Until then only RUN/checkpoint changes,
    and `--resume` goes on from there.

    In several processes (`torchrun --nproc-per-node 8 -m neurtx.main finetune`, or `accelerate
    launch`) each process takes batches of its own, and one of them writes and prints.
    """
    from neurtransformer import api, runs

    from . import progress

    folder = runs.resolve("run", run)
    values = api.finetune(
        # by its name: a run that ships is named so in the message that refuses it
        folder if run is None else run,
        text=text,
        steps=steps,
        train=train,
        spikes_budget=spikes_budget,
        resume=resume,
        device=device,
        seed=seed,
        teacher=teacher,
        # not when it is done: by then others may have been made
        on_start=lambda: runs.remember("run", folder),
        progress=progress,
    )

    from accelerate import PartialState

    if PartialState().is_main_process:
        answer(values, as_json=as_json, title="fine-tuned")
