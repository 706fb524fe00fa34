"""What the spikes of a network cost, with a gradient, so that few of them can be learnt.

A spike costs one operation at each synapse that it reaches, and it has to be sent. Both are counted
per token: the synaptic operations (SynOps; their number as a part of the loss follows Sorbaro et
al. 2020, arXiv 1912.01268) and the spikes themselves. The spikes of token neurons in a race are
left out: how many there are depends on how sharp the attention is, not on thresholds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurtransformer.spiking.attention import SpikingSelfAttention
from neurtransformer.spiking.model import SpikingBlock, SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron

Cost = Tensor
"""Synaptic operations and spikes per token, (2,)."""

OPERATIONS = 0.5
"""What part of a budget synaptic operations are; the rest are the spikes themselves."""


def soft_spikes(counts: Tensor, neuron: CodingNeuron) -> Tensor:
    """How many spikes send counts (...): exact forward, smooth backward.

    A rate-coded count is its number of spikes. That of the digits of a phase-coded one jumps up and
    down; its gradient is that of log2(1 + count), which it equals where all digits are 1, or, if
    they are signed, of log2(1 + 3 count) / 2, which it equals where every second one is.
    """
    size = counts.abs()
    if neuron.coding == "rate":
        return size
    smooth = torch.log2(1 + size) if neuron.digits == "binary" else torch.log2(1 + 3 * size) / 2
    exact = neuron.spikes_of(counts.detach())
    return smooth + (exact - smooth).detach()


@contextmanager
def counting_costs(model: SpikingLanguageModel) -> Iterator[list[Cost]]:
    """While open, every layer of coding neurons appends what its spikes cost to the list given: the
    sum over a forward pass is what a token costs."""
    found: list[Cost] = []
    hooks = []

    def listener(fan_out: Callable[[int], float]) -> Callable[..., None]:
        def hear(module: CodingNeuron, args: tuple[Any, ...], counts: Tensor) -> None:
            spikes = soft_spikes(counts, module).flatten(0, -2).sum(-1).mean()
            found.append(torch.stack([spikes * fan_out(counts.shape[-2]), spikes]))

        return hear

    for block in model.blocks:
        for neuron, fan_out in fan_outs(block):
            hooks.append(neuron.register_forward_hook(listener(fan_out)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def share_of(cost: Cost, before: Cost) -> Tensor:
    """What is left of a cost, one number: for one half the share of operations, and for the other
    that of spikes.

    Operations alone would leave keys and values as they are, each of whose spikes is written to one
    synapse; spikes alone, those that reach a thousand synapses.
    """
    operations, spikes = (cost / before).unbind()
    return OPERATIONS * operations + (1 - OPERATIONS) * spikes


@torch.no_grad()
def cost_of(model: SpikingLanguageModel, tokens: Tensor) -> Cost:
    """What the spikes of a token cost, on average over tokens (batch, length) int64."""
    with counting_costs(model) as found:
        model(tokens, logits_to_keep=1)
    return torch.stack(found).sum(0)


def fan_outs(block: SpikingBlock) -> Iterator[tuple[CodingNeuron, Callable[[int], float]]]:
    """Every layer of coding neurons of a block, and how many synapses one of its spikes reaches in
    a text of so many tokens."""
    attention, mlp = block.attn, block.mlp
    yield attention.encode, partial(_to_those_left, attention)
    for neuron, synapse in (
        (attention.merged, attention.c_proj),
        (mlp.encode, mlp.c_fc),
        (mlp.hidden, mlp.c_proj),
    ):
        yield neuron, partial(_always, len(synapse.weight))
    for index, neuron in enumerate((attention.query, attention.key, attention.value)):
        yield neuron, partial(_in_core, attention, index)


def _to_those_left(attention: SpikingSelfAttention, length: int) -> float:
    return sum(attention.rows) - sum(attention.left_out[:3])


def _always(fan_out: float, length: int) -> float:
    return fan_out


def _in_core(attention: SpikingSelfAttention, index: int, length: int) -> float:
    return attention.fan_outs((length + 1) / 2)[index]
