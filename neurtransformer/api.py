"""The public functions: `load`, `convert`, `finetune`, `evaluate`, `export` and `simulate`.

Each does what the command of its name does, and the command calls it. What only a terminal needs
(options, progress bars, tables, exit codes, which run was the last one made) stays in `cli/`.

Nothing heavy is imported at the top: a caller's mistake is found before torch is loaded, and
`import neurtransformer`, which imports this file, stays quick.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from neurtransformer.progress import SILENT, Note, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neurtransformer.loihi.netlist import Manifest
    from neurtransformer.spiking.model import SpikingLanguageModel

    Written = tuple[Manifest, dict[str, Any], dict[str, Any]]
    """The manifest, what the integers cost, and the record of that."""

Named = str | Path | None
"""A folder, or the name of one that ships with the package; None is the last one made here."""

# what `convert` keeps of the measurement at its end
_MEASURED = ("ppl_ratio", "cosine_similarity", "token_agreement")

# of positions, for the report's picture
_BUCKETS = 16

# held-out text that the loss of the integers is measured on
_INTEGER_TOKENS, _INTEGER_BLOCK = 2048, 256


# --- loading ---


def load(run: Named = None) -> "tuple[SpikingLanguageModel, PreTrainedTokenizerBase]":
    """The spiking model of a run, in float32 and eval mode, and its tokenizer.

    run: the folder of a run, or the name of one that ships with the package, such as
    "gpt2-nano-spiking". None is the last run made from the current folder.

    The model is a transformers model: called with `input_ids` (batch, length) int64 it returns
    `logits` (batch, length, vocabulary) and `last_hidden_state` (batch, length, width), both
    float32, and it has `generate`. The first token, which begins every text, is built in: texts
    are at most `model.config.context` tokens long.

    Raises UserError if there is no such run, or it is damaged or incomplete.
    """
    from neurtransformer import runs

    folder = runs.resolve("run", _text(run))

    from neurtransformer.spiking.load import load_run

    return load_run(folder)


# --- converting ---


def convert(
    model: str | Path,
    out: str | Path | None = None,
    *,
    config: str | Path | None = None,
    attention: str | None = None,
    coding: Literal["rate", "phase"] | None = None,
    timesteps: int | None = None,
    text: str | Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Turn a dense GPT-2 or Llama into a spiking run, and write the run's folder.

    model: a short name (`neurtransformer.dense.KNOWN`), a hub id, a local folder or a GGUF file.
    out: the folder to write; None picks a free name below ./runs. force: replace a run that is
    there already. config: a YAML recipe; what it leaves out is as in configs/default.yaml.
    attention: "ttfs" or "linear". coding: one code for the whole network. timesteps: T of the code.
    text: what the thresholds are fitted to, see `neurtransformer.text.load_blocks`; None lets the
    dense model write it.

    Returns the folder as `run`, the settings, and how near the spiking model is to the dense one
    on about a thousand tokens that the fit has not seen: `ppl_ratio`, `cosine_similarity` and
    `token_agreement` (left out if the text had no more tokens).

    Raises UserError for a model that cannot be converted, a wrong setting, or a folder that may not
    be replaced.
    """
    from neurtransformer import runs
    from neurtransformer.dense import check, load_dense, locate
    from neurtransformer.folders import Place, new_folder
    from neurtransformer.recipe import load_recipe

    name, text = str(model), _text(text)
    recipe = load_recipe(_path(config), timesteps, attention=attention, coding=coding)
    check(locate(name))
    place = Place("run", name, _path(out))
    with new_folder(place, force=force) as folder:
        from neurtransformer.measure.quality import counting_spikes
        from neurtransformer.measure.quality import evaluate as compare
        from neurtransformer.provenance import model_sha256, stamp, text_sha256
        from neurtransformer.spiking.calibrate import calibration_text, unseen_text
        from neurtransformer.spiking.convert import convert as spiking_form
        from neurtransformer.spiking.innate import first_token_of
        from neurtransformer.spiking.load import source_name
        from neurtransformer.spiking.neuron import snapping_anew

        started = time.monotonic()
        dense, tokenizer = load_dense(name)
        blocks = calibration_text(dense, tokenizer, text, recipe.calibration)
        source = source_name(name)
        first = first_token_of(dense) if recipe.innate_first_token else None
        layers = dense.config.num_hidden_layers
        with progress.bar("calibrating", layers, "blocks", brief=True) as advance:
            spiking = spiking_form(
                dense,
                blocks,
                recipe.timesteps,
                source,
                on_block=lambda: advance(1, ""),
                coding=recipe.coding,
                attention=recipe.attention,
                attention_code=recipe.attention_code,
                first_token=first,
                limited=recipe.limited,
                shared=True,
            )
        measured: dict[str, Any] = {}
        unseen = unseen_text(dense, tokenizer, text, blocks)
        if unseen is not None:
            with snapping_anew(spiking), counting_spikes(spiking) as counter:
                measured = compare(spiking, dense, unseen, counter)
        spiking.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        values = {
            "model": name,
            "timesteps": recipe.timesteps,
            "coding": recipe.coding,
            "attention": recipe.attention,
            "attention_timesteps": recipe.attention_code.timesteps,
            "attention_coding": recipe.attention_code.coding,
            "parameters": spiking.num_parameters(),
            "calibration_tokens": blocks.numel(),
            **{key: measured[key] for key in _MEASURED if key in measured},
            "unseen_tokens": measured.get("tokens", 0),
            "seconds": time.monotonic() - started,
        }
        provenance = stamp(
            weights_sha256=model_sha256(spiking),
            teacher=source,
            teacher_sha256=spiking.config.dense_sha256,
            text_sha256=text_sha256(blocks),
            seed=0,
        )
        made = {**values, "text": text, "provenance": provenance}
        report = {"convert": made, "recipe": recipe.model_dump()}
        runs.write_json(folder / "report.json", report)
    return {"run": place.made, **values}


