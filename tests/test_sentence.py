"""What `neurtx eval` notes of one sentence: a race, a raster of spikes, attention maps."""

import base64
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from neurtransformer.measure.charts import charts
from neurtransformer.measure.maps import attention_maps
from neurtransformer.measure.race import one_race
from neurtransformer.measure.raster import raster, spike_train
from neurtransformer.measure.sentence import SENTENCE
from neurtransformer.runs import read_json
from neurtransformer.spiking.coding import (
    phase_spikes_from_total,
    signed_spikes_from_total,
    spikes_from_total,
)
from neurtransformer.spiking.load import load_run, load_teacher
from neurtransformer.text import prompt_ids

MOST_BYTES = 30_000
"""Of report.json, for all three."""


def test_the_race_that_is_noted_is_the_one_that_is_run(
    tiny_race_run: Path, nano_tokenizer: Any
) -> None:
    """Its steps and shares are those of the membranes, simulated step by step."""
    from neurtransformer.spiking.attention.race import listen

    model, _ = load_run(tiny_race_run)
    found = one_race(model, load_teacher(model), nano_tokenizer)
    assert found is not None
    ids = prompt_ids(nano_tokenizer, SENTENCE)
    assert "".join(found["tokens"]) == SENTENCE
    raced: list[Any] = []
    hook = model.blocks[found["layer"]].attn.neurons.register_forward_hook(
        lambda module, args, output: raced.append(output)
    )
    model.steps = True
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    ((spikes, running),) = raced
    fired = spikes[:, found["head"], -1]
    first = int(fired.any(-1).nonzero()[0])
    times = [x.nonzero().flatten().tolist() for x in fired.T]
    assert found["step"] == [time[0] - first if time else None for time in times]
    one_hot = torch.eye(len(ids)).expand(2, -1, -1)
    *weights, number = listen(spikes, running, one_hot)[found["head"], -1].tolist()
    assert found["share"] == pytest.approx([weight / number for weight in weights])


@pytest.mark.parametrize("signed", [False, True])
def test_spikes_follow_from_counts(signed: bool) -> None:
    """They are those of the neurons that SpikingJelly simulates."""

    def trains(counts: Tensor, coding: str, per_step: int, digits: str = "binary") -> Tensor:
        row = {"coding": coding, "timesteps": 5, "per_step": per_step, "digits": digits}
        return torch.tensor([spike_train(int(n), row) for n in counts]).T

    def counts(most: int) -> Tensor:
        return torch.arange(-most if signed else 0, most + 1).float()

    digits = phase_spikes_from_total(counts(31), 5, signed)
    assert torch.equal(trains(counts(31), "phase", 1).float(), digits)
    digits = signed_spikes_from_total(counts(31), 5, signed)
    assert torch.equal(trains(counts(31), "phase", 1, "signed").float(), digits)
    for per_step in (1,) if signed else (1, 2):
        spikes = spikes_from_total(counts(5 * per_step), 5, signed, per_step)
        assert torch.equal(trains(counts(5 * per_step), "rate", per_step).float(), spikes)


def test_the_raster_shows_the_spikes_that_are_sent(either_run: Path, nano_tokenizer: Any) -> None:
    model, _ = load_run(either_run)
    found = raster(model, nano_tokenizer)
    assert found is not None
    assert "".join(found["tokens"]) == SENTENCE
    assert {row["layer"] for row in found["rows"]} == {0, 1}
    sent: dict[tuple[int, str], Tensor] = {}
    for row in found["rows"]:
        key = row["layer"], row["population"]
        neurons = model.blocks[row["layer"]].get_submodule(row["population"])
        neurons.register_forward_hook(
            lambda module, args, output, key=key: sent.update({key: output[:, 0]})
        )
    model.steps = True
    with torch.no_grad():
        model(torch.tensor([prompt_ids(nano_tokenizer, SENTENCE)]))
    assert len(sent) == len(found["rows"]) == 2 * 7
    for row in found["rows"]:
        spikes = sent[row["layer"], row["population"]]
        for neuron, text in zip(row["neurons"], row["counts"], strict=True):
            trains = [spike_train(int(count), row) for count in text.split()]
            assert torch.equal(torch.tensor(trains).T.float(), spikes[:, :, neuron])


