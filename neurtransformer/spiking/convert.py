"""Dense to spiking: copy the weights, swap the blocks, give birth to the first token, calibrate."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neurtransformer.errors import UserError
from neurtransformer.families.base import DenseBlock, Rows, family_of
from neurtransformer.provenance import model_sha256
from neurtransformer.recipe import (
    MAX_LIMITED_TIMESTEPS,
    MAX_PHASE_TIMESTEPS,
    MAX_TIMESTEPS,
    Code,
    Coding,
)
from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.calibrate import calibrate
from neurtransformer.spiking.config import CONFIGS
from neurtransformer.spiking.innate import give_birth
from neurtransformer.spiking.model import MODELS, SpikingBlock, SpikingLanguageModel
from neurtransformer.spiking.neuron import SpikeLinear


def check_timesteps(timesteps: int, coding: Coding) -> None:
    """Raise UserError unless T is one that the code is exact for."""
    most = MAX_TIMESTEPS if coding == "rate" else MAX_PHASE_TIMESTEPS
    if not 1 <= timesteps <= most:
        raise UserError(f"timesteps of {coding} coding must be 1 to {most}, not {timesteps}")


def check_limited(timesteps: int, spikes: int) -> None:
    """Raise UserError unless a neuron can send so many spikes in so many steps."""
    if not 1 <= spikes <= timesteps <= MAX_LIMITED_TIMESTEPS:
        raise UserError(
            f"hidden neurons can stop after 1 spike to as many as they have time steps, of which "
            f"{MAX_LIMITED_TIMESTEPS} are the most: not after {spikes} of {timesteps}"
        )


def convert(
    dense: PreTrainedModel,
    tokens: Tensor,
    timesteps: int,
    source: str,
    on_block: Callable[[], None] = lambda: None,
    *,
    coding: Coding = "rate",
    attention: str = "linear",
    attention_code: Code | None = None,
    first_token: int | None = None,
    limited: tuple[int, int] | None = None,
) -> SpikingLanguageModel:
    """The spiking network for `dense`, calibrated on tokens (batch, length) int64, in eval mode.

    source: what `dense` was loaded from, kept in the config so that the teacher is found again.
    on_block: called for each block that is calibrated. coding: see `spiking/coding.py`. attention:
    its kind. attention_code: the attention's own code, None for that of the rest. first_token: the
    number of the innate one (`spiking/innate.py`), None for none. limited: time steps and most
    spikes of gated hidden neurons that are phase coded; others have the code of the rest.
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
    family = dense.config.model_type
    gated = family_of(dense).sizes(dense.config.to_dict()).gated
    own = limited if gated and coding == "phase" else None
    if own is not None:
        check_limited(*own)
    config = CONFIGS[family](
        **values,
        timesteps=timesteps,
        coding=coding,
        attention=attention,
        attention_timesteps=code.timesteps,
        attention_coding=code.coding,
        first_token=first_token,
        hidden_timesteps=own and own[0],
        hidden_spikes=own and own[1],
        dense=source,
        dense_sha256=model_sha256(dense),
    )
    model = MODELS[family](config).eval()
    model.generation_config = copy.deepcopy(dense.generation_config)
    carry_over(model, dense)
    give_birth(model, dense)
    calibrate(model, dense, tokens, on_block)
    return model


@torch.no_grad()
def carry_over(model: SpikingLanguageModel, dense: PreTrainedModel) -> None:
    """Copy every pretrained parameter to where it lives in the spiking network."""
    family = family_of(dense)
    around = family.around(dense)
    pairs = [
        (model.transformer["wte"], around.embedding),
        (model.transformer["ln_f"], around.norm),
        (model.lm_head, around.head),  # the embedding itself where the config ties them
    ]
    if around.positions is not None:
        pairs.append((model.transformer["wpe"], around.positions))
    for ours, theirs in pairs:
        ours.load_state_dict(theirs.state_dict())
    for block, dense_block in zip(model.blocks, family.blocks(dense), strict=True):
        _carry_block(block, dense_block, model)


def _carry_block(ours: SpikingBlock, theirs: DenseBlock, model: SpikingLanguageModel) -> None:
    ours.ln_1.load_state_dict(theirs.attn_norm.state_dict())
    ours.ln_2.load_state_dict(theirs.mlp_norm.state_dict())
    sizes = model.config.sizes
    qkv = Rows(*(ours.attn.arrange(rows, sizes) for rows in theirs.qkv()))
    for module, rows in (
        (ours.attn.c_attn, qkv),
        (ours.attn.c_proj, theirs.attn_out()),
        (ours.mlp.c_fc, theirs.up()),
        (ours.mlp.c_proj, theirs.down()),
    ):
        _carry_rows(module, rows)


def _carry_rows(ours: SpikeLinear, theirs: Rows) -> None:
    ours.weight.copy_(theirs.weight)
    ours.bias.copy_(theirs.bias)
