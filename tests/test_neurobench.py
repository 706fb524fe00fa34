"""NeuroBench's metrics of a run, beside what counting every single spike says."""

from pathlib import Path

import pytest
import torch
from conftest import words

from neurtransformer.measure.neurobench import neurobench, synapses
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear


@torch.no_grad()
def test_it_is_what_passes_through_the_weights(either_run: Path) -> None:
    """As NeuroBench counts: every call of a layer, time step by time step."""
    pytest.importorskip("spikingjelly")
    model, _ = load_run(either_run)
    ids = words(2, 24)
    for each in synapses(model):
        each.layer.weight[each.layer.weight.abs() < 0.01] = 0
    with counting_spikes(model) as counter:
        model(ids)
    found = neurobench(model, counter)

    effective = dense = sent = slots = 0.0

    def hear(layer: SpikeLinear, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal effective, dense
        spikes = args[0].abs().flatten(0, -2)  # (T x batch x length, inputs)
        nonzero = (layer.weight != 0).float()
        effective += float((spikes @ nonzero.T).sum())
        dense += len(spikes) * nonzero.numel()

    def told(neurons: CodingNeuron, args: object, output: torch.Tensor) -> None:
        nonlocal sent, slots
        sent += float(output.abs().sum())
        slots += output.numel() * neurons.per_step

    for each in synapses(model):
        each.layer.register_forward_pre_hook(hear)
    for module in model.modules():
        if isinstance(module, CodingNeuron):
            module.register_forward_hook(told)
    model.steps = True
    model(ids)
    tokens, head = ids.numel(), model.lm_head.weight
    operations = found["synaptic_operations"]
    assert operations["Effective_ACs"] == pytest.approx(effective / tokens)
    assert operations["Effective_MACs"] == head.numel()
    hidden = sum(  # a staggered pair is two neurons behind one channel of the tensor
        each.layer.weight.numel() * each.neurons.timesteps * (each.neurons.per_step - 1)
        for each in synapses(model)
    )
    assert operations["Dense"] == pytest.approx(dense / tokens + hidden + head.numel())
    assert found["activation_sparsity"] == pytest.approx(1 - sent / slots)
    weights = [head, *(each.layer.weight for each in synapses(model))]
    zeros, all_of_them = (sum(f(w) for w in weights) for f in (_zeros, torch.numel))
    assert zeros > 0 and found["connection_sparsity"] == pytest.approx(zeros / all_of_them)
    tensors = [*model.parameters(), *model.buffers()]
    assert found["footprint"] == sum(tensor.nbytes for tensor in tensors)


def _zeros(weight: torch.Tensor) -> int:
    return int((weight == 0).sum())
