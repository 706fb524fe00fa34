"""The attention that is a race, in Lava: every spike time and state, and the learning engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lava import compare

from neurtransformer.integer.attention.ttfs import RaceAttention
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist
from neurtransformer.loihi.attention.ttfs import RACE_STEPS
from neurtransformer.loihi.nodes import Spikes
from neurtransformer.recipe import Coding
from neurtransformer.spiking.model import SpikingGPT2Config, SpikingGPT2LMHeadModel

pytestmark = pytest.mark.usefixtures("lava")


def random_race(
    seed: int, heads: int, dim: int, timesteps: int, coding: Coding, first: int | None = None
) -> IntegerGPT2:
    """One block with thresholds and levels for which neurons count all that they can, and scores
    lie many octaves apart. timesteps, coding: of the attention. first: the innate token."""
    rng = torch.Generator().manual_seed(seed)
    width = heads * dim
    config = SpikingGPT2Config(
        vocab_size=4096,
        n_positions=40,
        n_embd=width,
        n_head=heads,
        n_layer=1,
        n_inner=2 * width,
        timesteps=3,
        attention="ttfs",
        attention_timesteps=timesteps,
        attention_coding=coding,
        first_token=first,
    )
    spiking = SpikingGPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in spiking.named_parameters():
            size = 10.0 ** float(torch.empty(1).uniform_(-1, 0.3, generator=rng))
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * size)
            if name.endswith("threshold"):
                parameter.abs_().clamp_(min=0.01)
    model = IntegerGPT2.from_spiking(spiking)
    for quantity, threshold, steps in (
        ("encode.u", "encode.theta", 2),
        ("qkv.u", "qkv.theta", 2),
        ("race.score", "race.width", 40),
        ("merged.u", "merged.theta", 2),
    ):
        trace = model.attention[0].steps(stream(model, 33), timesteps + RACE_STEPS, timesteps)
        found = trace[quantity][:, -1]
        size = np.abs(found).reshape(33, heads, -1).mean((0, 2))
        shape = model.tensors[f"h.0.attn.{threshold}"].shape
        parts = size if threshold == "race.width" else size[0] / model.config.attention_code.most
        new = np.full(shape, parts * 2 / steps).clip(1, 2**15).astype(np.int32)
        model = IntegerGPT2(model.config, {**model.tensors, f"h.0.attn.{threshold}": new})
    return model


def stream(model: IntegerGPT2, tokens: int) -> np.ndarray:
    """A residual stream (tokens, width) of all magnitudes."""
    rng = np.random.default_rng(0)
    size = 2.0 ** rng.uniform(4, 20, (tokens, 1))
    return np.rint(rng.standard_normal((tokens, model.config.width)) * size).astype(np.int64)


@pytest.mark.parametrize(
    ("spikes", "timesteps", "coding", "tokens", "first"),
    [
        pytest.param("binary", 5, "phase", 33, None, marks=pytest.mark.slow),
        ("graded", 5, "phase", 8, None),
        ("binary", 4, "rate", 5, None),
        ("binary", 1, "rate", 4, None),
        ("binary", 5, "phase", 9, 7),
        ("graded", 4, "rate", 5, 0),
    ],
)
def test_lava_is_the_integer_model(
    tmp_path: Path,
    nano_tokenizer: Any,
    spikes: Spikes,
    timesteps: int,
    coding: Coding,
    tokens: int,
    first: int | None,
) -> None:
    model = random_race(timesteps, 2, 8, timesteps, coding, first)
    netlist.write(tmp_path, model, nano_tokenizer, spikes)
    found = netlist.read_text(tmp_path)
    network = found.manifest.networks[1]
    slots = timesteps if spikes == "binary" else 1
    assert (network.slots, network.phase) == (slots, slots + RACE_STEPS)
    tally = compare(found, network, stream(model, tokens))
    assert tally.mismatches == 0, tally
    assert tally.compared > tokens * network.phase * 16


@pytest.mark.parametrize("first", [5, pytest.param(None, marks=pytest.mark.slow)])
def test_the_learning_engine_is_the_integer_model(first: int | None) -> None:
    """Two heads of a network: every read, and every synapse after every token."""
    from neurtransformer.loihi.race_engine import compare as compare_engine

    model = random_race(0, 3, 8, 5, "phase", first)
    x = model.embedding.counts(torch.randint(4096, (10,)).numpy())
    attention = model.attention[0]
    assert isinstance(attention, RaceAttention)
    tally = compare_engine(attention, x, range(2))
    assert tally.mismatches == 0, tally
    neurons = 10 if first is None else 11
    assert tally.compared == 2 * (10 * 9 + 10 * neurons * (8 + 9))
