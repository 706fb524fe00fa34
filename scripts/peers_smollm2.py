"""What SpikingJelly 2.0 makes of a Llama, beside what `neurtx convert` makes of it.

    python scripts/peers_smollm2.py OUT --text FILE [--text FILE]... [--timesteps T]... [--limit N]
      [--model MODEL] [--network NAME]... [--in-time]

Its `ann2snn` imports `requests`, which nothing else here needs: `pip install requests` first.

Every network sees the same blocks of 511 tokens behind the model's first token, and is compared
with the dense model on those; every network is calibrated on the same text, which the dense model
wrote itself. What is measured is kept in OUT/peers.json: a call that was stopped goes on where it
was when the same command is given again.

`Qwen2SNNRecipe` takes Qwen2 alone. But a Llama is a Qwen2 whose biases of query, key and value are
zero: `as_qwen2` makes that one, and checks that its logits are the Llama's. In the recipe

- spikes, of value -1, 0 or 1 times a threshold per channel, are the embedding, the queries and keys
  after their rotation, the values, and what enters each down projection;
- floats are everything else: what enters the other projections (query, key and value; output; gate
  and up; LM head), the softmax and its weights, both products of the attention, SiLU and its
  product, the norms, the residual stream. They are floats in every time step: each such operation
  is computed anew on all that has arrived so far, and hands on the difference to the step before.

An encoder sums over time whatever reaches it and begins anew, so its counts, and with them all
figures here, depend on sums over time alone. So that T = 160 or 512 costs no more than the dense
model, these sums are computed directly, as the recipe's own mode `qcfs_sg` does, but without its
T - 1 steps of zeros. `--in-time` runs neurons in all their steps instead (mode `signed_if`): the
same up to rounding, T times slower.

Settings of the recipe: T; levels, into which a channel's calibrated range is cut, so that T over
levels is the headroom above it; the quantile of the absolute values that is taken for the range.
Beside the --timesteps, two that SpikingJelly publishes figures for are measured.

`RateCodingRecipe` on the feed-forward blocks, attention staying dense: both inputs of its three
linear layers go through pairs of IF neurons, as in scripts/quality_spikingjelly.py; what is between
them, SiLU and the product, stays float.

Our networks never code the model's first token, whose activations are up to a thousand times those
of all others (neurtransformer/spiking/innate.py). SpikingJelly has no such thing. Each of its
conversions is measured as it is, and, "innate first token", with that same help: the first token is
left out of the calibration and computed in floats, its keys and values handed to the rest.
"""

