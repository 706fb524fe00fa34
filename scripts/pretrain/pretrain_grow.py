"""For pretrain.py: a larger GPT-2 that computes what a smaller one does, to be trained on.

Net2Net (Chen et al., arXiv 1511.05641) for GPT-2: width doubles by writing every channel twice and
splitting what reads it into two unequal halves, depth by blocks that add nothing yet.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from pretrain_data import Mistake


def grown(model: GPT2LMHeadModel, config: GPT2Config, seed: int = 0) -> GPT2LMHeadModel:
    """A model of the sizes in `config` with the logits of `model`, float32.

    Raises Mistake unless width and heads are the same power of two of the model's, layers another,
    and vocabulary and positions are the model's.
    """
    small, model = model.config, model.float()
    for key in ("vocab_size", "n_positions"):
        if getattr(small, key) != getattr(config, key):
            raise Mistake(f"a model of {key} {getattr(small, key)} cannot grow into another")
    times = config.n_embd // small.n_embd
    if (config.n_embd, config.n_head) != (times * small.n_embd, times * small.n_head):
        raise Mistake("width and heads must grow by the same power of two")
    for factor in (times, config.n_layer / small.n_layer):
        if factor < 1 or int(factor) & (int(factor) - 1) or factor != int(factor):
            raise Mistake("width, heads and layers must grow by powers of two")
    generator = torch.Generator().manual_seed(seed)
    while model.config.n_embd < config.n_embd:
        model = _wider(model, generator)
    while model.config.n_layer < config.n_layer:
        model = _deeper(model)
    return model


def _resized(model: GPT2LMHeadModel, **sizes: int) -> GPT2LMHeadModel:
    values = {**model.config.to_dict(), **sizes}
    return GPT2LMHeadModel(GPT2Config(**values))


def _wider(model: GPT2LMHeadModel, generator: torch.Generator) -> GPT2LMHeadModel:
    width, heads = model.config.n_embd, model.config.n_head
    large = _resized(model, n_embd=2 * width, n_head=2 * heads)
    old = model.state_dict()

    def split(weight: Tensor) -> Tensor:
        """(in, out) that reads channels to (2 in, out) that reads them from two equal copies."""
        noise = weight.std() * torch.randn(weight.shape, generator=generator) / 2
        return torch.cat([weight / 2 + noise, weight / 2 - noise])

    def twice(x: Tensor, parts: int = 1) -> Tensor:
        """Each of `parts` equal parts of the last dimension, written twice."""
        return torch.cat([half for part in x.chunk(parts, -1) for half in (part, part)], -1)

    def enlarged(name: str, x: Tensor) -> Tensor:
        if name.startswith("transformer.ln_f"):
            return twice(x) / 2  # the head, tied to the embedding, adds two copies up
        if x.ndim == 1 or ".wte." in name or ".wpe." in name:
            return twice(x, 3 if ".c_attn." in name else 1)
        return split(twice(x, 3 if ".c_attn." in name else 1))

    large.load_state_dict(
        {name: enlarged(name, x) for name, x in old.items() if name != "lm_head.weight"},
        strict=False,
    )
    large.tie_weights()
    return large


def _deeper(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    large = _resized(model, n_layer=2 * model.config.n_layer)
    blocks = []
    for block in model.transformer.h:
        silent = copy.deepcopy(block)
        for projection in (silent.attn.c_proj, silent.mlp.c_proj):
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        blocks += [block, silent]
    for index, block in enumerate(blocks):
        large.transformer.h[index].load_state_dict(block.state_dict())
    for name in ("wte", "wpe", "ln_f"):
        getattr(large.transformer, name).load_state_dict(
            getattr(model.transformer, name).state_dict()
        )
    large.tie_weights()
    return large
