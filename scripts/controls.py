"""The fair controls for a perplexity ratio, on one model, one text and one recipe.

    python scripts/controls.py [--model gpt2-nano] [--text FILE]... [--steps N] [--train-text FILE]

Four networks of the same dense model, evaluated on the same tokens:

- naive: converted, nothing trained;
- no attention: converted with heads that see only their own token, then fine-tuned alike;
- feed-forward only: softmax attention kept, feed-forward blocks rate coded, nothing trained;
- spiking: converted and fine-tuned.
"""

import json
import math

import click
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from neurtransformer.dense import load_dense
from neurtransformer.measure.quality import evaluate
from neurtransformer.recipe import Finetune, load_recipe
from neurtransformer.spiking.calibrate import calibration_text
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.finetune import finetune, training_text
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
@click.option("--model", default="gpt2-nano", show_default=True)
@click.option("--text", multiple=True, help="Held-out text; default CPython's. May be repeated.")
@click.option("--train-text", help="Text to fine-tune on; default as `neurtx finetune`.")
@click.option("--steps", type=int)
@click.option("--limit", default=8192, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    model: str,
    text: tuple[str, ...],
    train_text: str | None,
    steps: int | None,
    limit: int,
    seed: int,
) -> None:
    """Print one JSON object: text -> control -> perplexity ratio to the dense model."""
    dense, tokenizer = load_dense(model)
    recipe = load_recipe()
    train = recipe.finetune.changed(steps=steps)
    tokens = calibration_text(dense, tokenizer, None, recipe.calibration)
    training = training_text(dense, tokenizer, train_text, train, seed)

    def trained(network: SpikingGPT2LMHeadModel) -> SpikingGPT2LMHeadModel:
        _train(network, dense, training, train, seed)
        return network

    naive = convert(dense, tokens, recipe.timesteps, model)
    blind = convert(dense, tokens, recipe.timesteps, model)
    for block in blind.blocks:
        block.attn.shift.fill_(0)
        block.attn.present.fill_(1.0)
    networks = {
        "naive": naive,
        "no_attention": trained(blind),
        "spiking": trained(convert(dense, tokens, recipe.timesteps, model)),
    }
    result = {}
    for source in text or (None,):
        length = dense.config.n_positions
        heldout = load_blocks(source, tokenizer, length, split="heldout", limit_tokens=limit)
        ratios = {name: evaluate(n, dense, heldout) for name, n in networks.items()}
        ppl_dense = ratios["naive"]["ppl_dense"]
        result[source or "cpython"] = {
            "ppl_dense": ppl_dense,
            "feedforward_only": feedforward_only(naive, dense, heldout) / ppl_dense,
            **{name: values["ppl_ratio"] for name, values in ratios.items()},
        }
    print(json.dumps(result, indent=2))


def _train(
    network: SpikingGPT2LMHeadModel,
    dense: GPT2LMHeadModel,
    training: Tensor,
    recipe: Finetune,
    seed: int,
) -> None:
    with click.progressbar(length=recipe.steps, file=click.get_text_stream("stderr")) as bar:
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
