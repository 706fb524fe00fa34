"""IntegerGPT2: the whole network in Loihi 2 arithmetic, from token numbers to logits.

Everything is integers of at most 24 bits, weights of 8: embedding, LayerNorm, spiking projections,
SSA, feed-forward blocks, residual stream, LM head. What is left to a host is to pick the next token
from the logits.
"""

from typing import TYPE_CHECKING

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import LOGIT_BITS, Integers
from neurtransformer.integer.attention import KINDS, IntegerAttention
from neurtransformer.integer.attention.base import State
from neurtransformer.integer.blocks import IntegerEmbedding, IntegerFeedForward, IntegerHead
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.parts import Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from neurtransformer.spiking.model import SpikingLanguageModel

States = list[State | None]
Block = IntegerAttention | IntegerFeedForward


class IntegerGPT2:
    """The integer network. tensors: name -> array, see layout.py."""

    def __init__(self, config: IntegerConfig, tensors: Tensors) -> None:
        self.config = config
        self.tensors = tensors
        blocks = range(config.layers)
        self.embedding = IntegerEmbedding(tensors, config)
        kind = KINDS[config.attention]
        self.attention = [kind(tensors, f"h.{i}.attn", config) for i in blocks]
        self.feedforward = [IntegerFeedForward(tensors, f"h.{i}.mlp", config) for i in blocks]
        self.head = IntegerHead(tensors, config)

    @classmethod
    def from_spiking(cls, model: "SpikingLanguageModel") -> "IntegerGPT2":
        """Quantise a spiking network. Raises UserError if it holds NaN or infinities, or sizes that
        integers cannot have."""
        from neurtransformer.integer.from_spiking import quantised

        return cls(*quantised(model))

    @property
    def networks(self) -> "dict[str, IntegerEmbedding | Block | IntegerHead]":
        """All networks by their names, in the order of the data."""
        blocks: dict[str, Block] = {}
        for i, (attention, mlp) in enumerate(zip(self.attention, self.feedforward, strict=True)):
            blocks |= {f"h.{i}.attn": attention, f"h.{i}.mlp": mlp}
        return {"embed": self.embedding, **blocks, "head": self.head}

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

    def __call__(self, ids: "Tensor", states: States | None = None, past: int = 0) -> "Tensor":
        """`logits` as floats, in and out of PyTorch: ids int64, logits float32."""
        import torch

        integers = self.logits(ids.numpy(), states, past)
        return torch.from_numpy(integers).float() * 2.0**-LOGIT_BITS

    def generate(
        self,
        ids: "Tensor",
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 1,
        stop: int | list[int] | None = None,
    ) -> "Tensor":
        """Continue a prompt, ids (1, length), by up to `tokens` tokens, token by token.

        Sampled from the `top_k` likeliest tokens by torch's own generator (`torch.manual_seed`);
        top_k = 1 is greedy. Ends after the token `stop` or one of several.
        Returns (1, length + new tokens).
        Raises UserError when the sequence outgrows the model's positions.
        """
        import torch

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
