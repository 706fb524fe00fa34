"""`neurtx convert`: a dense language model becomes a spiking run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from .output import answer, json_option

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
    from neurtransformer import api, runs

    from . import progress

    values = api.convert(
        model,
        out,
        config=config,
        attention=attention,
        coding=coding,
        timesteps=timesteps,
        text=text,
        force=force,
        progress=progress,
    )
    runs.remember("run", values["run"])
    answer(values, as_json=as_json, title="converted")
    if values.get("ppl_ratio", 1.0) > _POOR:
        click.echo(f"neurtx: {_advice(values)}", err=True)


def _advice(values: Mapping[str, Any]) -> str:
    """What to do about a conversion that is far from the dense model."""
    ways = []
    if values["coding"] == "rate":
        ways.append("--coding phase")
    elif values["timesteps"] < _BEST_PHASE:
        ways.append(f"--timesteps {_BEST_PHASE}")
    ways += ["more text (calibration.tokens in a --config, or --text)", "neurtx finetune"]
    return (
        f"on text it has not seen its perplexity is {values['ppl_ratio']:.2f} times that of the "
        f"dense model. What helps: {'; '.join(ways)}"
    )
