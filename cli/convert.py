"""`neurtx convert`: a dense language model becomes a spiking run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from .output import answer, json_option

_MEASURED = ("ppl_ratio", "cosine_similarity", "token_agreement")
_POOR = 1.1
_BEST_PHASE = 8


@click.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="A recipe, see configs/.")
@click.option("--attention", help="ttfs, the default: a race of neurons. linear: fast weights.")
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
    """Turn the dense language model MODEL into a spiking run.

    MODEL is a short name (`neurtx models`), a hub id, a local folder or a GGUF file, of a GPT-2 or
    a Llama. Softmax attention becomes spiking self-attention in every layer: a race of token
    neurons in phase-coded spikes, or with
    `--attention linear` fast weights. The feed-forward blocks are rate coded, or with `--coding
    phase` all is phase coded but the keys, queries and values of fast weights. Thresholds are
    calibrated on text; nothing is trained yet (`neurtx finetune`). At the end the run is measured
    beside MODEL, on about a thousand tokens that calibration has not seen.
    """
    import sys
    import time

    from neurtransformer import runs
    from neurtransformer.dense import check, load_dense, locate
    from neurtransformer.folders import Place, new_folder
    from neurtransformer.recipe import load_recipe

    # what can be wrong is found before anything heavy is imported
    recipe = load_recipe(config, timesteps, attention=attention, coding=coding)
    check(locate(model))
    place = Place("run", model, out)
    with new_folder(place, force=force) as folder:
        from neurtransformer.measure.quality import counting_spikes, evaluate
        from neurtransformer.provenance import model_sha256, stamp, text_sha256
        from neurtransformer.spiking.calibrate import calibration_text, unseen_text
        from neurtransformer.spiking.convert import convert
        from neurtransformer.spiking.innate import first_token_of
        from neurtransformer.spiking.load import source_name

        from .progress import bar

        started = time.monotonic()
        dense, tokenizer = load_dense(model)
        blocks = calibration_text(dense, tokenizer, text, recipe.calibration)
        source = source_name(model)
        first = first_token_of(dense) if recipe.innate_first_token else None
        # short enough that a log needs no lines of it
        quiet = not sys.stderr.isatty()
        with bar("calibrating", dense.config.num_hidden_layers, "blocks", quiet=quiet) as advance:
            spiking = convert(
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
            with counting_spikes(spiking) as counter:
                measured = evaluate(spiking, dense, unseen, counter)
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
    run = place.made
    runs.remember("run", run)
    answer({"run": run, **values}, as_json=as_json, title="converted")
    if values.get("ppl_ratio", 1.0) > _POOR:
        click.echo(f"neurtx: {_advice(values, recipe.coding, recipe.timesteps)}", err=True)


def _advice(values: Mapping[str, Any], coding: str, timesteps: int) -> str:
    """What to do about a conversion that is far from the dense model."""
    ways = []
    if coding == "rate":
        ways.append("--coding phase")
    elif timesteps < _BEST_PHASE:
        ways.append(f"--timesteps {_BEST_PHASE}")
    ways += ["more text (calibration.tokens in a --config, or --text)", "neurtx finetune"]
    return (
        f"on text it has not seen its perplexity is {values['ppl_ratio']:.2f} times that of the "
        f"dense model. What helps: {'; '.join(ways)}"
    )
