"""Synaptic operations of a network in training, with a gradient, so that few of them can be learnt.

A spike costs one operation at each synapse that it reaches. Their number per token (SynOps) as a
part of the loss follows Sorbaro et al. 2020 (arXiv 1912.01268). The spikes of token neurons in a
race are left out: how many there are depends on how sharp the attention is, not on thresholds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurtransformer.spiking.attention import SpikingSelfAttention
from neurtransformer.spiking.coding import spikes_in
from neurtransformer.spiking.model import SpikingBlock, SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron


def soft_spikes(counts: Tensor, neuron: CodingNeuron) -> Tensor:
    """How many spikes send counts (...): exact forward, smooth backward.

    A rate-coded count is its number of spikes. That of the digits of a phase-coded one jumps up and
    down; its gradient is that of log2(1 + count), which it equals where all digits are 1.
    """
    size = counts.abs()
    if neuron.coding == "rate":
        return size
    smooth = torch.log2(1 + size)
    exact = spikes_in(counts.detach(), neuron.coding, neuron.timesteps)
    return smooth + (exact - smooth).detach()


@contextmanager
def counting_synops(model: SpikingLanguageModel) -> Iterator[list[Tensor]]:
    """While open, every layer of coding neurons appends its synaptic operations per token, one
    scalar, to the list given: the sum over a forward pass is what a token costs."""
    found: list[Tensor] = []
    hooks = []

    def listener(fan_out: Callable[[int], float]) -> Callable[..., None]:
        def hear(module: CodingNeuron, args: tuple[Any, ...], counts: Tensor) -> None:
            spikes = soft_spikes(counts, module).flatten(0, -2).sum(-1).mean()
            found.append(spikes * fan_out(counts.shape[-2]))

        return hear

    for block in model.blocks:
        for neuron, fan_out in fan_outs(block):
            hooks.append(neuron.register_forward_hook(listener(fan_out)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def fan_outs(block: SpikingBlock) -> Iterator[tuple[CodingNeuron, Callable[[int], float]]]:
    """Every layer of coding neurons of a block, and how many synapses one of its spikes reaches in
    a text of so many tokens."""
    attention, mlp = block.attn, block.mlp
    for neuron, synapse in (
        (attention.encode, attention.c_attn),
        (attention.merged, attention.c_proj),
        (mlp.encode, mlp.c_fc),
        (mlp.hidden, mlp.c_proj),
    ):
        yield neuron, partial(_always, len(synapse.weight))
    for index, neuron in enumerate((attention.query, attention.key, attention.value)):
        yield neuron, partial(_in_core, attention, index)


def _always(fan_out: float, length: int) -> float:
    return fan_out


def _in_core(attention: SpikingSelfAttention, index: int, length: int) -> float:
    return attention.fan_outs((length + 1) / 2)[index]
