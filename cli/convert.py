"""`neurtx convert`: a dense language model becomes a spiking run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from .options import device_option, reporting, text_option
from .output import answer

_POOR = 1.1
_BEST_PHASE = 8


@click.command()
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder to write.  [default: a free one in ./runs]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A YAML file with the settings to change; configs/default.yaml lists all.",
)
@click.option("--attention", help="ttfs: a race of neurons (the default). linear: fast weights.")
@click.option(
    "--coding",
    type=click.Choice(["rate", "phase"]),
    help="How all neurons send numbers: rate counts spikes, phase sends binary digits.  [default: "
    "phase in the attention, rate elsewhere; with fast weights rate everywhere]",
)
@click.option(
    "--timesteps",
    type=int,
    help="How many time steps a neuron takes to send one value: 1 to 64 for rate, 1 to 8 for "
    "phase.",
)
@text_option("Text to fit thresholds to")
@click.option("--force", is_flag=True, help="Replace a run that stands at --out.")
@device_option
@reporting
def command(
    model: str,
    out: Path | None,
    config: Path | None,
    attention: str | None,
    coding: Literal["rate", "phase"] | None,
    timesteps: int | None,
    text: str | None,
    force: bool,
    device: str,
    as_json: bool,
) -> None:
    """Turn the dense language model MODEL into a spiking run.

    MODEL is a GPT-2 or a Llama: a short name (`neurtx models` lists them), a hub id, a local folder
    or a GGUF file.

    Softmax attention becomes spiking self-attention in every layer. By default that is a race of
    neurons, one for each past token, and `--attention linear` makes it fast weights. By default the
    attention is phase coded (spikes are binary digits) and the feed-forward blocks are rate coded
    (spikes are counted). `--coding phase` phase codes the whole network; only the keys, queries
    and values of fast weights stay rate coded.

    The thresholds of the neurons are fitted to text. Left out, the model writes it itself. Nothing
    is trained: `neurtx finetune` does that. At the end the run is compared with MODEL, on about a
    thousand tokens that the fit has not seen.
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
        device=device,
        force=force,
        progress=progress,
    )
    runs.remember("run", values["run"])
    answer(values, as_json=as_json, title="converted", command="convert")
    if values.get("ppl_ratio", 1.0) > _POOR:
        progress.remark(_advice(values))


def _advice(values: Mapping[str, Any]) -> str:
    """What to do about a conversion that is far from the dense model."""
    ways = []
    if values["coding"] == "rate":
        ways.append("--coding phase")
    elif values["timesteps"] < _BEST_PHASE:
        ways.append(f"--timesteps {_BEST_PHASE}")
    ways += ["more text (calibration.tokens in a --config, or --text)", "neurtx finetune"]
    return (
        f"on text that the fit has not seen, the perplexity is {values['ppl_ratio']:.2f} times "
        f"that of the dense model. This may help: {'; '.join(ways)}"
    )