import copy
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.ann2snn import (
    ModuleConverter,
    Qwen2SNNCalibration,
    Qwen2SNNConfig,
    Qwen2SNNModel,
    Qwen2SNNRecipe,
    SignedQCFSSequenceEncoder,
    calibrate_qwen2_snn,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from neurtransformer.dense import load_dense
from neurtransformer.families.base import tapped
from neurtransformer.loss import next_token_losses
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.recipe import Coding, load_recipe
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.calibrate import calibration_text
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.innate import after_first, first_token_of
from neurtransformer.text import load_blocks
from quality_spikingjelly import rate_coded

BLOCK = 511
PUBLISHED = {
    "Qwen2.5-0.5B, T = 160, 16 levels, quantile 0.999": 1.0820,
    "Qwen2.5-1.5B, T = 512, 128 levels, quantile 1": 1.0087,
    "Qwen2.5-3B, T = 512, 16 levels, quantile 0.999": 1.0857,
}
"""Perplexity ratios on WikiText-2 from SpikingJelly's tutorial "Transformer ANN2SNN Conversion"."""

RATES = "rate_max", "rate_robust"
MOST_RATE_STEPS = 64
"""A rate-coded network runs in time: no more than so many steps of it."""


class Setting(NamedTuple):
    """Of the Qwen2 recipe."""

    timesteps: int
    levels: int
    quantile: float

    def __str__(self) -> str:
        t, levels, quantile = self
        return f"T = {t}, {levels} levels, quantile {quantile:g}"


DOCUMENTED = Setting(160, 16, 0.999), Setting(512, 128, 1.0)

Output = tuple[Tensor, Tensor, float]
"""Logits and final hidden states (1, length, ...), and how many spikes were sent."""

Network = Callable[[Tensor], Output]
"""What a network answers to token numbers (1, 1 + length), the first token in front."""


@dataclass(frozen=True)
class Expected:
    """What the dense model says of a block of tokens (1, 1 + length), the first token left out."""

    ids: Tensor
    hidden: Tensor
    best: Tensor
    nll: float


@torch.no_grad()
def expected(dense: LlamaForCausalLM, blocks: Tensor, first: int) -> list[Expected]:
    """For blocks (n, length), which do not begin with the first token."""
    found = []
    for ids in after_first(blocks, first).split(1):
        output = dense(ids, output_hidden_states=True)
        logits, hidden = output.logits[:, 1:], output.hidden_states[-1][:, 1:]
        found.append(Expected(ids, hidden, logits.argmax(-1), _nll(logits, ids)))
    return found


@torch.no_grad()
def measure(network: Network, text: list[Expected]) -> dict[str, float]:
    """How near `network` is to the dense model."""
    theirs = ours = cosine = same = spikes = 0.0
    predicted = seen = 0
    for block in text:
        logits, hidden, sent = network(block.ids)
        length = block.ids.shape[1] - 1
        logits, hidden = logits[:, -length:], hidden[:, -length:]
        theirs += block.nll
        ours += _nll(logits, block.ids)
        cosine += float(F.cosine_similarity(hidden, block.hidden, dim=-1).sum())
        same += float((logits.argmax(-1) == block.best).sum())
        spikes += sent
        predicted += length - 1
        seen += length
    return {
        "ppl_dense": math.exp(theirs / predicted),
        "ppl_ratio": math.exp((ours - theirs) / predicted),
        "cosine_similarity": cosine / seen,
        "token_agreement": same / seen,
        "spikes_per_token": spikes / seen,
        "tokens": seen,
    }


def _nll(logits: Tensor, ids: Tensor) -> float:
    """Summed negative log-likelihood, nats, of logits (1, length, vocabulary) behind the first of
    ids (1, 1 + length)."""
    return float(next_token_losses(logits, ids[:, 1:]).sum())


# --- Qwen2SNNRecipe ---


@torch.no_grad()
def as_qwen2(dense: LlamaForCausalLM) -> Qwen2ForCausalLM:
    """The Qwen2 that computes what `dense` does. Raises ValueError if there is none."""
    theirs = dense.config
    shared = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        *("hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
    )
    config = Qwen2Config(**{key: getattr(theirs, key) for key in shared}, use_sliding_window=False)
    qwen = Qwen2ForCausalLM(config).eval()
    biases = {n: torch.zeros_like(p) for n, p in qwen.named_parameters() if n.endswith(".bias")}
    qwen.load_state_dict({**biases, **dense.state_dict()})
    ids = torch.arange(64)[None] % theirs.vocab_size
    logits = dense(ids).logits
    if not torch.allclose(qwen(ids).logits, logits, atol=1e-4 * float(logits.abs().max())):
        raise ValueError("as a Qwen2 this model computes something else")
    return qwen


class OnlyCounted(nn.Module):
    """A Qwen2 that attends to all tokens, whatever the mask says: so `calibrate_qwen2_snn` takes
    activations of the tokens in the mask, and nothing else changes."""

    def __init__(self, qwen: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.config, self.model, self.qwen = qwen.config, qwen.model, qwen

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Any:
        return self.qwen(input_ids=input_ids, **settings)


def calibrated(
    qwen: Qwen2ForCausalLM, tokens: Tensor, counted: Tensor, quantile: float
) -> Qwen2SNNCalibration:
    """Calibrated with one level, on those of tokens (batch, length) that are counted, a mask."""
    config = Qwen2SNNConfig(time_steps=1, calibration_levels=1, calibration_quantile=quantile)
    batches = [
        {"input_ids": ids, "attention_mask": mask.long()}
        for ids, mask in zip(tokens.split(1), counted.split(1), strict=True)
    ]
    return calibrate_qwen2_snn(OnlyCounted(qwen).eval(), batches, config)


class Qwen2Network:
    """A Qwen2 converted by SpikingJelly, as a Network."""

    def __init__(
        self,
        qwen: Qwen2ForCausalLM,
        ranges: Qwen2SNNCalibration,
        setting: Setting,
        *,
        innate: bool,
        in_time: bool,
    ) -> None:
        """ranges: from `calibrated`. innate: whether the first token stays float. in_time: whether
        neurons run step by step."""
        self.innate, self.mode = innate, "signed_if" if in_time else "qcfs_sg"
        t, levels, quantile = setting
        calibration = dataclasses.replace(
            ranges,
            time_steps=t,
            calibration_levels=levels,
            input_scale=ranges.input_scale / levels,
            layer_scales=tuple(
                {name: scale / levels for name, scale in layer.items()}
                for layer in ranges.layer_scales
            ),
        )
        config = Qwen2SNNConfig(t, levels, quantile)
        recipe = Qwen2SNNRecipe(calibration, config)
        self.model: Qwen2SNNModel = ModuleConverter(recipe).convert(qwen)
        self.model.set_collect_statistics(False)
        if not in_time:
            # the length of what is handed on; encoders have a number of steps of their own
            for module in (self.model, *self.model.layers):
                module.time_steps = 1
        self.spikes = 0.0
        self.hidden = torch.empty(0)
        self.model.norm.register_forward_hook(self._keep)
        for encoder in self.model.signed_encoders():
            self._count(encoder)

    def __call__(self, ids: Tensor) -> Output:
        self.spikes, past = 0.0, None
        if self.innate:
            functional.reset_net(self.model)
            first = self.model(ids[:, :1], encoding_mode="exact_td", use_cache=True)
            past, ids = first.past_key_values, ids[:, 1:]
        functional.reset_net(self.model)
        output = self.model(
            ids,
            torch.ones(1, ids.shape[1] + int(self.innate), dtype=torch.long),
            encoding_mode=self.mode,
            past_key_values=past,
            use_cache=past is not None,
        )
        return output.logits, self.hidden, self.spikes

    def _keep(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.hidden = output.sum(0)

    def _count(self, encoder: SignedQCFSSequenceEncoder) -> None:
        """Let an encoder tell how many spikes it sends."""
        encode, reconstruct = encoder.encode, encoder.reconstruct

        def counting_encode(value: Tensor, mask: Tensor | None = None) -> Tensor:
            spikes = encode(value, mask)
            self.spikes += float(spikes.count_nonzero())
            return spikes

        def counting_reconstruct(value: Tensor) -> Tensor:
            sums = reconstruct(value)
            self.spikes += float((sums / encoder.positive_neuron.v_threshold).abs().sum())
            return sums

        encoder.encode, encoder.reconstruct = counting_encode, counting_reconstruct


# --- RateCodingRecipe ---


class RateCodedFeedForward(nn.Module):
    """A Llama's feed-forward block with rate codes before its linear layers."""

    def __init__(
        self, mlp: LlamaMLP, driving: "Driving", recipe: str, timesteps: int, innate: bool
    ) -> None:
        super().__init__()
        self.mlp, self.innate = mlp, innate
        # a linear layer of a mean over time is the mean of it: that costs a T-th
        self.encode, self.hidden = (
            rate_coded(nn.Identity(), x[None], recipe, timesteps) for x in driving
        )

    def forward(self, x: Tensor) -> Tensor:
        coded = self.encode(x)
        hidden = self.mlp.act_fn(self.mlp.gate_proj(coded)) * self.mlp.up_proj(coded)
        out = self.mlp.down_proj(self.hidden(hidden))
        return torch.cat([self.mlp(x[:, :1]), out[:, 1:]], dim=1) if self.innate else out


class Driving(NamedTuple):
    """What drives both layers of neurons of a feed-forward block: (tokens, channels)."""

    mlp_in: Tensor
    hidden: Tensor


class RateNetwork:
    """The dense model with rate-coded feed-forward blocks, as a Network."""

    def __init__(
        self,
        dense: LlamaForCausalLM,
        driving: list[Driving],
        recipe: str,
        timesteps: int,
        innate: bool,
    ) -> None:
        self.model = copy.deepcopy(dense)
        for layer, x in zip(self.model.model.layers, driving, strict=True):
            layer.mlp = RateCodedFeedForward(layer.mlp, x, recipe, timesteps, innate)
        self.spikes = 0.0
        for module in self.model.modules():
            if isinstance(module, neuron.BaseNode):
                module.register_forward_hook(self._count)
        self.innate = innate

    def __call__(self, ids: Tensor) -> Output:
        self.spikes = 0.0
        output = self.model(ids, output_hidden_states=True)
        return output.logits, output.hidden_states[-1], self.spikes

    def _count(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.spikes += float(output[:, int(self.innate) :].count_nonzero())


@torch.no_grad()
def driving(dense: LlamaForCausalLM, tokens: Tensor, counted: Tensor) -> list[Driving]:
    """Of every block, for those of tokens (batch, length) that are counted, a mask."""
    parts = []
    for ids, mask in zip(tokens.split(1), counted.split(1), strict=True):
        with tapped(dense) as taps:
            dense.model(ids)
        parts.append([(tap["mlp_in"][mask], tap["hidden"][mask]) for tap in taps])
    return [
        Driving(*(torch.cat(values) for values in zip(*block, strict=True)))
        for block in zip(*parts, strict=True)
    ]


# --- all networks ---


class Rung(NamedTuple):
    """One network. build: how it is made."""

    name: str
    build: Callable[[], Network]


@dataclass(frozen=True)
class Peers:
    """What all networks share. tokens: to calibrate on, (batch, length)."""

    dense: LlamaForCausalLM
    tokens: Tensor
    first: int
    timesteps: tuple[int, ...]
    in_time: bool

    def rungs(self) -> Iterator[Rung]:
        yield from self.qwen2()
        yield from self.rates()
        for coding in (None, "phase"):
            code = "default recipe" if coding is None else "all phase coded, T = 8"
            yield Rung(f"neurtx convert, {code}", partial(self.ours, coding))

    def ours(self, coding: Coding | None) -> Network:
        recipe = load_recipe(coding=coding)
        model = convert(
            self.dense,
            self.tokens,
            recipe.timesteps,
            "peers",
            coding=recipe.coding,
            attention=recipe.attention,
            attention_code=recipe.attention_code,
            digits=recipe.digits,
            first_token=self.first,
        )

        def network(ids: Tensor) -> Output:
            with counting_spikes(model) as counter:
                output = model(ids[:, 1:])
            spikes = counter.spikes_per_token() * (ids.shape[1] - 1)
            return output.logits, output.last_hidden_state, spikes

        return network

    def qwen2(self) -> Iterator[Rung]:
        settings = [
            Setting(t, levels, quantile)
            for t in self.timesteps
            for levels in dict.fromkeys((t, max(1, t // 2)))
            for quantile in (1.0, 0.999)
        ]
        qwen = cache(lambda: as_qwen2(self.dense))
        ranges = cache(
            lambda quantile, innate: calibrated(qwen(), self.begun, self.counted(innate), quantile)
        )

        def build(setting: Setting, innate: bool) -> Network:
            found = ranges(setting.quantile, innate)
            return Qwen2Network(qwen(), found, setting, innate=innate, in_time=self.in_time)

        for setting in (*settings, *DOCUMENTED):
            for innate in (False, True):
                yield Rung(
                    f"Qwen2SNNRecipe, {setting}{', innate first token' * innate}",
                    partial(build, setting, innate),
                )

    def rates(self) -> Iterator[Rung]:
        inputs = cache(lambda innate: driving(self.dense, self.begun, self.counted(innate)))

        def build(recipe: str, timesteps: int, innate: bool) -> Network:
            return RateNetwork(self.dense, inputs(innate), recipe, timesteps, innate)

        for recipe in RATES:
            for t in (t for t in self.timesteps if t <= MOST_RATE_STEPS):
                for innate in (False, True):
                    yield Rung(
                        f"feed-forward only, {recipe}, T = {t}{', innate first token' * innate}",
                        partial(build, recipe, t, innate),
                    )

    @property
    def begun(self) -> Tensor:
        """The text to calibrate on, the first token in front: there it is no text's own."""
        begins = bool((self.tokens[:, 0] == self.first).all())
        return self.tokens if begins else after_first(self.tokens, self.first)

    def counted(self, innate: bool) -> Tensor:
        """Which of these tokens thresholds are fitted to."""
        return self.begun != self.first if innate else torch.ones_like(self.begun).bool()


def table(rows: list[dict[str, Any]]) -> Table:
    """Rows for people to read."""
    texts = list(rows[0]["texts"])
    head = [
        f"{name} (dense {values['ppl_dense']:.2f})" for name, values in rows[0]["texts"].items()
    ]
    found = Table("network", *head, "cosine", "agreement", "spikes a token")
    for row in rows:
        values = [row["texts"][name] for name in texts]
        found.add_row(
            row["network"],
            *(f"{x['ppl_ratio']:.3f}" if x["ppl_ratio"] < 1e4 else "> 10000" for x in values),
            " / ".join(f"{x['cosine_similarity']:.3f}" for x in values),
            " / ".join(f"{x['token_agreement']:.1%}" for x in values),
            " / ".join(f"{x['spikes_per_token']:,.0f}" for x in values),
        )
    return found


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--text", multiple=True, required=True, help="Held-out text. May be repeated.")
@click.option("--timesteps", type=click.IntRange(1, 512), multiple=True, default=(8, 16, 32))
@click.option("--limit", type=click.IntRange(min=BLOCK), default=2 * BLOCK, show_default=True)
@click.option("--model", default="smollm2-135m", show_default=True, help="A Llama.")
@click.option("--network", "wanted", multiple=True, help="Only networks whose name holds this.")
@click.option("--in-time", is_flag=True, help="Run the Qwen2 recipe's neurons step by step.")
def main(
    out: Path,
    text: tuple[str, ...],
    timesteps: tuple[int, ...],
    limit: int,
    model: str,
    wanted: tuple[str, ...],
    in_time: bool,
) -> None:
    """Measure every network, and write OUT/peers.json."""
    names = [Path(source).stem for source in text]
    if len(set(names)) < len(names):
        raise click.UsageError(f"two held-out texts of one name would share a column: {names}")
    dense, tokenizer = load_dense(model)
    first = first_token_of(dense)
    if not isinstance(dense, LlamaForCausalLM) or first is None:
        raise click.UsageError(f"{model} is no Llama with a first token")
    tokens = calibration_text(dense, tokenizer, None, load_recipe().calibration)
    heldout = {
        name: expected(
            dense, load_blocks(source, tokenizer, BLOCK, split="heldout", limit_tokens=limit), first
        )
        for name, source in zip(names, text, strict=True)
    }
    peers = Peers(dense, tokens, first, timesteps, in_time)
    chosen = [r for r in peers.rungs() if not wanted or any(x in r.name for x in wanted)]
    if not chosen:
        raise click.UsageError(f"no network's name holds any of {wanted}")
    settings = {"model": Path(model).name, "texts": names, "limit": limit, "in_time": in_time}
    out.mkdir(parents=True, exist_ok=True)
    file = out / "peers.json"
    kept = read_json(file) if file.exists() else {}
    rows = kept["rows"] if kept.get("settings") == settings else []
    done = {row["network"] for row in rows}
    for name, build in chosen:
        if name in done:
            continue
        click.echo(name, err=True)
        network = build()
        rows.append(
            {"network": name, "texts": {key: measure(network, x) for key, x in heldout.items()}}
        )
        write_json(file, {"settings": settings, "published": PUBLISHED, "rows": rows})
        # hooks and what they belong to hold each other: without this all networks stay in memory
        del network
        gc.collect()
    console = Console()
    console.print(table(rows))
    for name, ratio in PUBLISHED.items():
        console.print(f"SpikingJelly publishes, on WikiText-2: {ratio:.3f} for {name}")


if __name__ == "__main__":
    main()
