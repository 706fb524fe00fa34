"""Dense GPT-2 to spiking GPT-2: copy the weights, swap the blocks, calibrate."""

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from neurtransformer.errors import UserError
from neurtransformer.provenance import model_sha256
from neurtransformer.recipe import MAX_PHASE_TIMESTEPS, MAX_TIMESTEPS, Code, Coding
from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.calibrate import calibrate
from neurtransformer.spiking.config import SpikingGPT2Config
from neurtransformer.spiking.model import SpikingBlock, SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import SpikeLinear


def check_timesteps(timesteps: int, coding: Coding) -> None:
    """Raise UserError unless T is one that the code is exact for."""
    most = MAX_TIMESTEPS if coding == "rate" else MAX_PHASE_TIMESTEPS
    if not 1 <= timesteps <= most:
        raise UserError(f"timesteps of {coding} coding must be 1 to {most}, not {timesteps}")


def convert(
    dense: GPT2LMHeadModel,
    tokens: Tensor,
    timesteps: int,
    source: str,
    on_block: Callable[[], None] = lambda: None,
    *,
    coding: Coding = "rate",
    attention: str = "linear",
    attention_code: Code | None = None,
) -> SpikingGPT2LMHeadModel:
    """The spiking network for `dense`, calibrated on tokens (batch, length) int64, in eval mode.

    source: what `dense` was loaded from, kept in the config so that the teacher is found again.
    on_block: called for each block that is calibrated. coding: see `spiking/coding.py`. attention:
    its kind. attention_code: the attention's own code, None for that of the rest.
    Raises UserError for timesteps out of range and for what is no kind of attention.
    """
    check_timesteps(timesteps, coding)
    if attention not in KINDS:
        raise UserError(f"attention must be {' or '.join(KINDS)}, not {attention}")
    code = attention_code or Code(timesteps, coding)
    check_timesteps(*code)
    values = dense.config.to_dict()
    for name in ("model_type", "architectures", "dtype", "transformers_version"):
        values.pop(name, None)
    config = SpikingGPT2Config(
        **values,
        timesteps=timesteps,
        coding=coding,
        attention=attention,
        attention_timesteps=code.timesteps,
        attention_coding=code.coding,
        dense=source,
        dense_sha256=model_sha256(dense),
    )
    model = SpikingGPT2LMHeadModel(config).eval()
    model.generation_config = copy.deepcopy(dense.generation_config)
    carry_over(model, dense)
    calibrate(model, dense, tokens, on_block)
    return model


@torch.no_grad()
def carry_over(model: SpikingGPT2LMHeadModel, dense: GPT2LMHeadModel) -> None:
    """Copy every pretrained parameter to where it lives in the spiking network."""
    around = (
        (model.transformer["wte"], dense.transformer.wte),
        (model.transformer["wpe"], dense.transformer.wpe),
        (model.transformer["ln_f"], dense.transformer.ln_f),
        (model.lm_head, dense.lm_head),  # the embedding itself where the config ties them
    )
    for ours, theirs in around:
        ours.load_state_dict(theirs.state_dict())
    dense_blocks = cast("list[GPT2Block]", dense.transformer.h)
    for ours, theirs in zip(model.blocks, dense_blocks, strict=True):
        _carry_block(ours, theirs)


def _carry_block(ours: SpikingBlock, theirs: GPT2Block) -> None:
    ours.ln_1.load_state_dict(theirs.ln_1.state_dict())
    ours.ln_2.load_state_dict(theirs.ln_2.state_dict())
    heads = ours.attn.heads
    _carry_linear(ours.attn.c_attn, theirs.attn.c_attn, lambda rows: ours.attn.arrange(rows, heads))
    for module, conv in (
        (ours.attn.c_proj, theirs.attn.c_proj),
        (ours.mlp.c_fc, theirs.mlp.c_fc),
        (ours.mlp.c_proj, theirs.mlp.c_proj),
    ):
        _carry_linear(module, conv)


def _carry_linear(
    ours: SpikeLinear, theirs: nn.Module, arrange: Callable[[Tensor], Tensor] = lambda rows: rows
) -> None:
    assert isinstance(theirs, Conv1D)
    ours.weight.copy_(arrange(theirs.weight.T))
    ours.bias.copy_(arrange(theirs.bias))