# --- training ---


def finetune(
    run: Named = None,
    *,
    text: str | Path | None = None,
    steps: int | None = None,
    train: Literal["ssa", "blocks"] | None = None,
    spikes_budget: float | None = None,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 0,
    teacher: str | Path | None = None,
    on_start: Callable[[], None] = lambda: None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a run with surrogate gradients to follow the dense model that it was made from.

    steps, train, spikes_budget: what differs from the run's recipe. text: what is trained on; None
    takes CPython's text and text that the dense model writes. resume: go on from the checkpoint in
    the run's folder. teacher: the dense model, if it is not where it was. on_start: called in the
    main process when everything was checked and training begins.

    The weights in the folder are replaced when training has ended. Under `torchrun` or `accelerate
    launch` each process takes batches of its own, and one of them writes.

    Returns the folder as `run`, the number of steps and tokens, the mean `loss` of the last ten
    steps, and the time it took.

    Raises UserError if the run ships with the package, cannot be written, is in training already,
    has a checkpoint and `resume` is False, or has none and `resume` is True.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError
    from neurtransformer.lock import training
    from neurtransformer.recipe import Recipe

    folder, text = runs.resolve("run", _text(run)), _text(text)
    if runs.is_bundled(folder):
        raise UserError(
            f"{run} ships with neurtx and stays as it is: make a run of your own with "
            "`neurtx convert gpt2-nano`, or copy the folder " + str(folder)
        )
    # said now, and not after hours of training
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to: copy it to a place that can")
    with contextlib.ExitStack() as held:
        # of several processes one holds the run for all; whoever comes second is told at once
        if os.environ.get("RANK", "0") == "0":
            held.enter_context(training(folder))
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
        from neurtransformer.spiking.finetune import Step, training_text
        from neurtransformer.spiking.finetune import finetune as distil
        from neurtransformer.spiking.load import (
            load_run,
            remember_teacher,
            replace_weights,
            teacher_of,
        )

        if device != "cpu" and not torch.cuda.is_available():
            raise UserError(f"there is no {device} device here: leave --device out")
        processes = PartialState(cpu=device == "cpu")
        model, tokenizer = load_run(folder)
        trained_from = model_sha256(model)
        found = teacher_of(folder, model, _text(teacher))
        dense = found.dense
        remember_teacher(model, found)
        recipe = recipe.changed(block=min(recipe.block, model.config.context))
        blocks = training_text(
            dense, tokenizer, text, recipe, seed, processes=processes.num_processes
        )
        if processes.is_main_process:
            on_start()
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
            shutil.rmtree(checkpoint, ignore_errors=True)
        processes.wait_for_everyone()
        processes.destroy_process_group()
    return {"run": folder, **values}


# --- measuring ---


def evaluate(
    run: Named = None,
    *,
    text: str | Path | None = None,
    limit: int = 8192,
    block: int | None = None,
    mode: Literal["counts", "steps"] = "counts",
    teacher: str | Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compare a run with the dense model that it was made from, on the same tokens.

    text: a file, "-" or a hub data set; None takes the held-out part of CPython's text. limit: how
    many tokens are read at most, 2 or more. block: tokens of one text, 2 or more; None is the
    model's context, 1024 at most. mode: "counts" computes each neuron's spike count at once,
    "steps" simulates every time step with SpikingJelly's neurons, which is slower and gives equal
    numbers.

    Returns `ppl_dense`, `ppl_spiking`, `ppl_ratio`, `cosine_similarity`, `token_agreement`,
    `spikes_per_token`, estimates of the energy saved in per cent, and more. They are noted in the
    run's report.json too, unless the run ships with the package.

    Raises UserError if the run, the text or the dense model cannot be had, and for "steps" if
    SpikingJelly is missing.
    """
    from neurtransformer import runs

    _check_choice("mode", mode, ("counts", "steps"))
    _check_least("limit", limit, 2)
    _check_least("block", block, 2)
    folder, text = runs.resolve("run", _text(run)), _text(text)
    if mode == "steps":
        from neurtransformer.spiking.coding import soft_reset_neuron

        soft_reset_neuron()  # says so if SpikingJelly is missing

    from neurtransformer.measure.energy import estimate
    from neurtransformer.measure.position import doubled, loss_by_position
    from neurtransformer.measure.quality import counting_spikes
    from neurtransformer.measure.quality import evaluate as compare
    from neurtransformer.measure.race import one_race
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import BLOCK, load_blocks

    model, tokenizer = load_run(folder)
    length = min(block or BLOCK, model.config.context)
    blocks = load_blocks(text, tokenizer, length, split="heldout", limit_tokens=limit)
    found, long = teacher_of(folder, model, _text(teacher)), doubled(blocks)
    dense = found.dense
    provenance = stamp(
        weights_sha256=model_sha256(model),
        teacher=found.source,
        teacher_sha256=found.sha256,
        text_sha256=text_sha256(blocks),
    )
    total = blocks.numel() + long.numel()
    with progress.bar(f"evaluating ({mode})", total, "tokens") as advance:
        model.steps = mode == "steps"
        with counting_spikes(model) as counter:
            values = compare(
                model, dense, blocks, counter, on_tokens=lambda tokens: advance(tokens, "")
            )
        model.steps = False  # equal, and what is a witness above would only take longer here
        curve = loss_by_position(
            model, dense, long, _BUCKETS, on_tokens=lambda tokens: advance(tokens, "")
        )
    energy = estimate(model, counter)
    saved = {
        f"{part}_energy_reduction_percent": energy[part]["reduction_percent"]
        for part in ("attention", "model")
    }
    values = {"mode": mode, "text": text, **values, **saved, "loss_by_position": curve}
    race = one_race(model, dense, tokenizer)
    if race is not None:
        values["race"] = race
    runs.update_report(folder, "eval", values, provenance)
    return {"run": folder, **values}


# --- exporting ---


def export(
    run: Named = None,
    out: str | Path | None = None,
    *,
    target: Literal["loihi2", "nir"] = "loihi2",
    spikes: Literal["binary", "graded"] = "binary",
    text: str | Path | None = None,
    teacher: str | Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a run as a netlist for Loihi 2, or what NIR can hold of it as NIR graphs.

    out: the folder to write; None picks a free name below ./netlists or ./nir-graphs. force:
    replace a netlist that is there already. spikes: whether a count travels as T binary spikes or
    as one graded spike, which carries a number. text: what the loss of the integers is measured
    on; None takes CPython's text. `spikes`, `text` and `teacher` are for "loihi2" alone.

    Returns the folder as `netlist`, the `run`, the number of files, synapses and neurons, and for
    "loihi2" what the integers cost.

    Raises UserError for a run that the target cannot hold, or a folder that may not be replaced.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    _check_choice("target", target, ("loihi2", "nir"))
    _check_choice("spikes", spikes, ("binary", "graded"))
    if target == "nir" and spikes != "binary":
        raise UserError("--spikes is for --target loihi2: a NIR graph takes counts either way")
    if target == "nir" and text is not None:
        raise UserError("--text is for --target loihi2: nothing is measured of a NIR graph")
    if target == "nir" and teacher is not None:
        raise UserError("--teacher is for --target loihi2: a NIR graph is compared with nothing")
    folder = runs.resolve("run", _text(run))
    if target == "nir":
        return _nir(folder, _path(out), force, progress)
    texts = _text(text), _text(teacher)
    return _loihi2(folder, _path(out), spikes, *texts, force, progress)


def _loihi2(
    folder: Path,
    out: Path | None,
    spikes: Literal["binary", "graded"],
    text: str | None,
    teacher: str | None,
    force: bool,
    progress: Progress,
) -> dict[str, Any]:
    from neurtransformer import runs
    from neurtransformer.errors import UserError
    from neurtransformer.folders import Place, new_folder

    plastic = runs.is_plastic(folder)
    for option, given in (("--text", text), ("--teacher", teacher)):
        if plastic and given is not None:
            raise UserError(f"{option} is for a GPT-2: {folder} reads drawings and has no teacher")
    place = Place("netlist", str(folder), out)
    with new_folder(place, force=force) as fresh, progress.status("exporting") as note:
        if plastic:
            manifest, cost, provenance = _write_plastic(folder, fresh, spikes, note)
        else:
            manifest, cost, provenance = _write_text(
                folder, fresh, spikes, text, teacher, note, progress.remark
            )
    if cost:
        runs.update_report(folder, "integer", cost, provenance)
    return {
        "netlist": place.made,
        "run": folder,
        "target": "loihi2",
        "spikes": spikes,
        "files": len(manifest.files) + 1,
        "synapses": manifest.totals.synapses,
        "neurons": manifest.totals.neurons,
        "weight_bits": manifest.totals.weight_bits,
        **cost,
    }


def _write_plastic(
    folder: Path, fresh: Path, spikes: Literal["binary", "graded"], note: Note
) -> "Written":
    """Write the netlist of a plastic transformer; its accuracy is what `icl omniglot` measures."""
    from neurtransformer.icl.plastic import load as load_plastic
    from neurtransformer.icl.plastic import quantised
    from neurtransformer.loihi.netlist import write
    from neurtransformer.provenance import run_sha256
    from neurtransformer.runs import read_json

    sha256 = run_sha256(folder, read_json(folder / "config.json"))
    encoders, _ = load_plastic(folder)
    note("quantising")
    model = quantised(encoders["float"])
    manifest = write(fresh, model, None, spikes, made_from=folder, run_sha256=sha256, progress=note)
    return manifest, {}, {}


def _write_text(
    folder: Path,
    fresh: Path,
    spikes: Literal["binary", "graded"],
    text: str | None,
    teacher: str | None,
    note: Note,
    remark: Note,
) -> "Written":
    """Write the netlist of a language model, and measure what the integers cost on `text`, for None
    on CPython's, if the tokenizer reads English."""
    from neurtransformer.errors import UserError
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.integer.quality import evaluate_integer
    from neurtransformer.loihi.netlist import write
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import UnreadableText, load_blocks

    note("reading the run")
    spiking, tokenizer = load_run(folder)
    # whoever names a teacher wants to hear of a mistake before the long work
    found = None if teacher is None else teacher_of(folder, spiking, teacher)
    note("quantising")
    model = IntegerGPT2.from_spiking(spiking)
    # before the long work, in which nobody wants to be told of a mistake
    block = min(_INTEGER_BLOCK, spiking.config.context)
    try:
        blocks = load_blocks(text, tokenizer, block, split="heldout", limit_tokens=_INTEGER_TOKENS)
    except UnreadableText as error:
        if text is not None:
            raise
        blocks = None
        remark(f"what the integers cost is not measured: {error}")
    sha256 = model_sha256(spiking)
    manifest = write(
        fresh, model, tokenizer, spikes, made_from=folder, run_sha256=sha256, progress=note
    )
    if blocks is None:
        return manifest, {}, {}
    note("measuring what the integers cost")
    provenance = stamp(weights_sha256=sha256, text_sha256=text_sha256(blocks))
    try:
        found = found or teacher_of(folder, spiking, None)
    except UserError as error:  # the netlist does not need it
        remark(f"not compared with the dense model: {error}")
        return manifest, evaluate_integer(model, spiking, None, blocks), provenance
    provenance |= {"teacher": found.source, "teacher_sha256": found.sha256}
    return manifest, evaluate_integer(model, spiking, found.dense, blocks), provenance


def _nir(folder: Path, out: Path | None, force: bool, progress: Progress) -> dict[str, Any]:
    from neurtransformer.folders import Place, new_folder

    place = Place("nir", str(folder), out)
    with new_folder(place, force=force) as fresh:
        from neurtransformer import nir_export
        from neurtransformer.integer.model import IntegerGPT2
        from neurtransformer.provenance import model_sha256
        from neurtransformer.spiking.load import load_run

        with progress.status("exporting") as note:
            note("reading the run")
            spiking, _ = load_run(folder)
            note("quantising")
            model = IntegerGPT2.from_spiking(spiking)
            sha256 = model_sha256(spiking)
            manifest = nir_export.write(
                fresh, model, made_from=folder, run_sha256=sha256, progress=note
            )
    return {
        "netlist": place.made,
        "run": folder,
        "target": "nir",
        "files": len(manifest["graphs"]) + 1,
        **manifest["totals"],
        "left_out": manifest["left_out"],
    }


# --- running a netlist ---


def simulate(
    netlist: Named = None,
    prompt: str | None = None,
    *,
    data: str | Path | None = None,
    backend: Literal["lava", "integer"] = "lava",
    tokens: int = 8,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run a prompt, or drawings, through a netlist and compare every spike and state.

    netlist: the folder that `export` wrote for "loihi2". prompt: the text to run, for a language
    model; `tokens` more are written behind it. data: the folder of Omniglot's archives, for a
    plastic transformer. backend: "lava" compares Lava, in fixed point, with the integer model;
    "integer" compares the integer model's time steps with its counts, without Lava.

    Returns the folder as `netlist`, how many integers were `compared`, the number of `mismatches`,
    `max_abs_difference`, and for a prompt the `text` that follows and whether both sides wrote the
    `same_text`. A result with mismatches is returned like any other.

    Raises UserError if the netlist is damaged, the prompt does not fit, or Lava is missing; and if
    not exactly one of `prompt` and `data` is given.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    _check_choice("backend", backend, ("lava", "integer"))
    _check_least("tokens", tokens, 1)
    if (prompt is None) == (data is None):
        raise UserError("give --prompt TEXT, or --data FOLDER for a netlist that reads drawings")
    folder = runs.resolve("netlist", _text(netlist))
    if backend == "lava":
        import neurtransformer.loihi.lava_compat  # noqa: F401  (says so if Lava is missing)
    if prompt is not None:
        values = _prompt(folder, prompt, backend, tokens, progress)
    else:
        values = _drawings(folder, cast("Path", _path(data)), backend, progress)
    return {"netlist": folder, **values}


def _prompt(
    folder: Path,
    prompt: str,
    backend: Literal["lava", "integer"],
    tokens: int,
    progress: Progress,
) -> dict[str, Any]:
    from neurtransformer import runs
    from neurtransformer.loihi.netlist import read_text
    from neurtransformer.loihi.simulate import prompt_ids
    from neurtransformer.loihi.simulate import simulate as compare
    from neurtransformer.provenance import stamp

    loaded = read_text(folder)
    ids = prompt_ids(loaded, prompt, tokens)
    networks = len(loaded.manifest.networks)
    with progress.bar(f"simulating ({backend})", networks, "networks") as advance:
        values = compare(
            loaded, ids, backend, tokens=tokens, on_network=lambda name: advance(1, name)
        )
    if backend == "lava" and loaded.manifest.run is not None:
        run = Path(loaded.manifest.run)
        if runs.is_one("run", run):
            exported = stamp(weights_sha256=loaded.manifest.run_sha256)
            runs.update_report(run, "simulate", values, exported)
    return values


def _drawings(
    folder: Path, data: Path, backend: Literal["lava", "integer"], progress: Progress
) -> dict[str, Any]:
    """One episode of as many characters as the netlist has labels, or as there are."""
    from neurtransformer.errors import UserError
    from neurtransformer.icl import omniglot, plastic
    from neurtransformer.loihi.episode import simulate_episode
    from neurtransformer.loihi.netlist import read_plastic

    config = (loaded := read_plastic(folder)).model.config
    if config.side != omniglot.SIDE:
        raise UserError(f"{folder} reads drawings of other sides than {omniglot.SIDE}")
    with progress.status(f"simulating ({backend})") as note:
        note("reading drawings")
        # no matter which: what is asked here is whether both do the same
        drawings = omniglot.load_drawings(data)
        ways = min(config.ways, drawings.size[0])
        episode = omniglot.draw_episodes(*drawings.size, ways, 1, 1, seed=0)
        shown, labels = (x[0] for x in plastic.tokens(episode))
        ink = drawings.ink.reshape(-1, omniglot.SIDE, omniglot.SIDE)[shown]
        note(f"{len(ink)} drawings")
        values = simulate_episode(
            loaded, plastic.ink_counts(ink, config.timesteps), labels, backend
        )
    return {**values, "answer": str(episode.answer[0]), "ways": ways, "shots": 1}


# --- what a caller may give ---


def _text(name: Named) -> str | None:
    return None if name is None else str(name)


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _check_choice(name: str, given: str, choices: Sequence[str]) -> None:
    """Raise UserError unless `given` is one of `choices`; the command line has checked its own."""
    from neurtransformer.errors import UserError

    if given not in choices:
        raise UserError(f"{name} must be {' or '.join(choices)}, not {given!r}")


def _check_least(name: str, given: int | None, least: int) -> None:
    """Raise UserError if a number is given that is below `least`."""
    from neurtransformer.errors import UserError

    if given is not None and given < least:
        raise UserError(f"{name} must be {least} or more, not {given}")
