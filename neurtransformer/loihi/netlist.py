"""A netlist folder: the integer network as files, complete without the run it came from.

    manifest.json            the graph, every size and bit width, the hash of every other file
    netx/<network>.<projection>.net   static projections, which stock netx loads
    chip.safetensors         biases, thresholds, multipliers, constants, the GELU table: integers
    tokenizer/               the tokenizer, of a language model

A network is a GPT-2, a Llama or a plastic transformer; `config` in the manifest says which. What is
read is believed only after every hash, shape, range and wire has been checked.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from neurtransformer.errors import UserError, shortened
from neurtransformer.integer import layout, plastic
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.packed import Packed
from neurtransformer.integer.plastic import IntegerPlasticTransformer, PlasticConfig
from neurtransformer.loihi import netx
from neurtransformer.loihi.graph import networks
from neurtransformer.loihi.network import Network
from neurtransformer.loihi.nodes import (
    CodingNeurons,
    Convolution,
    Count,
    Matrix,
    Silent,
    Spikes,
    Strict,
    Synapses,
)
from neurtransformer.loihi.plastic_graph import plastic_networks
from neurtransformer.runs import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION: Literal[11] = 11
UNDERSTOOD = (8, 9, 10, VERSION)
"""Versions that are read. A netlist of version 8 has no innate first token, one of version 9 no
neurons that stop after a few spikes, and one of version 10 no signed digits."""

CHIP, TOKENIZER = "chip.safetensors", "tokenizer"
Progress = Callable[[str], None]
Config = IntegerConfig | PlasticConfig
Model = IntegerGPT2 | IntegerPlasticTransformer

_HOST = "sends the two spikes of each token, and picks the next token from the logits"
_LLAMA_HOST = "sends the spike of each token, and picks the next token from the logits"
_INNATE = (
    "; positions begin at 1, because position 0 is that of the innate first token, which is in all "
    "attention from the start and is never sent: a prompt that begins with it is sent without it, "
    "and what is answered to it are head.first_logits"
)
_TEACHER = (
    "sends each drawing as spikes, its label when the keys of the drawing arrive at the plastic "
    "synapses, and takes the largest logit of a drawing without label as what it is; before a new "
    "context it sets the plastic weights to 0"
)
_TRANSPORT: dict[Spikes, str] = {
    "binary": "in a block neurons fire in the first T steps of a phase, its slots; a neuron sends "
    "at most one spike a slot, of payload +1, or -1 or +1 where it is signed (a graded spike of "
    "one bit and sign), or 1 or 2 behind a GELU if counts are rate coded; of phase-coded counts it "
    "sends the digits, the highest first: 0 and 1, or, where the digits of its node are signed, "
    "-1, 0 and 1",
    "graded": "in a block a phase has one slot; a neuron sends one graded spike that carries its "
    "count: rate coded 0..T, -T..T where it is signed, or 0..2T behind a GELU; phase coded up to "
    "2^T - 1",
}
"""In both, the residual stream and its norm travel as one graded spike a phase (`payload_bits`)."""


_PLASTIC_TRANSPORT: dict[Spikes, str] = {
    "binary": "a phase is T steps; a drawing comes as at most one spike a step, hidden neurons "
    "send spikes of 0, 1 or 2",
    "graded": "a phase is one step; a drawing comes as graded spikes of 0..T, hidden neurons send "
    "graded spikes of 0..2T",
}
"""In both, membranes, their norm, keys and labels travel as one graded spike a phase."""


class FileEntry(Strict):
    """One file of the netlist."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Count


class Totals(Strict):
    """What the static part of the network amounts to. neurons: those that fire."""

    synapses: Count
    neurons: Count
    weight_bits: Literal[8] = 8


class Manifest(Strict):
    """manifest.json."""

    format: Literal["neurtx netlist"] = "neurtx netlist"
    version: Literal[8, 9, 10, 11] = VERSION
    config: Annotated[Config, Field(discriminator="model")]
    spikes: Spikes
    transport: str
    host: str
    run: str | None = None
    """The run it was made from, not needed any more."""
    run_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the run's weights then (`provenance.run_sha256`)."""
    totals: Totals
    networks: list[Network]
    files: dict[str, FileEntry]
    checksum: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of all the rest of the manifest, see `checksum`."""


@dataclass(frozen=True)
class Netlist:
    """A netlist that was read and checked."""

    folder: Path
    manifest: Manifest
    model: Model


@dataclass(frozen=True)
class TextNetlist(Netlist):
    """Of a language model. Its tokenizer, a library of its own, is read when first asked for."""

    model: IntegerGPT2

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Raises UserError if it does not load, or does not fit the model."""
        return _tokenizer(self.folder, self.model.config.vocabulary)