def test_maps_are_those_of_the_models(either_run: Path, nano_tokenizer: Any) -> None:
    model, _ = load_run(either_run)
    dense = load_teacher(model)
    dense.set_attn_implementation("eager")
    for ours, theirs in zip(model.blocks, dense.transformer.h, strict=True):
        # random heads attend to everything alike
        ours.attn.c_attn.weight.data *= 30
        theirs.attn.c_attn.weight.data *= 30
    found = attention_maps(model, dense, nano_tokenizer)
    assert found is not None
    ids = torch.tensor([prompt_ids(nano_tokenizer, SENTENCE)])
    length = ids.shape[1]
    asked: dict[str, Tensor] = {}
    mixed: list[Tensor] = []

    def mix(attention: Any, args: Any, output: Any) -> None:
        query, key = (attention.split_heads(asked[name], 2) for name in ("query", "key"))
        # values that tell the tokens apart: what is mixed of them are the weights
        mean = attention.parallel(query, key, torch.eye(length).expand(1, 2, -1, -1))[0]
        mixed.append(mean / mean.sum(-1, keepdim=True))

    for block in model.blocks:
        for name in ("query", "key"):
            getattr(block.attn, name).register_forward_hook(
                lambda module, args, output, name=name: asked.update({name: output})
            )
        block.attn.register_forward_hook(mix)
    with torch.no_grad():
        softmax = dense(ids, output_attentions=True).attentions
        model(ids)
    assert "".join(found["tokens"]) == SENTENCE
    assert [head["layer"] for head in found["heads"]] == [0, 1]
    for head in found["heads"]:
        layer, number = head["layer"], head["head"]
        others = mixed[layer][1 - number]
        assert (others - mixed[layer][number]).abs().max() > 0.1
        for form, weights in (
            ("dense", softmax[layer][0, number]),
            ("spiking", mixed[layer][number]),
        ):
            rows = [[int(weight) / 1000 for weight in text.split()] for text in head[form]]
            assert [len(row) for row in rows] == list(range(1, length + 1))
            for i, row in enumerate(rows):
                assert row == pytest.approx(weights[i, : i + 1].tolist(), abs=0.002)
    if (race := one_race(model, dense, nano_tokenizer)) is not None:
        (same,) = (head for head in found["heads"] if head["layer"] == race["layer"])
        assert same["head"] == race["head"]


def test_what_is_noted_is_small_and_can_be_drawn(tiny_race_run: Path, nano_tokenizer: Any) -> None:
    model, _ = load_run(tiny_race_run)
    dense = load_teacher(model)
    noted = {
        "race": one_race(model, dense, nano_tokenizer),
        "raster": raster(model, nano_tokenizer),
        "attention_maps": attention_maps(model, dense, nano_tokenizer),
    }
    assert len(json.dumps(noted, indent=2)) < MOST_BYTES
    config = read_json(tiny_race_run / "config.json")
    drawn = charts({"eval": noted}, config, None)
    assert list(drawn) == ["race", "raster", "maps"]
    for picture in drawn.values():
        ElementTree.fromstring(picture.svg)
        assert base64.b64decode(picture.address.partition(",")[2]) == picture.svg
    assert "layer 0" in drawn["raster"].values and "on the same tokens" in drawn["maps"].values
    # what only looks like it is left out
    broken = {name: {**(of or {}), "tokens": None} for name, of in noted.items()}
    assert charts({"eval": broken}, config, None) == {}
    long = {**(noted["raster"] or {}), "rows": [{**noted["raster"]["rows"][0], "timesteps": 10**9}]}  # type: ignore[index]
    assert charts({"eval": {"raster": long}}, config, None) == {}


def test_a_sentence_that_does_not_fit_is_left_out(tiny_race_run: Path, nano_tokenizer: Any) -> None:
    model, _ = load_run(tiny_race_run)
    dense = load_teacher(model)
    model.config.n_positions = 5
    assert model.config.context == 5
    assert one_race(model, dense, nano_tokenizer) is None
    assert raster(model, nano_tokenizer) is None
    assert attention_maps(model, dense, nano_tokenizer) is None
