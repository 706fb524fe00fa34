"""What spikes cost while training: what is counted, and its gradient."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from neurtransformer.dense import load_dense
from neurtransformer.measure.counts import Shape
from neurtransformer.measure.energy import layer_spikes
from neurtransformer.measure.operations import spiking_attention, spiking_feed_forward
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.recipe import Code, Coding, Digits
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import CodingNeuron
from neurtransformer.spiking.synops import cost_of, counting_costs, share_of, soft_spikes


def text(count: int, length: int) -> Tensor:
    return torch.randint(0, 4096, (count, length), generator=torch.Generator().manual_seed(0))


def converted(
    dense: Path, kind: str, coding: Coding, digits: Digits = "binary"
) -> SpikingGPT2LMHeadModel:
    return convert(
        load_dense(str(dense))[0], text(2, 16), 5, str(dense), coding=coding, attention=kind,
        attention_code=Code(5, coding), digits=digits,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "coding", "digits"),
    [
        ("ttfs", "phase", "binary"),
        ("ttfs", "phase", "signed"),
        ("ttfs", "rate", "binary"),
        ("linear", "rate", "binary"),
    ],
)
def test_they_are_those_that_the_energy_estimate_counts(
    tiny_dense_folder: Path, kind: str, coding: Coding, digits: Digits
) -> None:
    """The two were written apart. Only synapses that hold weights, and the scores of the race."""
    model, tokens = converted(tiny_dense_folder, kind, coding, digits), text(2, 16)
    with torch.no_grad(), counting_costs(model) as found, counting_spikes(model) as counter:
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
    spikes_sent = sum(
        n.encode + n.query + n.key + n.value + n.merged + n.mlp_encode + n.hidden for n in spikes
    )
    assert torch.stack(found).sum(0).tolist() == pytest.approx([expected, spikes_sent], rel=1e-5)
    assert cost_of(model, tokens).tolist() == pytest.approx([expected, spikes_sent], rel=1e-5)


def test_a_share_is_of_operations_and_of_spikes() -> None:
    before = torch.tensor([1000.0, 10.0])
    assert float(share_of(before, before)) == 1
    assert float(share_of(torch.tensor([500.0, 10.0]), before)) == pytest.approx(0.75)
    assert float(share_of(torch.tensor([1000.0, 2.0]), before)) == pytest.approx(0.6)


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
