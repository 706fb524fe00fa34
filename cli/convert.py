"""`neurtx convert`: a dense GPT-2 becomes a spiking run."""

from pathlib import Path
from typing import Literal

import click

from .output import answer, json_option


@click.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="A recipe, see configs/.")
@click.option("--attention", help="ttfs: a race of token neurons. linear: fast weights.")
@click.option("--coding", type=click.Choice(["rate", "phase"]), help="One code for all of it.")
@click.option("--timesteps", type=int, help="T of the code, 1 to 64; 1 to 8 of phase coding.")
@click.option("--text", help="Text to calibrate on: a file, - or a hub data set.")
@click.option("--force", is_flag=True, help="Replace a run that stands at --out.")
@json_option
def command(
    model: str,
    out: Path | None,
    config: Path | None,
    attention: str | None,
    coding: Literal["rate", "phase"] | None,
    timesteps: int | None,
    text: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn the dense GPT-2 MODEL into a spiking run.

    MODEL is a short name (`neurtx models`), a hub id or a local folder. Softmax attention becomes
    spiking self-attention in every layer: a race of token neurons in phase-coded spikes. The
    feed-forward blocks are rate coded. Thresholds are calibrated on text; nothing is trained yet
    (`neurtx finetune`).
    """
    import sys
    import time

    from neurtransformer import runs
    from neurtransformer.checkpoint import check_folder
    from neurtransformer.dense import ALIASES, KNOWN, load_dense, locate
    from neurtransformer.recipe import load_recipe

    # what can be wrong is found before anything heavy is imported
    recipe = load_recipe(config, timesteps, attention=attention, coding=coding)
    check_folder(locate(model))
    target = out or runs.default_folder("run", model)
    with runs.new_folder(target, force=force) as folder:
        from neurtransformer.spiking.calibrate import calibration_text
        from neurtransformer.spiking.convert import convert

        from .progress import bar

        started = time.monotonic()
        dense, tokenizer = load_dense(model)
        blocks = calibration_text(dense, tokenizer, text, recipe.calibration)
        local = model not in KNOWN and Path(model).is_dir()
        source = str(Path(model).resolve()) if local else ALIASES.get(model, model)
        # short enough that a log needs no lines of it
        quiet = not sys.stderr.isatty()
        with bar("calibrating", dense.config.n_layer, "blocks", quiet=quiet) as advance:
            spiking = convert(
                dense,
                blocks,
                recipe.timesteps,
                source,
                on_block=lambda: advance(1, ""),
                coding=recipe.coding,
                attention=recipe.attention,
                attention_code=recipe.attention_code,
            )
        spiking.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        values = {
            "model": model,
            "timesteps": recipe.timesteps,
            "coding": recipe.coding,
            "attention": recipe.attention,
            "attention_timesteps": recipe.attention_code.timesteps,
            "attention_coding": recipe.attention_code.coding,
            "parameters": spiking.num_parameters(),
            "calibration_tokens": blocks.numel(),
            "seconds": time.monotonic() - started,
        }
        report = {"convert": {**values, "text": text}, "recipe": recipe.model_dump()}
        runs.write_json(folder / "report.json", report)
    run = target.resolve()
    runs.remember("run", run)
    answer({"run": run, **values}, as_json=as_json, title="converted")
