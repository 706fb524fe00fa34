"""Run folders: the spiking model and its tokenizer, checked before they are believed."""

import shutil
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from neurtransformer import stop
from neurtransformer.checkpoint import check_tokenizer
from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.recipe import Coding
from neurtransformer.runs import read_json
from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.config import SpikingGPT2Config
from neurtransformer.spiking.convert import check_timesteps
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel


def load_run(run: Path) -> tuple[SpikingGPT2LMHeadModel, PreTrainedTokenizerBase]:
    """The spiking model of a run, float32 and in eval mode, and its tokenizer.

    Raises UserError if the folder holds no whole, finite spiking GPT-2.
    """
    values = read_json(run / "config.json")
    if values.get("model_type") != SpikingGPT2Config.model_type:
        raise UserError(f"{run} holds a {values.get('model_type')} model, not a spiking GPT-2")
    _check_codes(run, values)
    if not (run / "model.safetensors").is_file():
        raise UserError(f"{run}/model.safetensors is missing: convert the model again")
    try:
        model, info = SpikingGPT2LMHeadModel.from_pretrained(
            run,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            run, local_files_only=True, trust_remote_code=False
        )
        check_tokenizer(tokenizer, model.config.vocab_size, run)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"{run} does not load: {' '.join(str(error).split())}") from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"{run}/model.safetensors does not fit its config: {wrong[0]}")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{run}: {name} holds NaN or infinite values")
    return model.eval(), tokenizer


def _check_codes(run: Path, values: dict[str, Any]) -> None:
    kind = values.get("attention", "linear")
    if kind not in KINDS:
        raise UserError(f"{run}/config.json: attention must be {' or '.join(KINDS)}")
    timesteps, coding = values.get("timesteps"), values.get("coding", "rate")
    own = values.get("attention_timesteps"), values.get("attention_coding")
    codes = (timesteps, coding), (own[0] or timesteps, own[1] or coding)
    for steps, name in codes:
        if name not in get_args(Coding):
            raise UserError(f"{run}/config.json: coding must be {' or '.join(get_args(Coding))}")
        if not isinstance(steps, int):
            raise UserError(f"{run}/config.json: timesteps must be a whole number")
        check_timesteps(steps, name)


def load_teacher(model: SpikingGPT2LMHeadModel) -> GPT2LMHeadModel:
    """The dense model that `model` was converted from. Raises UserError if it is out of reach."""
    source = model.config.dense
    if source is None:
        raise UserError("this run does not say which dense model it was converted from")
    dense, _ = load_dense(source)
    ours, theirs = model.config, dense.config
    for name in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions"):
        if getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                f"{source} is not the model this run was converted from: {name} differs"
            )
    return dense


def replace_weights(run: Path, model: SpikingGPT2LMHeadModel) -> None:
    """Put the weights of `model` into its run; the old ones stay until the new ones are whole."""
    fresh = run / ".fresh-weights"

    def remove() -> None:
        shutil.rmtree(fresh, ignore_errors=True)

    with stop.tidied_by(remove):
        try:
            model.save_pretrained(fresh)
            (fresh / "model.safetensors").replace(run / "model.safetensors")
        finally:
            remove()
