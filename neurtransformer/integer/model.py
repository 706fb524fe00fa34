"""IntegerGPT2: the whole network, with Loihi 2 arithmetic between the neurons that encode the
residual stream and the membranes that are added to it.

What is still float, on the host, in this version: embeddings, LayerNorm, the `encode` neurons that
turn normalised values into spike counts, the residual addition (with the scale of each membrane)
and the LM head. Everything between is integers of at most 24 bits.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from neurtransformer.errors import UserError
from neurtransformer.integer import quantise
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.blocks import IntegerAttention, IntegerFeedForward
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import CodingNeuron

Network = Literal["attn", "mlp"]
States = list[Integers | None]
NETWORKS: tuple[Network, ...] = ("attn", "mlp")


class IntegerGPT2:
    """The integer network. tensors: name -> array, see layout.py."""

    def __init__(self, config: IntegerConfig, tensors: quantise.Tensors) -> None:
        self.config = config
        self.tensors = tensors
        blocks = range(config.layers)
        self.attention = [IntegerAttention(tensors, f"h.{i}.attn", config) for i in blocks]
        self.feedforward = [IntegerFeedForward(tensors, f"h.{i}.mlp", config) for i in blocks]

    @classmethod
    def from_spiking(cls, model: SpikingGPT2LMHeadModel) -> "IntegerGPT2":
        """Quantise a spiking network. Raises UserError if it holds NaN or infinities."""
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(f"{name} holds NaN or infinite weights: fine-tune or convert again")
        c = model.config
        config = IntegerConfig(
            layers=c.n_layer,
            width=c.n_embd,
            heads=c.n_head,
            hidden=c.n_inner or 4 * c.n_embd,
            vocabulary=c.vocab_size,
            positions=c.n_positions,
            timesteps=c.timesteps,
            coding=c.coding,
            epsilon=c.layer_norm_epsilon,
        )
        return cls(config, _tensors(model))

    def host(self, name: str) -> Tensor:
        """A float tensor of the host."""
        return torch.from_numpy(self.tensors[name])

    # --- the host's part: float ---

    def embed(self, ids: Tensor, past: int = 0) -> Tensor:
        """Token ids (batch, length) to the residual stream (batch, length, width).

        Raises UserError when the sequence is longer than the model has positions.
        """
        end = past + ids.shape[1]
        if end > self.config.positions:
            raise UserError(
                f"{end} tokens are more than the {self.config.positions} positions of this model: "
                "give a shorter text"
            )
        return F.embedding(ids, self.host("wte.weight")) + self.host("wpe.weight")[past:end]

    def encode(self, x: Tensor, block: int, network: Network) -> Integers:
        """Residual stream (..., width) to the spike counts that enter a network of a block."""
        norm = "ln_1" if network == "attn" else "ln_2"
        steps, coding = self.config.timesteps, self.config.coding
        neuron = CodingNeuron(x.shape[-1], steps, signed=True, coding=coding, analogue=True).eval()
        with torch.no_grad():
            neuron.threshold.copy_(self.host(f"h.{block}.{network}.encode.threshold"))
            neuron.center.copy_(self.host(f"h.{block}.{network}.encode.center"))
            return neuron(self._norm(x, f"h.{block}.{norm}")).numpy().astype(np.int64)

    def residual(self, membrane: Integers, block: int, network: Network) -> Tensor:
        """Membranes of c_proj to what is added to the residual stream."""
        scale = self.host(f"h.{block}.{network}.c_proj.scale")
        return torch.from_numpy(membrane).to(scale.dtype) * scale

    def logits(self, x: Tensor) -> Tensor:
        """Residual stream (..., width) to logits (..., vocabulary)."""
        head = self.tensors.get("lm_head.weight", self.tensors["wte.weight"])
        return F.linear(self._norm(x, "ln_f"), torch.from_numpy(head))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.host(f"{name}.weight"), self.host(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, self.config.epsilon)

    # --- the whole ---

    def new_states(self) -> States:
        """The empty states of all blocks."""
        return [None] * self.config.layers

    @torch.no_grad()
    def __call__(self, ids: Tensor, states: States | None = None, past: int = 0) -> Tensor:
        """Token ids (batch, length) int64 to logits (batch, length, vocabulary).

        states: those of `past` tokens before, replaced in place by the ones after.
        """
        states = self.new_states() if states is None else states
        x = self.embed(ids, past)
        for i, (attention, feedforward) in enumerate(
            zip(self.attention, self.feedforward, strict=True)
        ):
            state = states[i]
            if state is None:
                state = attention.new_state(len(ids))
            u, states[i] = attention.counts(self.encode(x, i, "attn"), state)
            x = x + self.residual(u, i, "attn")
            u = feedforward.counts(self.encode(x, i, "mlp"))
            x = x + self.residual(u, i, "mlp")
        return self.logits(x)

    def generate(
        self,
        ids: Tensor,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int = 1,
        stop: int | None = None,
    ) -> Tensor:
        """Continue a prompt, ids (1, length), by up to `tokens` tokens, with constant memory.

        Sampled from the `top_k` likeliest tokens by torch's own generator (`torch.manual_seed`);
        top_k = 1 is greedy. Ends after the token `stop`. Returns (1, length + new tokens).
        Raises UserError when the sequence outgrows the model's positions.
        """
        states, past, new = self.new_states(), 0, ids
        for _ in range(tokens):
            logits, likeliest = self(new, states, past)[0, -1].topk(top_k)
            past += new.shape[1]
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1)
            new = likeliest[chosen][None]
            ids = torch.cat([ids, new], dim=1)
            if int(new) == stop:
                break
        return ids


def _tensors(model: SpikingGPT2LMHeadModel) -> quantise.Tensors:
    """All tensors of the integer network of a spiking one, see layout.py."""
    transformer = model.transformer
    host: dict[str, Any] = {
        "wte.weight": transformer["wte"].weight,
        "wpe.weight": transformer["wpe"].weight,
        **{f"ln_f.{kind}": x for kind, x in transformer["ln_f"].named_parameters()},
    }
    if model.lm_head.weight is not transformer["wte"].weight:
        host["lm_head.weight"] = model.lm_head.weight
    tensors: quantise.Tensors = {}
    for i, block in enumerate(model.blocks):
        for norm in ("ln_1", "ln_2"):
            for kind, x in getattr(block, norm).named_parameters():
                host[f"h.{i}.{norm}.{kind}"] = x
        tensors |= quantise.quantise_attention(block.attn, f"h.{i}.attn")
        tensors |= quantise.quantise_feedforward(block.mlp, f"h.{i}.mlp")
    return tensors | {name: _array(x) for name, x in host.items()}


def _array(x: Tensor) -> NDArray[np.float32]:
    return x.detach().float().cpu().numpy()
