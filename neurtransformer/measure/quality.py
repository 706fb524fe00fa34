"""How near a spiking network is to its dense teacher, on the same tokens."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from neurtransformer.loss import next_token_losses
from neurtransformer.measure.attention import KINDS
from neurtransformer.spiking.attention import SpikingSelfAttention
from neurtransformer.spiking.innate import dense_output
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron

BATCH = 8
LOGITS = 2**26
"""How many blocks are compared at a time, and logits of one network, which are several times in
memory meanwhile: with large vocabularies they are most of what there is."""


class SpikeCounter:
    """Sums of spike counts per neuron layer while it listens. Tokens are (batch x length)."""

    def __init__(self) -> None:
        self.spikes: dict[str, Tensor] = {}
        self.active: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}
        self.timesteps: dict[str, int] = {}
        self.events: list[dict[str, float]] = []
        """Of each block, what else its attention counts: see `measure/attention`."""

    def add(self, name: str, neuron: CodingNeuron, output: Tensor, steps: bool) -> None:
        """output: counts (..., channels) or, with `steps`, spikes (T, ..., channels)."""
        counts = output.abs().sum(0) if steps else neuron.spikes_of(output)
        counts = counts.flatten(0, -2)
        self.spikes[name] = self.spikes.get(name, 0) + counts.sum(0, dtype=torch.float64)
        self.active[name] = self.active.get(name, 0) + (counts > 0).sum(0).double()
        self.tokens[name] = self.tokens.get(name, 0) + len(counts)
        self.timesteps[name] = neuron.timesteps

    def mean_counts(self) -> dict[str, float]:
        """Mean spike count per neuron and token, for each layer of neurons."""
        return {n: float(s.mean()) / self.tokens[n] for n, s in self.spikes.items()}

    def mean_rates(self) -> dict[str, float]:
        """Mean spikes per neuron and time step, for each layer of neurons."""
        return {n: count / self.timesteps[n] for n, count in self.mean_counts().items()}

    def spikes_per_token(self) -> float:
        """Spikes of all neurons of all layers, token neurons that race included, per token."""
        raced = sum(
            events["race"] / self.tokens[f"{block}.attn.key"]
            for block, events in enumerate(self.events)
            if "race" in events
        )
        return self._per_token(lambda name: 1.0) + raced

    def mean_count(self) -> float:
        """Mean spike count per neuron and token of all layers, without token neurons."""
        return self._per_token(lambda name: 1.0) / self._neurons()

    def mean_rate(self) -> float:
        """The same per time step, of which each layer has its own number."""
        return self._per_token(lambda name: 1.0 / self.timesteps[name]) / self._neurons()

    def mean_active(self) -> float:
        """Share of the neurons that send any spike for a token, without token neurons."""
        active = sum(float(a.sum()) / self.tokens[n] for n, a in self.active.items())
        return active / self._neurons()

    def _per_token(self, weight: Callable[[str], float]) -> float:
        return sum(weight(n) * float(s.sum()) / self.tokens[n] for n, s in self.spikes.items())

    def _neurons(self) -> int:
        return max(1, sum(len(s) for s in self.spikes.values()))


@contextmanager
def counting_spikes(model: SpikingLanguageModel) -> Iterator[SpikeCounter]:
    """Count the spikes of every `CodingNeuron` of `model` while open."""
    counter = SpikeCounter()

    def listener(name: str) -> Callable[..., None]:
        def hear(module: CodingNeuron, args: Any, output: Tensor) -> None:
            counter.add(name, module, output, model.steps)

        return hear

    hooks = [
        module.register_forward_hook(listener(name.removeprefix("transformer.h.")))
        for name, module in model.named_modules()
        if isinstance(module, CodingNeuron)
    ]
    for block in model.blocks:
        counter.events.append({})
        attention = block.attn
        if isinstance(attention, SpikingSelfAttention):
            hooks += KINDS[attention.kind].listen(attention, counter.events[-1])
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def evaluate(
    model: SpikingLanguageModel,
    dense: PreTrainedModel,
    blocks: Tensor,
    counter: SpikeCounter,
    *,
    batch: int | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Compare both models on blocks (n, length) int64, `batch` of them at a time, None for as many
    as LOGITS allow.

    counter: listens to `model`, opened by the caller with `counting_spikes`, and keeps what it
    heard. Returns perplexities and their ratio, cosine similarity of final hidden states (after
    ln_f) and of logits, both means over tokens, top-1 agreement, spikes per token (of all neurons
    together), and spike counts per neuron and token.
    """
    nll = {"dense": 0.0, "spiking": 0.0}
    cosine = cosine_logits = agreement = 0.0
    predicted = seen = 0
    most = LOGITS // (blocks.shape[1] * model.config.vocab_size)
    for chunk in blocks.split(batch or max(1, min(BATCH, most))):
        logits, hidden = dense_output(dense, chunk, model.config.first_token)
        ours = model(chunk)
        nll["dense"] += float(next_token_losses(logits, chunk).sum())
        nll["spiking"] += float(next_token_losses(ours.logits, chunk).sum())
        cosine += float(F.cosine_similarity(hidden, ours.last_hidden_state, dim=-1).sum())
        cosine_logits += float(F.cosine_similarity(logits, ours.logits, dim=-1).sum())
        agreement += float((logits.argmax(-1) == ours.logits.argmax(-1)).sum())
        predicted += chunk[:, 1:].numel()
        seen += chunk.numel()
        on_tokens(chunk.numel())
    ppl = {name: math.exp(total / predicted) for name, total in nll.items()}
    return {
        "ppl_dense": ppl["dense"],
        "ppl_spiking": ppl["spiking"],
        "ppl_ratio": ppl["spiking"] / ppl["dense"],
        "cosine_similarity": cosine / seen,
        "cosine_similarity_logits": cosine_logits / seen,
        "token_agreement": agreement / seen,
        "timesteps": model.config.timesteps,
        "spikes_per_token": counter.spikes_per_token(),
        "mean_spike_count": counter.mean_count(),
        "mean_spike_rate": counter.mean_rate(),
        "spike_rate_by_layer": counter.mean_rates(),
        "tokens": seen,
    }
