"""Channels of the attention that were left out: silent in the integer network and in Lava, too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import words
from test_lava import compare, entering

from neurtransformer.dense import load_dense
from neurtransformer.integer import quantise
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist
from neurtransformer.recipe import Code
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import SpikingLanguageModel

EVERY_KEY, EVERY_VALUE = 3, 4


@pytest.fixture(params=["binary", "signed"])
def thinned(request: pytest.FixtureRequest, tiny_dense_folder: Path) -> SpikingLanguageModel:
    model = convert(
        load_dense(str(tiny_dense_folder))[0], words(2, 32), 5, str(tiny_dense_folder),
        coding="phase", attention="ttfs", attention_code=Code(5, "phase"), digits=request.param,
        first_token=0,
    )  # fmt: skip
    for attention in (block.attn for block in model.blocks):
        attention.leave_out_keys(out_of(attention.rows[1], EVERY_KEY))
        attention.leave_out_values(out_of(attention.rows[2], EVERY_VALUE))
    return model


def out_of(channels: int, every: int) -> torch.Tensor:
    return torch.arange(channels) % every == 0


def test_it_is_silent_there_whatever_comes(
    thinned: SpikingLanguageModel, nano_tokenizer: Any, tmp_path: Path
) -> None:
    """Every spike and every state of a block, of the integer network and of Lava's."""
    netlist.write(tmp_path, IntegerGPT2.from_spiking(thinned), nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    (network,) = (each for each in found.manifest.networks if each.name == "h.0.attn")
    x = entering(found, network, 1, 4)
    trace = found.model.networks[network.name].steps(x, network.phase, network.slots)
    width = thinned.config.sizes.width
    keys, values = (out_of(width, every).numpy() for every in (EVERY_KEY, EVERY_VALUE))
    silent = np.concatenate([keys, keys, values])
    for node, out in (("qkv", silent), ("merged", values)):
        for quantity in ("u", "spikes"):
            found_in = trace[f"{node}.{quantity}"]
            assert not found_in[..., out].any() and found_in[..., ~out].any()
    tally = compare(found, network, x)
    assert tally.mismatches == 0 and tally.compared > 0


def test_what_is_not_there_has_no_say_in_what_spikes_carry() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64))
    weight[:, 3] *= 50
    carried = quantise.carried(weight)
    assert carried.any()
    most_left_out = np.concatenate([np.zeros((8, 200)), weight], axis=1)
    assert (quantise.carried(most_left_out)[200:] == carried).all()
    assert (quantise.carried(np.zeros((8, 4))) == 0).all()
