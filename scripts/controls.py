"""The fair controls for the perplexity ratio of a fine-tuned run.

    python scripts/controls.py RUN [--text FILE]... [--train-text FILE] [--limit TOKENS]

Four networks of the same dense model, evaluated on the same tokens:

- naive: converted, nothing trained;
- no attention: converted with heads that see only their own token, then fine-tuned as RUN was;
- feed-forward only: softmax attention kept, feed-forward blocks rate coded, nothing trained;
- spiking: RUN.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from neurtransformer.measure.quality import counting_spikes, evaluate
from neurtransformer.recipe import Finetune, Recipe
from neurtransformer.runs import read_json
from neurtransformer.spiking.calibrate import calibration_text
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.finetune import finetune, training_text
from neurtransformer.spiking.load import load_run, load_teacher
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.text import load_blocks


@torch.no_grad()
def feedforward_only(
    model: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, blocks: Tensor
) -> float:
    """Perplexity on blocks (n, length) of `dense` with the feed-forward blocks of `model`."""
    theirs = [block.mlp for block in dense.transformer.h]
    try:
        for block, spiking in zip(dense.transformer.h, model.blocks, strict=True):
            block.mlp = spiking.mlp
        losses = [float(dense(chunk, labels=chunk).loss) * len(chunk) for chunk in blocks.split(8)]
    finally:
        for block, mlp in zip(dense.transformer.h, theirs, strict=True):
            block.mlp = mlp
    return math.exp(sum(losses) / len(blocks))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", multiple=True, help="Held-out text; default CPython's. May be repeated.")
@click.option("--train-text", help="The --text that RUN was fine-tuned with, if any.")
@click.option("--limit", default=8192, show_default=True)
def main(run: Path, text: tuple[str, ...], train_text: str | None, limit: int) -> None:
    """Print one JSON object: text -> network -> perplexity ratio to the dense model of RUN."""
    spiking, tokenizer = load_run(run)
    dense = load_teacher(spiking)
    report = read_json(run / "report.json")
    recipe, done = Recipe.from_report(report, run), report["finetune"]
    train = recipe.finetune.changed(steps=done["steps"], train=done["train"])
    calibration = calibration_text(dense, tokenizer, None, recipe.calibration)
    naive, blind = (convert(dense, calibration, recipe.timesteps, str(run)) for _ in range(2))
    for block in blind.blocks:
        block.attn.shift.fill_(0)
        block.attn.present.fill_(1.0)
    training = training_text(dense, tokenizer, train_text, train, done["seed"])
    _train(blind, dense, training, train, done["seed"])
    networks = {"naive": naive, "no_attention": blind, "spiking": spiking}
    result = {}
    for source in text or (None,):
        length = dense.config.n_positions
        heldout = load_blocks(source, tokenizer, length, split="heldout", limit_tokens=limit)
        values = {name: _quality(n, dense, heldout) for name, n in networks.items()}
        ppl_dense = values["naive"]["ppl_dense"]
        result[source or "cpython"] = {
            "ppl_dense": ppl_dense,
            "feedforward_only": feedforward_only(naive, dense, heldout) / ppl_dense,
            **{name: value["ppl_ratio"] for name, value in values.items()},
        }
    print(json.dumps(result, indent=2))


def _quality(
    network: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, blocks: Tensor
) -> dict[str, Any]:
    with counting_spikes(network) as counter:
        return evaluate(network, dense, blocks, counter)


def _train(
    network: SpikingGPT2LMHeadModel,
    dense: GPT2LMHeadModel,
    training: Tensor,
    recipe: Finetune,
    seed: int,
) -> None:
    with click.progressbar(length=recipe.steps, file=sys.stderr) as bar:
        finetune(
            network,
            dense,
            training,
            recipe,
            seed=seed,
            device="cpu",
            checkpoint=None,
            resume=False,
            on_step=lambda step: bar.update(1),
        )


if __name__ == "__main__":
    main()
