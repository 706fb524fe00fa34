"""The ladder: what each step from the dense model to the spiking one costs, and fair controls.

    python scripts/quality.py OUT [--seeds N] [--steps N] [--text FILE]... [--train-text FILE]
      [--model MODEL] [--rung NAME]...

Every network is measured on the same held-out tokens, those that are trained with several seeds on
the same training tokens, each by the recipe of its kind of attention: fast weights (`linear`) or a
race (`ttfs`). What is measured is kept in OUT network by network: a ladder that was
stopped goes on where it was when the same command is given again.
"""

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from neurtransformer.dense import load_dense
from neurtransformer.measure.energy import estimate
from neurtransformer.measure.quality import counting_spikes, evaluate
from neurtransformer.recipe import Code, Finetune, load_recipe
from neurtransformer.runs import BUNDLED, read_json, write_json, write_text
from neurtransformer.spiking.attention.linear import LinearAttention
from neurtransformer.spiking.attention.ttfs import RaceAttention
from neurtransformer.spiking.calibrate import calibration_text
from neurtransformer.spiking.convert import carry_over, convert
from neurtransformer.spiking.feedforward import SpikingFeedForward
from neurtransformer.spiking.finetune import (
    batch_at,
    bfloat16_products,
    finetune,
    rate_at,
    training_text,
)
from neurtransformer.spiking.innate import first_token_of
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.text import load_blocks
from quality_spikingjelly import RECIPES
from quality_spikingjelly import converted as spikingjelly_converted
from quality_table import table

DENSE_RATE = 3e-4
"""Peak learning rate of the dense control."""

FEED_FORWARD = (
    *(Code(t, "rate") for t in (2, 4, 8, 16, 32)),
    *(Code(t, "phase") for t in (2, 4, 8)),
)
SPIKINGJELLY = (*((recipe, 8) for recipe in RECIPES), ("rate_max", 32))
RACES = Code(5, "phase"), Code(8, "phase")
"""Of networks that have one code all the way; the first is trained too."""

KINDS = {"linear": "fast weights", "ttfs": "race"}
SHIPPED = "gpt2-nano-spiking", "gpt2-nano-phase", "gpt2-nano-sparse", "gpt2-nano-linear"


class Softmax(nn.Module):
    """A dense block's attention in the place of an SSA."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, None]:
        return self.attention(x)[0], None


class Gelu(nn.Module):
    """A dense block's feed-forward network, or one of the same shape, in the place of ours."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.mlp(x)


class OwnValue(LinearAttention):
    """The no-attention control: each token passes on its own value and sees no other."""

    def forward(self, x: Tensor, steps: bool = False, *_: Any, **__: Any) -> tuple[Tensor, None]:
        value = self.code(x, steps)[2]
        spikes = self.merged(self.merge(value.sum(0) if steps else value), steps)
        return self.c_proj(spikes, self.merged.spike_value, steps), None


@dataclass(frozen=True)
class Rung:
    """One network of the ladder. build: seed -> network. trained: its seed matters."""

    name: str
    build: Callable[[int], SpikingGPT2LMHeadModel]
    trained: bool = False


