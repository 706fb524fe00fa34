"""`neurtx finetune`: surrogate-gradient training of a run."""

from typing import Literal

import click

from .output import answer, json_option, teacher_option


@click.command()
@click.argument("run", required=False)
@click.option("--text", help="Text to train on: a file, - or a hub data set.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimisation steps in all.")
@click.option("--train", type=click.Choice(["ssa", "blocks"]), help="What is trained.")
@click.option(
    "--spikes-budget",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the run's synaptic operations to keep, up to 1.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
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

    It learns the teacher's next-token distribution. A `linear` attention first learns each layer's
    attention output; a `ttfs` one is near it from the start, and its recipe leaves that stage out
    (`match_share: 0`). With `--spikes-budget 0.7` RUN also learns to do with 70 % of its synaptic
    operations. The run's weights are replaced when training has ended; until then only
    RUN/checkpoint changes.

    In several processes (`torchrun --nproc-per-node 8 -m neurtx.main finetune`, or `accelerate
    launch`) each takes batches of its own; one of them writes and prints.
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
