"""Synaptic operations while training: what is counted, its gradient, and the budget for them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neurtransformer.dense import load_dense
from neurtransformer.measure.counts import Shape
from neurtransformer.measure.energy import layer_spikes
from neurtransformer.measure.operations import spiking_attention, spiking_feed_forward
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.recipe import Code, Coding, Finetune, load_recipe
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.finetune import allowed_at, finetune
from neurtransformer.spiking.load import load_teacher
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import CodingNeuron
from neurtransformer.spiking.synops import counting_synops, soft_spikes


def text(count: int, length: int) -> Tensor:
    return torch.randint(0, 4096, (count, length), generator=torch.Generator().manual_seed(0))


def converted(dense: Path, kind: str, coding: Coding) -> SpikingGPT2LMHeadModel:
    return convert(
        load_dense(str(dense))[0], text(2, 16), 5, str(dense), coding=coding, attention=kind,
        attention_code=Code(5, coding),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "coding"), [("ttfs", "phase"), ("ttfs", "rate"), ("linear", "rate")]
)
def test_they_are_those_that_the_energy_estimate_counts(
    tiny_dense_folder: Path, kind: str, coding: Coding
) -> None:
    """The two were written apart. Only synapses that hold weights, and the scores of the race."""
    model, tokens = converted(tiny_dense_folder, kind, coding), text(2, 16)
    with torch.no_grad(), counting_synops(model) as found, counting_spikes(model) as counter:
        model(tokens)
    assert len(found) == 7 * len(model.blocks)
    shape = Shape.of(model.config)
    spikes = layer_spikes(model, counter, counter.spikes)
    expected = 0.0
    for layer in spikes:
        attention, mlp = spiking_attention(shape, layer), spiking_feed_forward(shape, layer)
        expected += sum(part[name].ac for part, name in (
            (attention, "c_attn"), (attention, "c_proj"), (mlp, "c_fc"), (mlp, "c_proj")
        ))  # fmt: skip
        if kind == "ttfs":
            expected += layer.query * (16 + 1) / 2 + layer.key + layer.value
        else:
            expected += (layer.query + layer.key) * (shape.width // shape.heads + 1) + layer.value
    assert float(sum(found)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("coding", ["rate", "phase"])
def test_a_larger_count_is_dearer_to_the_gradient_whatever_its_digits(coding: Coding) -> None:
    neuron = CodingNeuron(1, 4, signed=True, coding=coding)
    counts = torch.arange(-neuron.most, neuron.most + 1.0).requires_grad_()
    spikes = soft_spikes(counts, neuron)
    digits = [abs(n).bit_count() if coding == "phase" else abs(n) for n in counts.int().tolist()]
    assert spikes.tolist() == pytest.approx(digits)
    spikes.sum().backward()
    assert counts.grad is not None
    assert torch.equal(counts.grad.sign(), counts.detach().sign())


def test_the_budget_is_reached_halfway() -> None:
    assert [allowed_at(step, 8, 0.5) for step in (0, 1, 3, 7)] == pytest.approx(
        [0.875, 0.75, 0.5, 0.5]
    )


def test_a_budget_is_kept_and_costs_loss(tiny_dense_folder: Path) -> None:
    def trained(budget: float | None) -> list[Any]:
        model = converted(tiny_dense_folder, "ttfs", "phase")
        recipe: Finetune = load_recipe(attention="ttfs").finetune.changed(
            steps=60, batch=2, distil_rate=0.005, spikes_budget=budget
        )
        return finetune(
            model, load_teacher(model), text(16, 16), recipe, seed=0, device="cpu",
            checkpoint=None, resume=False, on_step=lambda step: None,
        )  # fmt: skip

    free, bound = trained(None), trained(0.6)
    assert {step.synops for step in free} == {0.0}
    share = [step.synops / bound[0].synops for step in bound]
    assert 0.5 < sum(share[-5:]) / 5 < 0.65 and min(share[:5]) > 0.9
    assert bound[-1].loss > free[-1].loss
