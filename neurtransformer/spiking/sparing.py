"""Where a network can do with fewer spikes: a start for training with a budget, nothing trained.

Three steps, on a little text:

1. *Listen.* What a change of a coded value does to the next-token distribution: the Fisher
   information, the mean square of the gradient of ``log p(token)``, tokens drawn from the dense
   model's distribution. A code of step s adds noise of variance s^2 / 12, so that it costs
   ``fisher * s^2 / 24`` nats of divergence per token.
2. *Turn.* Within a head queries and keys may be written in any basis, ``(A q) . (A^-T k)`` being
   ``q . k``, and so may values, whose basis the output projection takes back. The network stays the
   same. In the basis in which the second moments of a value and its Fisher information are equal
   and diagonal (a balanced realisation, Moore 1981) what matters is in few channels, and most
   channels need no spikes.
3. *Spread.* A step twice as large saves half a binary digit of a count or so. All channels save at
   the same price, in nats per cost of a spike, if their steps are as ``sqrt(cost / fisher)``. One
   price is searched at which the network costs what it may.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from neurtransformer.spiking.attention import SpikingSelfAttention
from neurtransformer.spiking.calibrate import fit_threshold
from neurtransformer.spiking.innate import dense_output
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron
from neurtransformer.spiking.synops import Cost, cost_of, fan_outs, share_of

SEARCH_STEPS = 14
"""Halvings of the range in which the price is searched, 2^PRICES of it on both sides of one."""

PRICES = 12.0

SILENT = 2.5
"""A spike that is worth so many times the largest value that a neuron can tell is never sent."""


@dataclass
class Layer:
    """A layer of coding neurons: what was heard of it. values: (n, channels), less their centre.
    gradients: (n, channels), nats of a text per unit of the value."""

    neuron: CodingNeuron
    fan_out: Callable[[int], float]
    values: Tensor
    gradients: Tensor


def listen(
    model: SpikingLanguageModel, teacher: PreTrainedModel, tokens: Tensor, seed: int
) -> list[list[Layer]]:
    """What all coding neurons of `model`, block by block, tell on tokens (batch, length), and what
    a change of it does."""
    heard: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def hear(module: CodingNeuron, args: tuple[Any, ...], counts: Tensor) -> Tensor:
        values, gradients = heard.setdefault(id(module), ([], []))
        driven = args[0] if module.activation is None else module.activation(args[0])
        values.append((driven - module.spread(module.center)).detach().flatten(0, -2))
        counts = counts if counts.requires_grad else counts.requires_grad_()
        counts.register_hook(
            lambda grad: gradients.append((grad / module.spike_value.detach()).flatten(0, -2))
        )
        return counts

    neurons = [neuron for block in model.blocks for neuron, _ in fan_outs(block)]
    hooks = [neuron.register_forward_hook(hear) for neuron in neurons]
    random = torch.Generator().manual_seed(seed)
    training = model.training
    model.train()
    try:
        for text in tokens.split(1):
            with torch.no_grad():
                logits, _ = dense_output(teacher, text, model.config.first_token)
            drawn = torch.multinomial(logits[0].softmax(-1).cpu(), 1, generator=random)
            ours = model(text).logits[0]
            F.cross_entropy(ours, drawn[:, 0].to(ours.device), reduction="sum").backward()
    finally:
        model.train(training)
        model.zero_grad()
        for hook in hooks:
            hook.remove()
    return [
        [
            Layer(neuron, fan_out, *(torch.cat(part) for part in heard[id(neuron)]))
            for neuron, fan_out in fan_outs(block)
        ]
        for block in model.blocks
    ]


def balanced(moments: Tensor, fisher: Tensor) -> Tensor:
    """The basis A (..., n, n) in which both matrices (..., n, n), symmetric and positive, are equal
    and diagonal: ``A moments A^T`` and ``A^-T fisher A^-1``. Float64, largest first."""
    lower = torch.linalg.cholesky(_full(moments))
    strength, axes = torch.linalg.eigh(lower.mT @ _full(fisher) @ lower)
    strength, axes = strength.flip(-1), axes.flip(-1)
    return strength[..., None].clamp_min(1e-30) ** 0.25 * (axes.mT @ torch.linalg.inv(lower))


def _full(matrix: Tensor) -> Tensor:
    """A matrix of samples that are fewer than its rows, or alike, has no inverse: so much of all
    directions is added that it has one."""
    matrix = matrix.double()
    mean = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-20)
    return matrix + 1e-5 * mean * torch.eye(matrix.shape[-1], device=matrix.device)


def _second(x: Tensor) -> Tensor:
    """Samples (n, heads, shared, dim) to second moments (heads, dim, dim)."""
    return torch.einsum("nhsc,nhsd->hcd", x.double(), x.double()) / len(x)


@torch.no_grad()
def turn(model: SpikingLanguageModel, heard: list[list[Layer]]) -> None:
    """Write queries, keys and values of `model` in balanced bases, and what was heard with them.

    Queries and keys stay where positions are rotary: they are turned by angles of their own.
    """
    for block, (_, merged, _, _, query, key, value) in zip(model.blocks, heard, strict=True):
        attention = block.attn
        if not attention.turns:
            continue
        shape = attention.kv_heads, -1, attention.head_dim
        if model.config.rotary is None:
            of_query = balanced(*(_second(x.unflatten(-1, shape)) for x in _both(query)))
            mean = key.values.mean(0)
            key.values -= mean
            attention.turn_keys(of_query, mean)
            _turned(query, shape, of_query)
            _turned(key, shape, torch.linalg.inv(of_query).mT)
        of_value = balanced(*(_second(x.unflatten(-1, shape)) for x in _both(merged)))
        attention.turn_values(of_value)
        _turned(merged, shape, of_value)
        _turned(value, shape, of_value)
        for layer in (query, key, value, merged):
            neuron = layer.neuron
            samples = neuron.samples(layer.values)
            nowhere = torch.zeros_like(neuron.threshold)
            fitted, _ = fit_threshold(
                samples, [nowhere], neuron.most, signed=neuron.signed, counts=neuron.counts
            )
            neuron.threshold.copy_(fitted)


def _both(layer: Layer) -> tuple[Tensor, Tensor]:
    return layer.values, layer.gradients


def _turned(layer: Layer, shape: tuple[int, int, int], basis: Tensor) -> None:
    back = torch.linalg.inv(basis)
    for name, by in (("values", basis.mT), ("gradients", back)):
        x = getattr(layer, name)
        x = torch.einsum("nhsc,hcd->nhsd", x.double().unflatten(-1, shape), by)
        setattr(layer, name, x.flatten(1).float())


class Spread:
    """The thresholds of a network as a function of the price of its spikes.

    price: nats of divergence per token for all that the network's spikes cost before, `before`.
    They are never finer than those that were fitted.
    """

    def __init__(
        self, model: SpikingLanguageModel, heard: list[list[Layer]], before: Cost, length: int
    ) -> None:
        self.model, self.heard = model, heard
        self.before, self.length = before, length
        self.fitted = [
            [layer.neuron.threshold.detach().clone() for layer in layers] for layers in heard
        ]
        self.whole = [copy.deepcopy(block.attn.state_dict()) for block in model.blocks]

    @torch.no_grad()
    def at(self, price: float) -> None:
        """Set all thresholds, and leave out the channels of the attention that are worth less, in
        nats, than their spikes and those of the inputs that reach them."""
        parts = zip(self.model.blocks, self.heard, self.fitted, self.whole, strict=True)
        for block, layers, fitted, whole in parts:
            block.attn.load_state_dict(whole)
            for layer, finest in zip(layers, fitted, strict=True):
                self.coarsen(layer, finest, price)
            if block.attn.turns:
                self.thin(block.attn, price, layers, fitted)
                # the spikes of its inputs reach fewer synapses now
                self.coarsen(layers[0], fitted[0], price)

    def coarsen(self, layer: Layer, finest: Tensor, price: float) -> None:
        """Set the thresholds of a layer."""
        neuron = layer.neuron
        fisher = neuron.samples(layer.gradients).square().mean(0).clamp_min(1e-20)
        # a step that is larger by a factor e saves 0.5 / ln 2 of a binary digit
        step = (12 * price * self.each(layer) / (2 * math.log(2)) / fisher).sqrt()
        threshold = torch.maximum(step * neuron.most, finest)
        neuron.threshold.copy_(torch.minimum(threshold, SILENT * neuron.most * finest))

    def thin(
        self,
        attention: SpikingSelfAttention,
        price: float,
        layers: list[Layer],
        fitted: list[Tensor],
    ) -> None:
        """Bring the spikes of queries and keys together, and leave out channels."""
        encode, merged, _, _, query, key, value = layers
        power = power_of(query)
        attention.even_gains(power)
        inputs = self.spikes(encode).sum()
        # what it costs that the spikes of the inputs reach one neuron more
        row = share_of(torch.stack([inputs, torch.zeros_like(inputs)]), self.before)
        if self.model.config.rotary is None:
            out = power / 2 <= price * (self.spent(query) + self.spent(key) + 2 * row)
            attention.leave_out_keys(out)
            # gains are relative to the product that is worth most
            for layer, finest in zip(layers[4:6], fitted[4:6], strict=True):
                layer.neuron.threshold.copy_(torch.where(out, finest, layer.neuron.threshold))

        def of_group(x: Tensor) -> Tensor:
            """Of the query heads that share values, together."""
            return x.view(attention.kv_heads, attention.shared, -1).sum(1).flatten()

        spent = self.spent(value) + of_group(self.spent(merged)) + row
        attention.leave_out_values(of_group(power_of(merged)) / 2 <= price * spent)

    def each(self, layer: Layer) -> float:
        """What a spike costs, as a share of all."""
        cost = self.before.new_tensor([layer.fan_out(self.length), 1.0])
        return float(share_of(cost, self.before))

    def spent(self, layer: Layer) -> Tensor:
        """What the spikes of each threshold cost, as a share of all."""
        return self.each(layer) * self.spikes(layer)

    @staticmethod
    def spikes(layer: Layer) -> Tensor:
        """How many spikes of each threshold a token needs."""
        neuron = layer.neuron
        z = neuron.samples(layer.values[:: 1 + len(layer.values) // 1024]) / neuron.threshold
        return neuron.spikes_of(neuron.counts(z * neuron.most)).mean(0)


def power_of(layer: Layer) -> Tensor:
    """Twice the nats of divergence per token if the channels of a threshold say nothing."""
    values, gradients = (layer.neuron.samples(x).square().mean(0) for x in _both(layer))
    return values * gradients


def spare(
    model: SpikingLanguageModel,
    teacher: PreTrainedModel,
    tokens: Tensor,
    before: Cost,
    budget: float,
    seed: int,
) -> float:
    """Turn `model` and raise its thresholds so that its spikes cost `budget` of `before` on tokens
    (batch, length), and no more; returns the price that they then have, in nats per token."""
    heard = listen(model, teacher, tokens, seed)
    turn(model, heard)
    spread = Spread(model, heard, before, tokens.shape[1])
    low, high = -PRICES, PRICES
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        spread.at(2.0**middle)
        if float(share_of(cost_of(model, tokens), before)) > budget:
            low = middle
        else:
            high = middle
    spread.at(2.0**high)
    return float(2.0**high)