@dataclass(frozen=True)
class PlasticNetlist(Netlist):
    """Of a plastic transformer."""

    model: IntegerPlasticTransformer


# --- writing ---


def write(
    folder: Path,
    model: Model,
    tokenizer: "PreTrainedTokenizerBase | None",
    spikes: Spikes,
    *,
    made_from: Path | None = None,
    run_sha256: str | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Write all files of a netlist into an empty folder. made_from, run_sha256: the run and the
    hash of its weights, noted for reports.

    Raises UserError for weights that netx would not read back as they are.
    """
    config, tensors = model.config, model.tensors
    silent: dict[str, Literal[0, 1]] = {}
    graph = _graph(config, spikes, silent)
    (folder / "netx").mkdir()
    for network in graph:
        progress(f"writing {network.name}")
        for node, behind in pairwise(network.nodes):
            if not isinstance(node, Synapses | Convolution):
                continue
            name = f"{network.name}.{node.name}"
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            # those of GELU neurons are in another unit than what the synapses add up
            fires = isinstance(behind, CodingNeurons)
            theta = tensors[f"{network.name}.{behind.name}.theta"] if fires else None
            stock = bias, theta, network.slots
            if isinstance(node, Convolution):
                file = _netx_layout(node, weight.shape)
                netx.write_layer(folder / node.file, file, weight, *stock)
            else:
                netx.write_projection(folder / node.file, weight, *stock)
                silent[node.file] = netx.silent_inputs(weight)
    progress(f"writing {CHIP}")
    chip = [name for name, entry in _layout(config).items() if entry.home == "chip"]
    save_file({name: np.ascontiguousarray(tensors[name]) for name in chip}, folder / CHIP)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / TOKENIZER)
    learns = isinstance(config, PlasticConfig)
    draft = Manifest(
        config=config,
        spikes=spikes,
        transport=(_PLASTIC_TRANSPORT if learns else _TRANSPORT)[spikes],
        host=_host(config),
        run=None if made_from is None else str(made_from),
        run_sha256=run_sha256,
        totals=_totals(graph),
        networks=_graph(config, spikes, silent),
        files=_entries(folder),
        checksum="0" * 64,
    )
    # as it will be read: with nothing left to its default
    draft = Manifest.model_validate(draft.model_dump())
    manifest = draft.model_copy(update={"checksum": checksum(draft)})
    write_json(folder / "manifest.json", manifest.model_dump())
    return manifest


def _host(config: Config) -> str:
    """What the host does."""
    if isinstance(config, PlasticConfig):
        return _TEACHER
    host = _LLAMA_HOST if config.rotary else _HOST
    return host if config.first_token is None else host + _INNATE


def _graph(config: Config, spikes: Spikes, silent: Silent) -> list[Network]:
    if isinstance(config, PlasticConfig):
        return plastic_networks(config, spikes)
    return networks(config, spikes, silent)


def _layout(config: Config) -> dict[str, layout.Entry]:
    return plastic.layout(config) if isinstance(config, PlasticConfig) else layout.layout(config)


def _netx_layout(node: Convolution, shape: tuple[int, ...]) -> netx.Layout:
    return netx.convolution(shape, node.side, node.stride, node.padding)


def checksum(manifest: Manifest) -> str:
    """SHA-256 of what the manifest says, but for the checksum itself, and for what it is silent
    on because there was no such thing when it was written."""
    left_out = {"checksum"}
    if manifest.run_sha256 is None:
        left_out.add("run_sha256")  # signed as if there were none, which once there was not
    said = manifest.model_dump_json(exclude=left_out, exclude_unset=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _totals(graph: list[Network]) -> Totals:
    nodes = [node for network in graph for node in network.nodes]
    return Totals(
        synapses=sum(node.in_files for node in nodes if isinstance(node, Matrix)),
        neurons=sum(node.firing for node in nodes),
    )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _entry(path) for path in files}


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


# --- reading ---


def read(folder: Path) -> TextNetlist | PlasticNetlist:
    """Read a netlist. Raises UserError if anything in it is missing, damaged or inconsistent."""
    manifest = _read_manifest(folder)
    _check_files(folder, manifest)
    config, tensors = manifest.config, Packed()
    tensors.update(_tensors(folder / CHIP))
    shapes = _layout(config)
    for network in manifest.networks:
        for node in network.nodes:
            name = f"{network.name}.{node.name}.weight"
            if isinstance(node, Synapses):
                tensors[name] = netx.read_projection(
                    folder / node.file, node.inputs, node.outputs, node.silent_inputs
                )
            elif isinstance(node, Convolution):
                shape = shapes[name].shape
                tensors[name] = netx.read_layer(
                    folder / node.file, _netx_layout(node, shape), shape
                )

    def complain(complaint: str) -> NoReturn:
        _refuse(folder, complaint)

    if isinstance(config, PlasticConfig):
        plastic.check(config, tensors, complain)
        return PlasticNetlist(folder, manifest, IntegerPlasticTransformer(config, tensors))
    layout.check(config, tensors, complain)
    return TextNetlist(folder, manifest, IntegerGPT2(config, tensors))


def read_text(folder: Path) -> TextNetlist:
    """Read the netlist of a language model, tokenizer included. Raises UserError, also if it is of
    another network."""
    found = read(folder)
    if not isinstance(found, TextNetlist):
        raise UserError(
            f"{folder} reads drawings, not text: give --data FOLDER in place of --prompt"
        )
    _ = found.tokenizer
    return found


def read_plastic(folder: Path) -> PlasticNetlist:
    """Read the netlist of a plastic transformer. Raises UserError, also if it is of a
    language model."""
    found = read(folder)
    if not isinstance(found, PlasticNetlist):
        raise UserError(f"{folder} reads text, not drawings: give --prompt in place of --data")
    return found


def _tokenizer(folder: Path, vocabulary: int) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder / TOKENIZER, local_files_only=True, trust_remote_code=False
        )
        numbers = tokenizer.get_vocab().values()
        # a value of the wrong type may come to light only here; no text is one that all can read
        tokenizer.decode(tokenizer.encode("") + list(numbers)[:1])
    # the library lets through whatever a damaged file leads to, a bare Exception too
    except Exception as error:
        _refuse(folder, f"its tokenizer does not load: {error}")
    if max(numbers, default=vocabulary) >= vocabulary:
        _refuse(folder, f"its tokenizer does not fit the model's {vocabulary} tokens")
    return tokenizer


def _refuse(folder: Path, why: Any) -> NoReturn:
    raise UserError(f"{folder} is no sound netlist: {shortened(why)}; export the run again")


def _read_manifest(folder: Path) -> Manifest:
    values = read_json(folder / "manifest.json")
    if values.get("format") != "neurtx netlist":
        _refuse(folder, "manifest.json is not a neurtx netlist's")
    if values.get("version") not in UNDERSTOOD:
        _refuse(folder, f"its version is {values.get('version')!r}, this neurtx reads {VERSION}")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        _refuse(folder, f"manifest.json: {where}: {first['msg']}")
    if manifest.checksum != checksum(manifest):
        _refuse(folder, "manifest.json is not as it was written")
    silent = {
        node.file: node.silent_inputs
        for network in manifest.networks
        for node in network.nodes
        if isinstance(node, Synapses)
    }
    graph = _graph(manifest.config, manifest.spikes, silent)
    if len(graph) != len(manifest.networks):
        _refuse(folder, f"manifest.json has {len(manifest.networks)} networks, not {len(graph)}")
    for found, wanted in zip(manifest.networks, graph, strict=True):
        if found != wanted:
            _refuse(folder, f"manifest.json: network {found.name} does not fit the config")
    if manifest.totals != _totals(graph):
        _refuse(folder, "manifest.json: its totals do not fit its networks")
    return manifest


def _check_files(folder: Path, manifest: Manifest) -> None:
    needed = {
        CHIP,
        *(
            node.file
            for network in manifest.networks
            for node in network.nodes
            if isinstance(node, Synapses | Convolution)
        ),
    }
    for name in sorted(needed - manifest.files.keys()):
        _refuse(folder, f"manifest.json does not list {name}")
    try:
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry)
        # a file more there, and the tokenizer is another
        there = [p for p in (folder / TOKENIZER).rglob("*") if p.is_symlink() or not p.is_dir()]
    # of links in a circle, and of names that no file can have
    except (OSError, RuntimeError, ValueError) as error:
        _refuse(folder, f"a file cannot be read: {error}")
    for name in sorted({p.relative_to(folder).as_posix() for p in there} - manifest.files.keys()):
        _refuse(folder, f"manifest.json does not list {name}")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        _refuse(folder, f"manifest.json names {name}, outside the folder")
    if not path.is_file():
        _refuse(folder, f"{name} is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        _refuse(folder, f"{name} has {size} bytes, the manifest says {entry.bytes}")
    if _entry(path) != entry:
        _refuse(folder, f"{name} is not the file that the manifest describes")


def _tensors(path: Path) -> dict[str, NDArray]:
    try:
        return load_file(path)
    # safetensors has one for what it does not understand, and KeyError for types NumPy has not
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({shortened(error)}): export the run again") from error
