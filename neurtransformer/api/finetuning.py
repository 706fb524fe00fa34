"""`finetune`: a run learns from its teacher, what `neurtx finetune` does."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from neurtransformer.api.given import Named, name_of
from neurtransformer.progress import SILENT, Progress


def finetune(
    run: Named = None,
    out: str | Path | None = None,
    *,
    text: str | Path | None = None,
    steps: int | None = None,
    train: Literal["ssa", "blocks"] | None = None,
    spikes_budget: float | None = None,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 0,
    teacher: str | Path | None = None,
    force: bool = False,
    on_start: Callable[[Path], None] = lambda run: None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a run with surrogate gradients to follow the dense model that it was made from.

    run: the folder of a run, or the name of one that ships with the package or is on the hub. None
        is the last run that a command made from the current folder.
    out: a folder for a copy that is trained in the place of the run, which stays as it is. The copy
        is made when everything was checked, and has a model card of its own. None trains the run
        where it stands.
    text: what is trained on: a file, "-" for standard input, or a data set on the hub. None is
        CPython's text and text that the dense model writes.
    steps: the number of optimisation steps. None is the recipe's, 2,200 by default.
    train: "ssa" trains the spiking attention and all thresholds, "blocks" all of every block. None
        is the recipe's, "blocks" by default.
    spikes_budget: the share that the run may keep of what its spikes cost before, above 0 and at
        most 1. None is the recipe's, no limit by default.
    resume: go on from the checkpoint of an unfinished training in the run's folder.
    device: where both networks compute: "cpu", "cuda" or "cuda:N".
    seed: of the text that the dense model writes and of the order of the batches.
    teacher: the dense model, a name or a folder, if it is not where it was or is to be another one.
        None is the one that the run remembers.
    force: replace a run that stands at `out`.
    on_start: called in the main process, with the folder that is trained, when everything was
        checked and training begins.
    progress: is told how far the work is (`neurtransformer.progress.Progress`); by default nobody
        is.

    The weights in the folder are replaced when training has ended. Under `torchrun` or `accelerate
    launch` each process takes batches of its own, and one of them writes.

    Returns a dict:

    - `run`: the folder that was trained, an absolute Path;
    - `steps`, `tokens`, `processes`: the numbers of steps, of tokens that all of them read, and of
      processes;
    - `train`, `seed`: the settings;
    - `loss`: the mean loss of the last ten steps, which by default is how far the distribution of
      the next token is from the dense model's (Kullback-Leibler), in nats per token;
    - `seconds`: the time it took;
    - `spikes_budget` and `spikes_share`, only with a budget: the limit, and what the spikes cost at
      the end, as a share of what they cost before, a mean over the last ten steps.

    The dict and the loss of every step are noted in the run's report.json.

    Raises UserError if the run ships with the package or is the hub's and there is no `out`, cannot
    be written, is in training already, has a checkpoint and `resume` is False, or has none and
    `resume` is True; if the text or the dense model cannot be had; and for a wrong setting.
    """
    from neurtransformer import runs
    from neurtransformer.device import device_of
    from neurtransformer.errors import UserError
    from neurtransformer.folders import check_free
    from neurtransformer.lock import training
    from neurtransformer.recipe import Recipe

    source, text = runs.resolve("run", name_of(run)), name_of(text)
    folder = source if out is None else Path(out).expanduser().resolve()
    if out is not None and resume:
        raise UserError(f"--resume goes on in the folder of the training: leave --out {out} out")
    if out is None:
        _check_writable(source)
    else:
        check_free(folder, force)
    with contextlib.ExitStack() as held:
        # of several processes one holds the run for all; whoever comes second is told at once
        main = os.environ.get("RANK", "0") == "0"
        if main and out is None:
            held.enter_context(training(folder))
        report = runs.read_json(source / "report.json")
        recipe = Recipe.from_report(report, source).finetune
        recipe = recipe.changed(steps=steps, train=train, spikes_budget=spikes_budget)
        checkpoint = folder / "checkpoint"
        if out is None and checkpoint.exists() and not resume:
            raise UserError(
                f"{checkpoint} is left of an unfinished training: add --resume, or delete it"
            )
        if resume and not checkpoint.is_dir():
            raise UserError(f"there is no checkpoint in {folder}: leave --resume out")
        chosen = device_of(device)

        import torch
        from accelerate import PartialState

        from neurtransformer.measure.card import write_card
        from neurtransformer.provenance import model_sha256, stamp, text_sha256
        from neurtransformer.spiking.finetune import Step, training_text
        from neurtransformer.spiking.finetune import finetune as distil
        from neurtransformer.spiking.load import (
            load_run,
            remember_teacher,
            replace_weights,
            teacher_of,
        )

        if chosen.index is not None:  # accelerate takes the current GPU, or that of its process
            torch.cuda.set_device(chosen)
        processes = PartialState(cpu=device == "cpu")
        model, tokenizer = load_run(source)
        trained_from = model_sha256(model)
        found = teacher_of(source, model, name_of(teacher))
        dense = found.dense
        remember_teacher(model, found)
        recipe = recipe.changed(block=min(recipe.block, model.config.context))
        blocks = training_text(
            dense, tokenizer, text, recipe, seed, processes=processes.num_processes
        )
        if main and out is not None:
            _copy_run(source, folder, force)
            held.enter_context(training(folder))
        if processes.is_main_process:
            on_start(folder)
        started = time.monotonic()
        quiet = not processes.is_main_process
        with progress.bar("fine-tuning", recipe.steps, "steps", quiet=quiet) as advance:
            done = 0

            def on_step(step: Step) -> None:
                nonlocal done
                advance(step.number - done, f"{step.stage} loss {step.loss:.3f}")
                done = step.number

            history = distil(
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
        values: dict[str, Any] = {
            "steps": len(history),
            "tokens": len(history) * tokens_per_step,
            "processes": processes.num_processes,
            "train": recipe.train,
            "seed": seed,
            "loss": sum(step.loss for step in last) / len(last),
            "seconds": time.monotonic() - started,
        }
        if recipe.spikes_budget is not None:
            share = sum(step.share for step in last) / len(last)
            values |= {"spikes_budget": recipe.spikes_budget, "spikes_share": share}
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
            write_card(folder)
            shutil.rmtree(checkpoint, ignore_errors=True)
        processes.wait_for_everyone()
        processes.destroy_process_group()
    return {"run": folder, **values}


def _check_writable(run: Path) -> None:
    """Raise UserError unless a run can be trained where it stands: now, and not after hours."""
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    if runs.is_read_only(run):
        whose = "ships with neurtx" if run.parent == runs.BUNDLED else "is a copy of the hub's"
        raise UserError(
            f"{run.name} {whose} and stays as it is: train a copy of it with --out FOLDER"
        )
    if not os.access(run, os.W_OK):
        raise UserError(f"{run} cannot be written to: train a copy of it with --out FOLDER")
    weights = run / "model.safetensors"
    if weights.is_file() and shutil.disk_usage(run).free < weights.stat().st_size:
        raise UserError(f"no space left for the trained weights beside {weights}: free some")


def _copy_run(source: Path, target: Path, force: bool) -> None:
    """A copy of a run, without the checkpoint of a training and without what is hidden. Its card is
    a new one: what somebody wrote by hand is about the weights of `source`."""
    from neurtransformer.folders import new_folder
    from neurtransformer.measure.card import CARD, write_card

    with new_folder(target, force=force) as fresh:
        ignored = shutil.ignore_patterns(".*", "checkpoint", CARD)
        shutil.copytree(source, fresh, ignore=ignored, dirs_exist_ok=True)
        write_card(fresh)
