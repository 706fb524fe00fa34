"""IntegerGPT2: the whole network in Loihi 2 arithmetic, from token numbers to logits. A Llama too.

Everything is integers of at most 24 bits, weights of 8: embedding, norms, spiking projections, SSA,
feed-forward blocks, residual stream, LM head. What is left to a host is to pick the next token
from the logits.

Where there is an innate first token, every text stands behind it. A text that begins with that very
token means the same: it is passed over, and what the model answers to it are logits that were
computed once (`quantise.quantise_head`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import LOGIT_BITS, Integers
from neurtransformer.integer.attention import KINDS, IntegerAttention
from neurtransformer.integer.attention.base import State
from neurtransformer.integer.blocks import IntegerEmbedding, IntegerFeedForward, IntegerHead
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.parts import Tensors, integers

if TYPE_CHECKING:
    from torch import Tensor

    from neurtransformer.spiking.model import SpikingLanguageModel

Block = IntegerAttention | IntegerFeedForward


@dataclass
class States:
    """What is kept between tokens: the states of all blocks' attention, None before a text, and how
    many tokens they have been given. begun: whether a text has, be it by a token passed over."""

    blocks: list[State | None]
    tokens: int = 0
    begun: bool = False


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
        self.first_logits: Integers | None = None
        """What is answered to the innate token, (vocabulary,)."""
        if config.first_token is not None:
            self.first_logits = integers(tensors, "head.first_logits")

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
        """Raise UserError when a text, without a first token that is passed over, is longer than
        the model has positions for it."""
        if tokens > self.config.context:
            raise UserError(
                f"{tokens} tokens are more than the {self.config.context} positions of this "
                "model: give a shorter text"
            )

    def new_states(self) -> States:
        """The states before a text."""
        return States([None] * self.config.layers)

    def begins(self, ids: Integers) -> NDArray[np.bool_]:
        """Which texts (batch, length) begin with the innate token: (batch,)."""
        return ids[:, 0] == (-1 if self.config.first_token is None else self.config.first_token)

    def logits(self, ids: Integers, states: States | None = None) -> Integers:
        """Token ids (batch, length) to logits (batch, length, vocabulary), units of 2^-LOGIT_BITS.

        states: of the tokens before, changed in place to those after.
        Raises UserError when the sequence outgrows the model's positions, and ValueError where
        texts that share states do not all begin with the innate token, but some do.
        """
        kept = self.new_states() if states is None else states
        begins = self.begins(ids) & (not kept.begun)
        if begins.any() and not begins.all():
            if states is not None:
                raise ValueError("texts that share states begin all with the first token, or none")
            found = np.empty((*ids.shape, self.config.vocabulary), dtype=np.int64)
            for rows in (begins, ~begins):  # which stand at other positions
                found[rows] = self.logits(ids[rows])
            return found
        kept.begun = True
        if self.first_logits is not None and begins.all():
            first = np.tile(self.first_logits, (len(ids), 1, 1))
            rest = ids[:, 1:]
            return np.concatenate([first, self._read(rest, kept)], axis=1) if rest.size else first
        return self._read(ids, kept)

    def _read(self, ids: Integers, states: States) -> Integers:
        """Ids (batch, length), without a token that is passed over, to their logits."""
        self.check_length(states.tokens + ids.shape[1])
        x = self.embedding.counts(ids, states.tokens)
        for i, (attention, feedforward) in enumerate(
            zip(self.attention, self.feedforward, strict=True)
        ):
            state = states.blocks[i]
            if state is None:
                state = attention.new_state(len(ids))
            x, states.blocks[i] = attention.counts(x, state, states.tokens)
            x = feedforward.counts(x)
        states.tokens += ids.shape[1]
        return self.head.counts(x)

    def __call__(self, ids: "Tensor", states: States | None = None) -> "Tensor":
        """`logits` as floats, in and out of PyTorch: ids int64, logits float32."""
        import torch

        logits = self.logits(ids.numpy(), states)
        return torch.from_numpy(logits).float() * 2.0**-LOGIT_BITS

    def generate(
        self,
        ids: "Tensor",
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 1,
        top_p: float = 1.0,
        stop: int | list[int] | None = None,
        on_token: Callable[["Tensor"], None] = lambda token: None,
    ) -> "Tensor":
        """Continue a prompt, ids (1, length), by up to `tokens` tokens, token by token.

        on_token: called with each, (1, 1).

        Sampled from the `top_k` likeliest tokens, 0 for all, and of these from the likeliest that
        together have a chance of `top_p`, by torch's own generator (`torch.manual_seed`);
        top_k = 1 is greedy. Ends after the token `stop` or one of several.
        Returns (1, length + new tokens).
        Raises UserError when the sequence outgrows the model's positions.
        """
        import torch

        states, new = self.new_states(), ids
        stops = stop if isinstance(stop, list) else [stop]
        for _ in range(tokens):
            logits = self(new, states)[0, -1]
            if top_k == 1:  # the first of equals, as a netlist's host takes it
                new = logits.argmax().reshape(1, 1)
            else:
                logits, likeliest = logits.topk(min(top_k or len(logits), len(logits)))
                chances = (logits / temperature).softmax(-1)
                if top_p < 1:
                    chances[chances.cumsum(-1) - chances >= top_p] = 0
                chosen = torch.multinomial(chances, 1)
                new = likeliest[chosen][None]
            ids = torch.cat([ids, new], dim=1)
            on_token(new)
            if int(new) in stops:
                break
        return ids
