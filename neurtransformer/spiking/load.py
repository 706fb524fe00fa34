"""Run folders: the spiking model and its tokenizer, checked before they are believed."""

import contextlib
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer import stop
from neurtransformer.checkpoint import check_json, check_numbers, load_tokenizer
from neurtransformer.dense import ALIASES, KNOWN, load_dense
from neurtransformer.errors import UserError, shortened
from neurtransformer.families import FAMILIES
from neurtransformer.families.base import family_of
from neurtransformer.memory import spare
from neurtransformer.provenance import model_sha256
from neurtransformer.recipe import Coding, Digits, check_digits
from neurtransformer.runs import PLASTIC, is_read_only, read_json, write_json
from neurtransformer.spiking.attention import KINDS
from neurtransformer.spiking.config import CONFIGS
from neurtransformer.spiking.convert import check_limited, check_timesteps
from neurtransformer.spiking.model import MODELS, SpikingLanguageModel

log = logging.getLogger(__name__)

_GIVE = "name its teacher with --teacher NAME_OR_FOLDER"


def load_run(run: Path) -> tuple[SpikingLanguageModel, PreTrainedTokenizerBase]:
    """The spiking model of a run, float32 and in eval mode, and its tokenizer.

    Raises UserError if the folder holds no whole, finite spiking model.
    """
    check_config(run)
    kinds = {config.model_type: MODELS[family] for family, config in CONFIGS.items()}
    kind = read_json(run / "config.json")["model_type"]
    if not (run / "model.safetensors").is_file():
        raise UserError(f"{run}/model.safetensors is missing: convert the model again")
    check_json(run, "generation_config.json")
    # whatever a damaged file makes the libraries say is the file's fault, not ours
    try:
        model, info = kinds[kind].from_pretrained(
            run,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(f"{run} does not load: {shortened(error)}") from error
    tokenizer = load_tokenizer(run, model.config.vocab_size)
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UserError(f"{run}/model.safetensors does not fit its config: {wrong[0]}")
    for name, tensor in model.state_dict().items():
        check_numbers(tensor, f"{run}: {name}")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = getattr(model.generation_config, key)
        for token in given if isinstance(given, list) else [given]:
            if not isinstance(token, int | None):
                raise UserError(
                    f"{run}/generation_config.json: {key} is {shortened(given)}, not the number of "
                    "a token"
                )
    spare(model)
    return model.eval(), tokenizer


def check_config(run: Path) -> None:
    """Raise UserError unless the config.json of a run is one of a spiking network."""
    values = read_json(run / "config.json")
    kinds = {config.model_type: config for config in CONFIGS.values()}
    kind = values.get("model_type")
    if kind == PLASTIC:
        raise UserError(f"{run} reads drawings, not text: use `neurtx icl omniglot`")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{run} holds a {kind} model, not a spiking one ({', '.join(kinds)})")
    _check_codes(run, values)
    try:
        kinds[kind].from_dict(values)
    except Exception as error:  # whatever values of other types lead to
        raise UserError(f"{run}/config.json is refused: {shortened(error)}") from error


def _check_codes(run: Path, values: dict[str, Any]) -> None:
    kind = values.get("attention", "linear")
    if kind not in KINDS:
        raise UserError(f"{run}/config.json: attention must be {' or '.join(KINDS)}")
    timesteps, coding = values.get("timesteps"), values.get("coding", "rate")
    own = values.get("attention_timesteps"), values.get("attention_coding")
    codes = (timesteps, coding), (own[0] or timesteps, own[1] or coding)
    most_steps, most_spikes = values.get("hidden_timesteps"), values.get("hidden_spikes")
    if most_steps is not None or most_spikes is not None:
        if not isinstance(most_steps, int) or not isinstance(most_spikes, int):
            raise UserError(f"{run}/config.json: hidden_timesteps and hidden_spikes are no numbers")
        check_limited(most_steps, most_spikes)
    for steps, name in codes:
        if name not in get_args(Coding):
            raise UserError(f"{run}/config.json: coding must be {' or '.join(get_args(Coding))}")
        if not isinstance(steps, int):
            raise UserError(f"{run}/config.json: timesteps must be a whole number")
        check_timesteps(steps, name)
    digits = values.get("digits", "binary")
    if digits not in get_args(Digits):
        raise UserError(f"{run}/config.json: digits must be {' or '.join(get_args(Digits))}")
    try:
        check_digits(digits, *(name for _, name in codes))
    except ValueError as error:
        raise UserError(f"{run}/config.json: {error}") from None


@dataclass(frozen=True)
class Teacher:
    """A dense model, float32 and in eval mode, where it comes from, and the hash of its weights."""

    dense: PreTrainedModel
    source: str
    sha256: str


def load_teacher(model: SpikingLanguageModel) -> PreTrainedModel:
    """The dense model that `model` was converted from. Raises UserError if it is out of reach, or
    another by now."""
    return find_teacher(model).dense


def find_teacher(model: SpikingLanguageModel, given: str | None = None) -> Teacher:
    """The dense model that `model` learnt from, or the one that is `given`, a name or folder.

    Raises UserError if it is out of reach, does not fit or, unless it was given, is not the one
    that the model's config remembers. A given one may be another; that is said.
    """
    source = model.config.dense if given is None else source_name(given)
    if source is None:
        raise UserError(f"this run does not say which dense model it was made from: {_GIVE}")
    try:
        dense, _ = load_dense(source)
    except UserError as error:
        if given is not None:
            raise
        raise UserError(f"the teacher {source} of this run is gone: {error}; {_GIVE}") from error
    family = family_of(dense)
    if family.model_type != model.config.family:
        raise UserError(
            f"the teacher {source} is a {family.title}, the run was made from a "
            f"{FAMILIES[model.config.family].title}: {_GIVE}"
        )
    ours, theirs = asdict(model.config.sizes), asdict(family.sizes(dense.config.to_dict()))
    for name, size in ours.items():
        if size != theirs[name]:
            raise UserError(
                f"the teacher {source} is not the model that this run was made from: {name} is "
                f"{theirs[name]}, the run's {size}; {_GIVE}"
            )
    teacher = Teacher(dense, source, model_sha256(dense))
    if not _is_known(model, teacher):
        if given is None:
            raise UserError(
                f"the teacher {source} has changed and is not the model that this run was made "
                f"from: put that one back, or {_GIVE}"
            )
        log.warning("the teacher %s is another model than the one this run was made from", source)
    return teacher


def source_name(name: str) -> str:
    """What to remember of a dense model's name: a folder's full path, or the short name that a
    name is another of."""
    local = name not in KNOWN and Path(name).is_dir()
    return str(Path(name).resolve()) if local else ALIASES.get(name, name)


def _is_known(model: SpikingLanguageModel, teacher: Teacher) -> bool:
    """Whether a model was made from that teacher. One from before hashes were recorded shares at
    least the embeddings, which nobody trains, up to rounding to half precision."""
    if model.config.dense_sha256 is not None:
        return bool(model.config.dense_sha256 == teacher.sha256)
    ours, theirs = (
        cast("nn.Embedding", x.get_input_embeddings()).weight.float().cpu()
        for x in (model, teacher.dense)
    )
    return torch.allclose(ours, theirs, rtol=2**-7, atol=1e-6)


def teacher_of(run: Path, model: SpikingLanguageModel, given: str | None) -> Teacher:
    """`find_teacher`, where the run remembers the place of a given teacher that was only moved."""
    teacher = find_teacher(model, given)
    if given is not None and not is_read_only(run) and _is_known(model, teacher):
        remember_teacher(model, teacher)
        # nothing is lost where a run is for reading only
        with contextlib.suppress(OSError):
            config = read_json(run / "config.json")
            known = {"dense": teacher.source, "dense_sha256": teacher.sha256}
            write_json(run / "config.json", {**config, **known})
    return teacher


def remember_teacher(model: SpikingLanguageModel, teacher: Teacher) -> None:
    """Make `teacher` the one that the model's config remembers."""
    model.config.dense, model.config.dense_sha256 = teacher.source, teacher.sha256


def replace_weights(run: Path, model: SpikingLanguageModel) -> None:
    """Put the weights and the config of `model` into its run; the old ones stay until the new ones
    are whole."""
    fresh = run / ".fresh-weights"

    def remove() -> None:
        shutil.rmtree(fresh, ignore_errors=True)

    with stop.tidied_by(remove):
        try:
            model.save_pretrained(fresh)
            # the dtype in it has to be there before the weights: read as half of what they are,
            # they would not be what was trained
            for name in ("config.json", "model.safetensors"):
                (fresh / name).replace(run / name)
        finally:
            remove()
