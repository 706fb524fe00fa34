"""Where a number comes from: hashes of weights and texts, and the record beside each result.

Weights are hashed as the function that they make, not as a file: names, shapes and float32 values
of all tensors, and the few settings that decide what is computed with them. A model that was saved
again, in other shards or in half precision that float32 holds as well, has the same hash.

Every section of a run's report.json has a `provenance`, see `stamp`.
"""

import hashlib
import importlib.metadata
import json
import os
import shlex
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PACKAGES = {"neurtx": "neurtransformer", "torch": "torch", "transformers": "transformers"}

# what tensors do not say of a network; where a config is silent, what transformers takes
_SETTINGS: dict[str, Any] = {
    "n_head": 12,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "timesteps": None,
    "coding": "rate",
    "attention": "linear",
    "attention_timesteps": None,
    "attention_coding": None,
}
# as above, but for what all networks had before there was a choice: those keep their hash
_NEWER: dict[str, Any] = {
    "first_token": None,
    "hidden_timesteps": None,
    "hidden_spikes": None,
    "digits": "binary",
}
# those of other families, part of the hash only where they are
_OTHERS = (
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "hidden_act",
)
_SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_new"}
_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"

MEASURED = {
    "eval": "neurtx eval",
    "energy": "neurtx energy",
    "integer": "neurtx export --target loihi2",
    "simulate": "neurtx export --target loihi2 and neurtx simulate",
    "place": "neurtx export --target loihi2 and neurtx place",
    "generate": "neurtx generate",
    "induction": "neurtx icl induction",
}
"""Sections of report.json that were measured on weights -> what measures them again."""


# --- hashes ---


def weights_sha256(tensors: "Mapping[str, Tensor]", config: Mapping[str, Any]) -> str:
    """SHA-256 of a network: its tensors, of any dtypes, and what matters of its config."""
    names = sorted(tensors)
    # each tensor by itself: hashlib lets other threads work meanwhile
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(names, pool.map(_tensor, (tensors[n] for n in names)), strict=True))
    if digests.get(_HEAD) == digests.get(_EMBEDDING):
        # tied, whether stored once or twice
        digests.pop(_HEAD, None)
    settings = {key: config.get(key, default) for key, default in _SETTINGS.items()}
    settings |= {key: config[key] for key in _OTHERS if key in config}
    settings |= {
        key: config[key] for key, before in _NEWER.items() if config.get(key) not in (None, before)
    }
    activation = settings["activation_function"]
    settings["activation_function"] = _SAME_ACTIVATION.get(activation, activation)
    whole = json.dumps([settings, digests], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _tensor(tensor: "Tensor") -> str:
    tensor = tensor.detach().cpu()
    tensor = (tensor.float() if tensor.is_floating_point() else tensor.long()).contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.numpy().data)
    return digest.hexdigest()


def model_sha256(model: "PreTrainedModel") -> str:
    """`weights_sha256` of a model in memory, dense or spiking."""
    return weights_sha256(model.state_dict(), model.config.to_dict())


def run_sha256(run: Path, config: Mapping[str, Any]) -> str | None:
    """`weights_sha256` of a run as it stands in its folder, that of the model that `load_run` makes
    of it. config: of its config.json. None if its weights cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run / "model.safetensors"
    if not path.is_file():  # whoever opens a pipe waits
        return None
    try:
        return weights_sha256(load_file(path), config)
    except (SafetensorError, OSError, ValueError, TypeError):
        return None


def text_sha256(blocks: "Tensor") -> str:
    """SHA-256 of the tokens that were read of a text, (n, length) int64."""
    return hashlib.sha256(blocks.cpu().numpy().tobytes()).hexdigest()


# --- the record ---


def stamp(**known: Any) -> dict[str, Any]:
    """What every result is kept with: date (UTC, ISO 8601), command line, versions, and `known`,
    such as `weights_sha256`, of the run, `text_sha256`, `seed`, `teacher` and `teacher_sha256`."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "versions": versions(),
        **known,
    }


def command_line(arguments: list[str]) -> str:
    """The command as it could be typed again; what is no UTF-8 in it, escaped."""
    # the first is the path of whatever started this process, which may be a script of the caller
    ours = Path(arguments[0]).name == "neurtx" or "neurtx" in sys.modules
    line = shlex.join(["neurtx", *arguments[1:]] if ours else ["python", *arguments])
    return line.encode("utf-8", "backslashreplace").decode()


def versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def provenance_of(values: Any) -> Mapping[str, Any]:
    """The `provenance` of a section of report.json; empty if it has none."""
    found = values.get("provenance") if isinstance(values, Mapping) else None
    return found if isinstance(found, Mapping) else {}


# --- what is older than the weights ---


def outdated(report: Mapping[str, Any], weights: str | None) -> list[str]:
    """Names of the sections that were measured on other weights than `weights`, those of now.

    Sections without a record are older than the record, and so than any training that has one;
    otherwise nobody can tell, as when `weights` is None.
    """
    if weights is None:
        return []
    unknown = None if provenance_of(report.get("finetune")) else weights
    return [
        name
        for name in MEASURED
        if report.get(name)
        and (provenance_of(report[name]).get("weights_sha256") or unknown) != weights
    ]


def current(report: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """The report without its `outdated` sections."""
    left_out = outdated(report, weights)
    return {name: values for name, values in report.items() if name not in left_out}


def remarks(report: Mapping[str, Any], config: Mapping[str, Any], weights: str | None) -> list[str]:
    """What a reader of a report has to be told: sentences, none if all belongs together."""
    found = []
    if old := outdated(report, weights):
        again = ", ".join(dict.fromkeys(MEASURED[name] for name in old))
        found.append(
            "left out, because they were measured before the weights last changed: "
            f"{', '.join(old)}. Run {again} again"
        )
    maker = provenance_of(report.get("finetune") or report.get("convert")).get("weights_sha256")
    if None not in (maker, weights) and maker != weights:
        found.append("the weights are not those that the last conversion or training recorded")
    teacher = config.get("dense_sha256")
    others = [
        name
        for name in MEASURED
        if name not in old
        and None not in (teacher, provenance_of(report.get(name)).get("teacher_sha256"))
        and provenance_of(report.get(name))["teacher_sha256"] != teacher
    ]
    if others:
        names = dict.fromkeys(str(provenance_of(report[name]).get("teacher")) for name in others)
        found.append(
            f"compared with another dense model than the run's own, {', '.join(names)}: "
            + ", ".join(others)
        )
    return found
