"""A spiking network in the metrics of NeuroBench, under NeuroBench's own names.

NeuroBench (Yik et al. 2025, Nature Communications 16:1545; github.com/NeuroBench/neurobench) counts
what passes through the weight matrices of a network, time step by time step, and so do these
functions, from spikes that were counted on text. One sample is one token here. As there, what an
attention multiplies without a weight matrix (scores, and the reading of values) is not counted:
`neurtx energy` does that.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from neurtransformer.measure.quality import SpikeCounter
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear


class Synapses(NamedTuple):
    """A weight matrix, the neurons in front of it, and their name in a `SpikeCounter`."""

    sent_by: str
    neurons: CodingNeuron
    layer: SpikeLinear


def synapses(model: SpikingLanguageModel) -> Iterator[Synapses]:
    """All weight matrices that spikes arrive at, block by block."""
    for i, block in enumerate(model.blocks):
        for name, part, pairs in (
            ("attn", block.attn, (("encode", "c_attn"), ("merged", "c_proj"))),
            ("mlp", block.mlp, (("encode", "c_fc"), ("hidden", "c_proj"))),
        ):
            for neurons, layer in pairs:
                sent_by = f"{i}.{name}.{neurons}"
                yield Synapses(sent_by, getattr(part, neurons), getattr(part, layer))


@torch.no_grad()
def neurobench(model: SpikingLanguageModel, counter: SpikeCounter) -> dict[str, Any]:
    """NeuroBench's metrics of a spiking network. counter: listened to `model` while it read text.

    Returns

    - `footprint`: bytes of all parameters and buffers, in the type they have in memory;
    - `connection_sparsity`: the share of weights that are zero, LM head included, 0 to 1;
    - `activation_sparsity`: the share of neurons and time steps without a spike, 0 to 1. A channel
      that sends -1, 0 or 1 in a step counts as one neuron, one that sends up to two spikes as two.
      Token neurons, of which a race has one for each token seen, are left out;
    - `synaptic_operations`, each per token: `Effective_ACs`, spikes times the weights other than
      zero that they arrive at; `Effective_MACs`, the products of the LM head, whose inputs are real
      numbers; `Dense`, both if every neuron fired in every step and no weight were zero.
    """
    tensors = [*model.parameters(), *model.buffers()]
    head = model.lm_head.weight
    layers = list(synapses(model))
    weights = [head, *(each.layer.weight for each in layers)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    effective = dense = 0.0
    for sent_by, neurons, layer in layers:
        per_token = counter.spikes[sent_by] / counter.tokens[sent_by]
        reached = (layer.weight != 0).sum(0, dtype=torch.float64)
        effective += float(per_token @ reached)
        dense += layer.weight.numel() * neurons.timesteps * neurons.per_step
    spikes = slots = 0.0
    for name, neurons in _populations(model):
        spikes += float(counter.spikes[name].sum()) / counter.tokens[name]
        slots += len(counter.spikes[name]) * neurons.timesteps * neurons.per_step
    return {
        "footprint": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "connection_sparsity": zeros / sum(weight.numel() for weight in weights),
        "activation_sparsity": 1 - spikes / slots,
        "synaptic_operations": {
            "Effective_MACs": float((head != 0).sum()),
            "Effective_ACs": effective,
            "Dense": dense + head.numel(),
        },
    }


def _populations(model: SpikingLanguageModel) -> Iterator[tuple[str, CodingNeuron]]:
    """All layers of neurons by their names in a `SpikeCounter`."""
    for name, module in model.named_modules():
        if isinstance(module, CodingNeuron):
            yield name.removeprefix("transformer.h."), module
