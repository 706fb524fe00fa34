"""Dense to spiking: copy the weights, swap the blocks, give birth to the first token, calibrate."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from neurtransformer.errors import UserError
from neurtransformer.families.base import DenseBlock, Rows, Sizes, family_of
from neurtransformer.provenance import model_sha256
from neurtransformer.recipe import (
    MAX_LIMITED_TIMESTEPS,
    MAX_PHASE_TIMESTEPS,
    MAX_TIMESTEPS,
    Code,
    Coding,
    Digits,
    check_digits,
)
from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.calibrate import calibrate
from neurtransformer.spiking.config import CONFIGS
from neurtransformer.spiking.innate import give_birth
from neurtransformer.spiking.model import MODELS, SpikingBlock, SpikingLanguageModel


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
    digits: Digits = "binary",
    first_token: int | None = None,
    limited: tuple[int, int] | None = None,
    shared: bool = False,
) -> SpikingLanguageModel:
    """The spiking network for `dense`, calibrated on tokens (batch, length) int64, in eval mode.

    source: what `dense` was loaded from, kept in the config so that the teacher is found again.
    on_block: called for each block that is calibrated. coding: see `spiking/coding.py`. attention:
    its kind. attention_code: the attention's own code, None for that of the rest. digits: of all
    that is phase coded and does not stop. first_token: the number of the innate one
    (`spiking/innate.py`), None for none. limited: time steps and most spikes of gated hidden
    neurons that are phase coded; others have the code of the rest. shared: both networks have one
    memory for their weights from then on, and neither is to be trained.
    Raises UserError for timesteps out of range, for what is no kind of attention, and for signed
    digits of a network that is rate coded.
    """
    check_timesteps(timesteps, coding)
    if attention not in KINDS:
        raise UserError(f"attention must be {' or '.join(KINDS)}, not {attention}")
    code = attention_code or Code(timesteps, coding)
    check_timesteps(code.timesteps, code.coding)
    try:
        check_digits(digits, coding, code.coding)
    except ValueError as error:
        raise UserError(str(error)) from None
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
        digits=digits,
        first_token=first_token,
        hidden_timesteps=own and own[0],
        hidden_spikes=own and own[1],
        dense=source,
        dense_sha256=model_sha256(dense),
    )
    # weights that are never written to take no memory before others are put in their place
    with no_init_weights():
        model = MODELS[family](config).eval()
    model.generation_config = copy.deepcopy(dense.generation_config)
    carry_over(model, dense, shared=shared)
    give_birth(model, dense)
    calibrate(model, dense, tokens, on_block)
    return model


@torch.no_grad()
def carry_over(
    model: SpikingLanguageModel, dense: PreTrainedModel, *, shared: bool = False
) -> None:
    """Put every pretrained parameter where it lives in the spiking network: a copy or, if they are
    `shared`, itself."""
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
        _carry(ours, theirs, shared)
    model.tie_weights()
    for block, dense_block in zip(model.blocks, family.blocks(dense), strict=True):
        _carry_block(block, dense_block, model.config.sizes, shared)


def _carry(ours: nn.Module, theirs: nn.Module, shared: bool) -> None:
    for name, parameter in theirs.named_parameters():
        setattr(ours, name, nn.Parameter(parameter.detach() if shared else parameter.clone()))


def _carry_block(ours: SpikingBlock, theirs: DenseBlock, sizes: Sizes, shared: bool) -> None:
    _carry(ours.ln_1, theirs.attn_norm, shared=False)
    _carry(ours.ln_2, theirs.mlp_norm, shared=False)
    dense_qkv = theirs.qkv()
    qkv = Rows(*(ours.attn.arrange(rows, sizes) for rows in dense_qkv))
    layers = {
        ours.attn.c_attn: qkv,
        ours.attn.c_proj: theirs.attn_out(),
        ours.mlp.c_fc: theirs.up(),
        ours.mlp.c_proj: theirs.down(),
    }
    for layer, rows in layers.items():
        # calibration changes biases, and weights never
        layer.bias = nn.Parameter(rows.bias.clone())
        form = torch.contiguous_format
        weight = rows.weight.contiguous() if shared else rows.weight.clone(memory_format=form)
        layer.weight = nn.Parameter(weight.detach())
    if shared:
        ours_qkv, *rest = (layer.weight.detach() for layer in layers)
        theirs.share(ours_qkv if qkv.weight is dense_qkv.weight else None, *rest)
