"""Why conversion may fail in larger models, measured: depth, and channels of unequal size.

    python scripts/growth.py MODEL... [--attention KIND] [--text FILE] [--timesteps T]

For every model, with nothing trained and the attention of the default recipe or of KIND: the
relative squared error of the final hidden states when one block's attention or feed-forward network
is spiking, on average over blocks, and when the first n blocks are. Then the feed-forward blocks of
the first model alone, when a few channels of the normalised residual stream are larger than the
rest, as they become in larger GPT-2s: the model is rewritten so that it computes the same (gain of
the LayerNorm times f, weights that read the channel by 1 / f), and coded with a threshold per
channel, ours, and with one per layer.

Ratios of trained networks against size: `scripts/quality.py --model MODEL --rung finetune`.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from neurtransformer.dense import load_dense
from neurtransformer.families.base import tapped
from neurtransformer.recipe import load_recipe
from neurtransformer.spiking.calibrate import calibration_text, fit_threshold
from neurtransformer.spiking.convert import carry_over, convert
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.text import load_blocks
from quality import Gelu, Softmax, measure, with_dense_parts

OUTLIERS = 4
FACTORS = (1, 4, 16, 64)
Part = tuple[int, str]


def partly_spiking(
    spiking: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, parts: set[Part]
) -> SpikingGPT2LMHeadModel:
    """`spiking` with all but `parts`, (block, "attn" or "mlp"), taken from `dense`."""
    model = copy.deepcopy(spiking)
    theirs = cast("list[GPT2Block]", dense.transformer.h)
    for index, (ours, block) in enumerate(zip(model.blocks, theirs, strict=True)):
        if (index, "attn") not in parts:
            ours.ln_1, ours.attn = block.ln_1, cast(nn.Module, Softmax(block.attn))
        if (index, "mlp") not in parts:
            ours.ln_2, ours.mlp = block.ln_2, cast(nn.Module, Gelu(block.mlp))
    return model.eval()


@torch.no_grad()
def error(model: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, ids: Tensor) -> float:
    """Squared error of the final hidden states over their variance, on ids (n, length)."""
    wrong = total = 0.0
    for block in ids.split(1):
        target = dense.transformer(block).last_hidden_state
        found = model(block).last_hidden_state
        wrong += float((found - target).square().sum())
        total += float((target - target.mean((0, 1))).square().sum())
    return wrong / total


@torch.no_grad()
def with_outliers(dense: GPT2LMHeadModel, factor: float) -> GPT2LMHeadModel:
    """The same function, with OUTLIERS channels behind each ln_2 `factor` times as large."""
    model = copy.deepcopy(dense)
    for index, block in enumerate(model.transformer.h):
        generator = torch.Generator().manual_seed(index)
        channels = torch.randperm(model.config.n_embd, generator=generator)[:OUTLIERS]
        block.ln_2.weight[channels] *= factor
        block.ln_2.bias[channels] *= factor
        block.mlp.c_fc.weight[channels] /= factor
    return model


@torch.no_grad()
def one_threshold_per_layer(
    model: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, ids: Tensor
) -> None:
    """Code all channels in front of each feed-forward block with the threshold best for all."""
    carry_over(model, dense)
    with tapped(dense) as taps:
        dense(ids)
    for block, tap in zip(model.blocks, taps, strict=True):
        encode, c_fc = block.mlp.encode, block.mlp.c_fc
        center = tap["mlp_in"].flatten(0, 1).mean(0)
        x = (tap["mlp_in"].flatten(0, 1) - center).reshape(-1, 1)
        threshold, _ = fit_threshold(x, [torch.zeros(1)], encode.most, signed=True)
        encode.threshold.fill_(float(threshold))
        encode.center.copy_(center)
        c_fc.bias.add_(c_fc.weight @ center)
        block.mlp.c_proj.bias.add_(block.mlp.c_proj.weight @ block.mlp.hidden.center)


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--text", help="Held-out text; default CPython's.")
@click.option("--attention", help="ttfs or linear; default the recipe's.")
@click.option("--timesteps", type=click.IntRange(1, 64), help="Default the recipe's.")
@click.option("--limit", type=click.IntRange(min=2), default=4096, show_default=True)
def main(
    models: tuple[str, ...],
    text: str | None,
    attention: str | None,
    timesteps: int | None,
    limit: int,
) -> None:
    """Print what each block's code costs, and what unequal channels do."""
    recipe, console = load_recipe(timesteps=timesteps, attention=attention), Console()
    depth = Table(
        "model",
        "parameters",
        f"one attention ({recipe.attention})",
        "one feed-forward",
        "first 1, 2, ... blocks",
    )

    def converted(dense: GPT2LMHeadModel, calibration: Tensor) -> SpikingGPT2LMHeadModel:
        return convert(
            dense,
            calibration,
            recipe.timesteps,
            "growth",
            coding=recipe.coding,
            attention=recipe.attention,
            attention_code=recipe.attention_code,
            digits=recipe.digits,
        )

    loaded: list[tuple[GPT2LMHeadModel, Tensor, Tensor]] = []
    for name in models:
        dense, tokenizer = load_dense(name)
        calibration = calibration_text(dense, tokenizer, None, recipe.calibration)
        length = dense.config.n_positions
        ids = load_blocks(text, tokenizer, length, split="heldout", limit_tokens=limit)
        loaded.append((dense, calibration, ids))
        spiking = converted(dense, calibration)
        blocks = range(dense.config.n_layer)

        def of(parts: set[Part], dense=dense, spiking=spiking, ids=ids) -> float:
            return error(partly_spiking(spiking, dense, parts), dense, ids)

        single = {part: [of({(i, part)}) for i in blocks] for part in ("attn", "mlp")}
        first = [of({(i, part) for i in range(n + 1) for part in ("attn", "mlp")}) for n in blocks]
        depth.add_row(
            Path(name).name,
            f"{dense.num_parameters() / 1e6:.1f} M",
            *(f"{sum(single[part]) / len(blocks):.3f}" for part in ("attn", "mlp")),
            " ".join(f"{x:.3f}" for x in first),
        )
    console.print(depth)

    dense, calibration, ids = loaded[0]
    table = Table("factor of the outliers", "a threshold per channel", "one threshold per layer")
    for factor in FACTORS:
        large = with_outliers(dense, factor)

        def ratio(
            change: Callable[[SpikingGPT2LMHeadModel], None], large: GPT2LMHeadModel = large
        ) -> str:
            model = converted(large, calibration)
            change(model)
            found = measure(with_dense_parts(model, large, feedforward=False), large, ids)
            return f"{found['ppl_ratio']:.3f}"

        per_layer = ratio(lambda m, large=large: one_threshold_per_layer(m, large, calibration))
        table.add_row(str(factor), ratio(lambda m: None), per_layer)
    console.print(table)


if __name__ == "__main__":
    main()
