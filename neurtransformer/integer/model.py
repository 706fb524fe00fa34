"""IntegerGPT2: the whole network in Loihi 2 arithmetic, from token numbers to logits.

Everything is integers of at most 24 bits, weights of 8: embedding, LayerNorm, spiking projections,
SSA, feed-forward blocks, residual stream, LM head. What is left to a host is to pick the next token
from the logits.
"""

import math

import numpy as np
import torch
from torch import Tensor

from neurtransformer.errors import UserError
from neurtransformer.integer import quantise
from neurtransformer.integer.arithmetic import LOGIT_BITS, STATE_BITS, Integers
from neurtransformer.integer.blocks import (
    IntegerAttention,
    IntegerEmbedding,
    IntegerFeedForward,
    IntegerHead,
)
from neurtransformer.integer.config import MAX_STREAM_BITS, IntegerConfig
from neurtransformer.recipe import checked
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel

States = list[Integers | None]

PROBE = (2, 64)
"""Sequences and tokens of the random text that the size of the residual stream is measured on."""

STREAM_ROOM = 8
"""A channel of the stream may be so many times larger than on that text before it saturates."""


class IntegerGPT2:
    """The integer network. tensors: name -> array, see layout.py."""

    def __init__(self, config: IntegerConfig, tensors: quantise.Tensors) -> None:
        self.config = config
        self.tensors = tensors
        blocks = range(config.layers)
        self.embedding = IntegerEmbedding(tensors, config)
        self.attention = [IntegerAttention(tensors, f"h.{i}.attn", config) for i in blocks]
        self.feedforward = [IntegerFeedForward(tensors, f"h.{i}.mlp", config) for i in blocks]
        self.head = IntegerHead(tensors, config)

    @classmethod
    def from_spiking(cls, model: SpikingGPT2LMHeadModel) -> "IntegerGPT2":
        """Quantise a spiking network. Raises UserError if it holds NaN or infinities, or sizes that
        integers cannot have."""
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(f"{name} holds NaN or infinite weights: fine-tune or convert again")
        c = model.config
        sizes = {
            "layers": c.n_layer,
            "width": c.n_embd,
            "heads": c.n_head,
            "hidden": c.n_inner or 4 * c.n_embd,
            "vocabulary": c.vocab_size,
            "positions": c.n_positions,
            "timesteps": c.timesteps,
            "coding": c.coding,
            "epsilon": c.layer_norm_epsilon,
            "stream_bits": stream_bits(model),
        }
        config = checked(IntegerConfig, sizes, None)
        tensors = quantise.quantise_embedding(model, config)
        for i, block in enumerate(model.blocks):
            tensors |= quantise.quantise_attention(block, f"h.{i}.attn", config)
            tensors |= quantise.quantise_feedforward(block, f"h.{i}.mlp", config)
        return cls(config, tensors | quantise.quantise_head(model, config))

    def check_length(self, tokens: int) -> None:
        """Raise UserError when a sequence is longer than the model has positions."""
        if tokens > self.config.positions:
            raise UserError(
                f"{tokens} tokens are more than the {self.config.positions} positions of this "
                "model: give a shorter text"
            )

    def new_states(self) -> States:
        """The empty states of all blocks."""
        return [None] * self.config.layers

    def logits(self, ids: Integers, states: States | None = None, past: int = 0) -> Integers:
        """Token ids (batch, length) to logits (batch, length, vocabulary), units of 2^-LOGIT_BITS.

        states: those of `past` tokens before, replaced in place by the ones after.
        Raises UserError when the sequence outgrows the model's positions.
        """
        self.check_length(past + ids.shape[1])
        states = self.new_states() if states is None else states
        x = self.embedding.counts(ids, past)
        for i, (attention, feedforward) in enumerate(
            zip(self.attention, self.feedforward, strict=True)
        ):
            state = states[i]
            if state is None:
                state = attention.new_state(len(ids))
            x, states[i] = attention.counts(x, state)
            x = feedforward.counts(x)
        return self.head.counts(x)

    def __call__(self, ids: Tensor, states: States | None = None, past: int = 0) -> Tensor:
        """`logits` as floats, in and out of PyTorch: ids int64, logits float32."""
        integers = self.logits(ids.numpy(), states, past)
        return torch.from_numpy(integers).float() * 2.0**-LOGIT_BITS

    def generate(
        self,
        ids: Tensor,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 1,
        stop: int | list[int] | None = None,
    ) -> Tensor:
        """Continue a prompt, ids (1, length), by up to `tokens` tokens, with constant memory.

        Sampled from the `top_k` likeliest tokens by torch's own generator (`torch.manual_seed`);
        top_k = 1 is greedy. Ends after the token `stop` or one of several.
        Returns (1, length + new tokens).
        Raises UserError when the sequence outgrows the model's positions.
        """
        states, past, new = self.new_states(), 0, ids
        stops = stop if isinstance(stop, list) else [stop]
        for _ in range(tokens):
            logits = self(new, states, past)[0, -1]
            past += new.shape[1]
            if top_k == 1:  # the first of equals, as a netlist's host takes it
                new = logits.argmax().reshape(1, 1)
            else:
                logits, likeliest = logits.topk(min(top_k, len(logits)))
                chosen = torch.multinomial((logits / temperature).softmax(-1), 1)
                new = likeliest[chosen][None]
            ids = torch.cat([ids, new], dim=1)
            if int(new) in stops:
                break
        return ids


@torch.no_grad()
def stream_bits(model: SpikingGPT2LMHeadModel) -> int:
    """Fraction bits of the residual stream, 0..MAX_STREAM_BITS: as many as leave STREAM_ROOM.

    Measured on random tokens, so that it is the same for every text. Raises UserError for a stream
    that no number of them leaves room for.
    """
    size = PROBE[0], min(PROBE[1], model.config.n_positions)
    ids = torch.randint(model.config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    found: list[float] = []

    def watch(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        found.append(float((x - x.mean(-1, keepdim=True)).abs().max()))

    norms = [model.transformer["ln_f"], *(n for b in model.blocks for n in (b.ln_1, b.ln_2))]
    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    largest = max(found)
    if not largest < 2.0 ** (STATE_BITS - 1) / STREAM_ROOM:
        raise UserError(
            f"the residual stream of this model reaches {largest:.3g}, too much for {STATE_BITS} "
            "bits: its weights are damaged, or fine-tuning went wrong"
        )
    integer_bits = math.ceil(math.log2(max(largest, 2.0**-STATE_BITS) * STREAM_ROOM))
    return int(np.clip(STATE_BITS - 1 - integer_bits, 0, MAX_STREAM_BITS))
