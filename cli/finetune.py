"""`neurtx finetune`: surrogate-gradient training of a run."""

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
    train: str | None,
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
    import os
    import shutil
    import time

    from neurtransformer import runs
    from neurtransformer.errors import UserError
    from neurtransformer.lock import training
    from neurtransformer.recipe import Recipe

    folder = runs.resolve("run", run)
    if runs.is_bundled(folder):
        raise UserError(
            f"{run} ships with neurtx and stays as it is: make a run of your own with "
            "`neurtx convert gpt2-nano`, or copy the folder " + str(folder)
        )
    # said now, and not after hours of training
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to: copy it to a place that can")
    # of several processes one holds the run for all; whoever comes second is told at once
    if os.environ.get("RANK", "0") == "0":
        click.get_current_context().with_resource(training(folder))
    weights = folder / "model.safetensors"
    if weights.is_file() and shutil.disk_usage(folder).free < weights.stat().st_size:
        raise UserError(f"no space left for the trained weights beside {weights}: free some")
    report = runs.read_json(folder / "report.json")
    recipe = Recipe.from_report(report, folder).finetune
    recipe = recipe.changed(steps=steps, train=train, spikes_budget=spikes_budget)
    checkpoint = folder / "checkpoint"
    if checkpoint.exists() and not resume:
        raise UserError(
            f"{checkpoint} is left of an unfinished training: add --resume, or delete it"
        )

    if resume and not checkpoint.is_dir():
        raise UserError(f"there is no checkpoint in {folder}: leave --resume out")

    import torch
    from accelerate import PartialState

    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.finetune import Step, finetune, training_text
    from neurtransformer.spiking.load import (
        load_run,
        remember_teacher,
        replace_weights,
        teacher_of,
    )

    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"there is no {device} device here: leave --device out")
    from .progress import bar

    processes = PartialState(cpu=device == "cpu")
    model, tokenizer = load_run(folder)
    trained_from = model_sha256(model)
    found = teacher_of(folder, model, teacher)
    dense = found.dense
    remember_teacher(model, found)
    recipe = recipe.changed(block=min(recipe.block, model.config.context))
    blocks = training_text(dense, tokenizer, text, recipe, seed, processes=processes.num_processes)
    if processes.is_main_process:
        # not when it is done: by then others may have been made
        runs.remember("run", folder)
    started = time.monotonic()
    with bar("fine-tuning", recipe.steps, "steps", quiet=not processes.is_main_process) as advance:
        done = 0

        def on_step(step: Step) -> None:
            nonlocal done
            advance(step.number - done, f"{step.stage} loss {step.loss:.3f}")
            done = step.number

        history = finetune(
            model,
            dense,
            blocks,
            recipe,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            resume=resume,
            on_step=on_step,
        )
    tokens_per_step = recipe.blocks_a_step * blocks.shape[1] * processes.num_processes
    last = history[-10:]
    values = {
        "steps": len(history),
        "tokens": len(history) * tokens_per_step,
        "processes": processes.num_processes,
        "train": recipe.train,
        "seed": seed,
        "loss": sum(step.loss for step in last) / len(last),
        "seconds": time.monotonic() - started,
    }
    if recipe.spikes_budget is not None:
        share = sum(step.synops for step in last) / len(last) / history[0].synops
        values |= {"spikes_budget": recipe.spikes_budget, "synops_share": share}
    if processes.is_main_process:
        replace_weights(folder, model.cpu())
        curve = [[step.number, step.stage, step.loss] for step in history]
        provenance = stamp(
            weights_sha256=model_sha256(model),
            trained_from_sha256=trained_from,
            teacher=found.source,
            teacher_sha256=found.sha256,
            text_sha256=text_sha256(blocks),
            seed=seed,
        )
        runs.add_training(folder, {**values, "text": text, "curve": curve}, provenance)
        shutil.rmtree(checkpoint, ignore_errors=True)
        answer({"run": folder, **values}, as_json=as_json, title="fine-tuned")
    processes.wait_for_everyone()
    processes.destroy_process_group()