@dataclass(frozen=True)
class Ladder:
    """What all rungs share: the dense model, the text, the recipe of each kind of attention."""

    dense: GPT2LMHeadModel
    calibration: Tensor
    recipes: dict[str, Finetune]
    code: Code
    race_code: Code
    training: Callable[[int], Tensor]

    def converted(self, code: Code | None = None, *, innate: bool = True) -> SpikingGPT2LMHeadModel:
        """Fast weights, with one code for all of it. innate: with a first token, which a softmax
        attention that is put in their place would not see."""
        timesteps, coding, digits = code or self.code
        return convert(
            self.dense,
            self.calibration,
            timesteps,
            "ladder",
            coding=coding,
            attention="linear",
            digits=digits,
            first_token=first_token_of(self.dense) if innate else None,
        )

    def race(self, code: Code | None = None) -> SpikingGPT2LMHeadModel:
        """A race by the default recipe, or with one code for all of it."""
        timesteps, coding, digits = code or self.code
        return convert(
            self.dense,
            self.calibration,
            timesteps,
            "ladder",
            coding=coding,
            attention="ttfs",
            attention_code=code or self.race_code,
            digits=digits,
            first_token=first_token_of(self.dense),
        )

    def trained(self, model: SpikingGPT2LMHeadModel, seed: int) -> SpikingGPT2LMHeadModel:
        recipe = self.recipes[model.config.attention]
        with click.progressbar(length=recipe.steps, file=sys.stderr) as bar:
            finetune(
                model,
                self.dense,
                self.training(seed),
                recipe,
                seed=seed,
                device="cpu",
                checkpoint=None,
                resume=False,
                on_step=lambda step: bar.update(1),
            )
        return model

    def blind(self) -> SpikingGPT2LMHeadModel:
        model = self.converted()
        for block in model.blocks:
            block.attn.__class__ = OwnValue
        return model

    def shortsighted(self) -> SpikingGPT2LMHeadModel:
        """The control that is harder to beat: through L layers a token still sees L before it."""
        model = self.converted()
        for block in model.blocks:
            # all but the last write is forgotten at once
            block.attn.shift.fill_(0)
            block.attn.present.fill_(1.0)
        return model

    def dense_finetuned(self, seed: int) -> SpikingGPT2LMHeadModel:
        """The dense model after as many steps on the same tokens, by next-token prediction."""
        dense = copy.deepcopy(self.dense).requires_grad_(True).train()
        optimizer = torch.optim.AdamW(dense.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
        blocks = self.training(seed)
        recipe = self.recipes["ttfs"]
        steps = range(recipe.steps)
        with bfloat16_products(), click.progressbar(steps, file=sys.stderr) as bar:
            for step in bar:
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(step, recipe.steps, DENSE_RATE)
                tokens = batch_at(step, blocks, recipe.batch, seed)
                loss = dense(tokens, labels=tokens).loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
                optimizer.step()
        model = self.converted(innate=False)
        carry_over(model, dense)
        return with_dense_parts(model, dense.requires_grad_(False).eval())

    def rungs(self) -> Iterator[Rung]:
        yield Rung("dense, fine-tuned on the same tokens", self.dense_finetuned, trained=True)
        for code in FEED_FORWARD:
            yield Rung(
                f"feed-forward only, {code.coding}, T = {code.timesteps}",
                lambda seed, code=code: with_dense_parts(
                    self.converted(code, innate=False), self.dense, feedforward=False
                ),
            )
        for recipe, t in SPIKINGJELLY:
            yield Rung(
                f"feed-forward only, SpikingJelly's {recipe}, T = {t}",
                lambda seed, recipe=recipe, t=t: with_dense_parts(
                    self.converted(innate=False),
                    spikingjelly_converted(self.dense, self.calibration, recipe, t),
                ),
            )
        yield from self.fast_weights()
        yield from self.races()
        for name in SHIPPED:
            if (BUNDLED / name).is_dir():
                kind = KINDS[read_json(BUNDLED / name / "config.json").get("attention", "linear")]
                yield Rung(
                    f"{name} ({kind}), as shipped",
                    lambda seed, name=name: load_run(BUNDLED / name)[0],
                )

    def fast_weights(self) -> Iterator[Rung]:
        yield Rung("fast weights, nothing trained", lambda seed: self.converted())
        yield Rung(
            "no attention",
            lambda seed: self.trained(self.blind(), seed),
            trained=True,
        )
        yield Rung(
            "fast weights, each token sees itself and the one before",
            lambda seed: self.trained(self.shortsighted(), seed),
            trained=True,
        )
        yield Rung(
            "fast weights only, feed-forward dense",
            lambda seed: self.trained(
                with_dense_parts(self.converted(), self.dense, attention=False), seed
            ),
            trained=True,
        )
        yield Rung(
            "fast weights: `neurtx finetune`",
            lambda seed: self.trained(self.converted(), seed),
            trained=True,
        )
        yield Rung(
            "fast weights, phase coding: `neurtx finetune`",
            lambda seed: self.trained(self.converted(Code(self.code.timesteps, "phase")), seed),
            trained=True,
        )

    def races(self) -> Iterator[Rung]:
        yield Rung(
            "race only, feed-forward dense, nothing trained",
            lambda seed: with_dense_parts(self.race(), self.dense, attention=False),
        )
        yield Rung("race, default recipe, nothing trained", lambda seed: self.race())
        for code in RACES:
            yield Rung(
                f"race, {code.coding} T = {code.timesteps}, nothing trained",
                lambda seed, code=code: self.race(code),
            )
        yield Rung(
            "race: `neurtx finetune`",
            lambda seed: self.trained(self.race(), seed),
            trained=True,
        )
        first = RACES[0]
        yield Rung(
            f"race, {first.coding} T = {first.timesteps}: `neurtx finetune`",
            lambda seed: self.trained(self.race(first), seed),
            trained=True,
        )


def with_dense_parts(
    model: SpikingGPT2LMHeadModel,
    dense: GPT2LMHeadModel,
    *,
    attention: bool = True,
    feedforward: bool = True,
) -> SpikingGPT2LMHeadModel:
    """`model` with the attention or the feed-forward blocks of `dense` in the place of its own."""
    theirs = cast("list[GPT2Block]", copy.deepcopy(dense.transformer.h))
    for ours, block in zip(model.blocks, theirs, strict=True):
        if attention:
            ours.attn = cast(LinearAttention, Softmax(block.attn))
        if feedforward:
            ours.ln_2, ours.mlp = block.ln_2, cast(SpikingFeedForward, Gelu(block.mlp))
    return model.eval()


def measure(
    model: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel, blocks: Tensor
) -> dict[str, float]:
    """Quality and its price on blocks (n, length); energy only where every part is spiking."""
    with counting_spikes(model) as counter:
        values = evaluate(model, dense, blocks, counter)
    names = (
        "ppl_dense",
        "ppl_ratio",
        "cosine_similarity",
        "token_agreement",
        "spikes_per_token",
        "tokens",
    )
    found = {name: values[name] for name in names}
    if all(
        type(block.attn) in (LinearAttention, RaceAttention) and not isinstance(block.mlp, Gelu)
        for block in model.blocks
    ):
        energy = estimate(model, counter)
        for part in ("attention", "model"):
            found[f"{part}_reduction_percent"] = energy[part]["reduction_percent"]
    return found


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", default="gpt2-nano", show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), help="Of each training; default the recipe's.")
@click.option("--text", multiple=True, help="Held-out text beside CPython's. May be repeated.")
@click.option("--train-text", help="Text to train on; default the recipe's.")
@click.option("--rung", "wanted", multiple=True, help="Only networks whose name holds this.")
@click.option("--limit", type=click.IntRange(min=2), default=8192, show_default=True)
def main(
    out: Path,
    model: str,
    seeds: int,
    steps: int | None,
    text: tuple[str, ...],
    train_text: str | None,
    wanted: tuple[str, ...],
    limit: int,
) -> None:
    """Measure every rung, and write OUT/ladder.md and OUT/ladder.json."""
    names = ["CPython", *(Path(source).stem for source in text)]
    if len(set(names)) < len(names):
        raise click.UsageError(f"two held-out texts of one name would share a column: {names}")
    dense, tokenizer = load_dense(model)
    length = dense.config.n_positions - 1  # one is the innate token's
    recipe = load_recipe()
    recipes = {
        kind: load_recipe(attention=kind).finetune.changed(steps=steps, block=length)
        for kind in KINDS
    }
    heldout = {
        name: load_blocks(source, tokenizer, length, split="heldout", limit_tokens=limit)
        for name, source in zip(names, (None, *text), strict=True)
    }
    ladder = Ladder(
        dense,
        calibration_text(dense, tokenizer, None, recipe.calibration),
        recipes,
        recipe.code,
        recipe.attention_code,
        # the recipes train on as many tokens
        cache(lambda seed: training_text(dense, tokenizer, train_text, recipes["ttfs"], seed)),
    )
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": model,
        "recipes": {kind: recipe.model_dump() for kind, recipe in recipes.items()},
        "train_text": train_text,
    }
    rungs = [r for r in ladder.rungs() if not wanted or any(x in r.name for x in wanted)]
    if not rungs:
        raise click.UsageError(f"no network's name holds any of {wanted}")
    rows = []
    # all rungs once before any a second time: a ladder that is stopped is a ladder of fewer seeds
    for seed, rung in product(range(seeds), rungs):
        if seed > 0 and not rung.trained:
            continue
        key = json.dumps([settings, rung.name, seed, text, limit])
        file = out / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            click.echo(f"{rung.name}, seed {seed}", err=True)
            network = rung.build(seed)
            texts = {name: measure(network, dense, x) for name, x in heldout.items()}
            write_json(file, {"rung": rung.name, "seed": seed, "texts": texts})
        rows.append(read_json(file))
        write_json(out / "ladder.json", {**settings, "rows": rows})
        write_text(out / "ladder.md", table(rows, list(heldout)))
    click.echo((out / "ladder.md").read_text())


if __name__ == "__main__":
    main()
