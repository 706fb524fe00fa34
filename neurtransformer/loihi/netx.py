"""One projection as a netx HDF5 file, which stock `lava.lib.dl.netx.hdf5.Network` loads and runs.

    /layer/0  type "input", shape (in,)
    /layer/1  type "dense", shape (out,), weight (out, in), bias (out,),
              neuron/{type "CUBA", iDecay 4096, vDecay 0, vThMant}

or a convolution: shapes (channel, row, column), type "conv", weight (out, in, row, column), and
stride, padding, dilation (row, column) and groups beside them.

What stock netx runs by itself is the nearest neuron that it has: an integrator without leak, with
*one* threshold per layer, hard reset, and the bias added in every step. Our runner takes the
synapses from the stock Network and puts our own neurons behind them (`processes.py`); the exact
biases and thresholds of those are tensors of the netlist.

The reader of netx (lava-dl 0.6.0, `netx/hdf5.py` and `netx/utils.py`) spoils some matrices without
a word, and this writer makes none of them:

- floats are truncated and odd weights do not fit the 8 bits of a matrix of mixed sign: refused;
- weights beyond -256..254 are clipped, or zeroed where all are positive: refused;
- where no weight is positive, a least weight of -256, -128, ... -2 turns into something smaller or
  into 0, and a matrix of zeros raises OverflowError: written with one more input, which is always
  silent and has a positive weight.
"""

import io
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from neurtransformer.errors import UserError, shortened

MAX_BIAS = 4095
"""Largest magnitude of Lava's 13-bit bias mantissa that has a counterpart of the other sign."""

MAX_THRESHOLD = 2**17 - 1
_NEURON = {"iDecay": 4096, "vDecay": 0}


@dataclass(frozen=True)
class Layout:
    """What stands in a file beside weights, biases and the threshold.

    kind: "dense" or "conv". inputs, outputs: shapes. settings: whole numbers by name.
    """

    kind: Literal["dense", "conv"]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    settings: Mapping[str, tuple[int, ...] | int]

    @property
    def texts(self) -> dict[str, np.bytes_]:
        return {
            "layer/0/type": np.bytes_("input"),
            "layer/1/type": np.bytes_(self.kind),
            "layer/1/neuron/type": np.bytes_("CUBA"),
        }

    @property
    def numbers(self) -> dict[str, tuple[int, ...] | int]:
        return {
            "layer/0/shape": self.inputs,
            "layer/1/shape": self.outputs,
            **{f"layer/1/{name}": value for name, value in self.settings.items()},
            **{f"layer/1/neuron/{name}": value for name, value in _NEURON.items()},
        }

    @property
    def tree(self) -> dict[str, set[str]]:
        """Every group of a file, from the top, and all that is in it."""
        return {
            "/": {"layer"},
            "/layer/": {"0", "1"},
            "/layer/0/": {"type", "shape"},
            "/layer/1/": {"type", "shape", "weight", "bias", "neuron", *self.settings},
            "/layer/1/neuron/": {"type", "vThMant", *_NEURON},
        }


def dense(inputs: int, outputs: int) -> Layout:
    """Of a matrix (outputs, inputs)."""
    return Layout("dense", (inputs,), (outputs,), {})


def convolution(weight: tuple[int, ...], side: int, stride: int, padding: int) -> Layout:
    """Of kernels of the shape `weight`, (out, in, k, k), over square pictures of that side."""
    outs, ins, kernel, _ = weight
    after = (side + 2 * padding - kernel) // stride + 1
    settings: dict[str, tuple[int, ...] | int] = {
        "stride": (stride, stride),
        "padding": (padding, padding),
        "dilation": (1, 1),
        "groups": 1,
    }
    return Layout("conv", (ins, side, side), (outs, after, after), settings)


def silent_inputs(weight: NDArray) -> Literal[0, 1]:
    """How many inputs the file of `weight` has that never spike: 1 if no weight is positive."""
    return 0 if (weight > 0).any() else 1


def write_projection(
    path: Path, weight: NDArray, bias: NDArray, theta: NDArray | None, timesteps: int
) -> None:
    """Write one projection. weight: (out, in) integers. bias: (out,), for a phase of so many steps.

    theta: thresholds of the neurons behind it, (out,), or None where nothing fires.
    Raises UserError for what netx would not read back as it is.
    """
    if silent_inputs(weight):
        weight = np.concatenate([weight, np.zeros_like(weight[:, :1])], axis=1)
        weight[0, -1] = 2
    write_layer(path, dense(weight.shape[-1], len(weight)), weight, bias, theta, timesteps)


def write_layer(
    path: Path,
    layout: Layout,
    weight: NDArray,
    bias: NDArray,
    theta: NDArray | None,
    timesteps: int,
) -> None:
    """Write weights as they are; the other arguments are those of `write_projection`.

    netx spoils no kernels, so a convolution needs nothing else. Raises UserError for weights that
    are not even or beyond 8 bits.
    """
    _check_weights(path.name, weight)
    # what the stock neuron can be told of them, see above
    step_bias = np.clip(np.rint(bias / timesteps), -MAX_BIAS, MAX_BIAS)
    threshold = MAX_THRESHOLD if theta is None else np.clip(np.median(theta), 1, MAX_THRESHOLD)
    # in memory first: on a full disk HDF5 leaves a file it cannot close, and crashes
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        layer = file.create_group("layer/1")
        layer.create_dataset("weight", data=weight.astype(np.int16), compression="gzip")
        layer["bias"] = step_bias.astype(np.int16)
        layer["neuron/vThMant"] = int(threshold)
        for name, value in (layout.texts | layout.numbers).items():
            file[name] = value if isinstance(value, np.bytes_) else np.array(value)
    path.write_bytes(content.getvalue())


def read_projection(path: Path, inputs: int, outputs: int, silent: int) -> NDArray[np.int16]:
    """The weights (outputs, inputs) of a file that `write_projection` made.

    silent: how many inputs stand behind those that never spike. Raises UserError if the file is cut
    short, or anything in it is not what netx reads unchanged.
    """
    weight = read_layer(path, dense(inputs + silent, outputs), (outputs, inputs + silent))
    if silent_inputs(weight) or (silent and not silent_inputs(weight[:, :inputs])):
        _refuse(path, "its silent inputs do not fit its weights")
    return weight[:, :inputs]


def read_layer(path: Path, layout: Layout, shape: tuple[int, ...]) -> NDArray[np.int16]:
    """The weights of that shape of a file, all of it checked. Raises UserError.

    Nothing is unpacked before its size is known.
    """
    with _file(path) as file:
        _check_tree(path, file, layout)
        weight = _integers(path, file, "layer/1/weight", shape)
        bias = _integers(path, file, "layer/1/bias", layout.outputs[:1]).astype(int)
        threshold = int(_integers(path, file, "layer/1/neuron/vThMant", ()))
        for name, number in layout.numbers.items():
            wanted = np.array(number)
            if (_integers(path, file, name, wanted.shape) != wanted).any():
                _refuse(path, f"{name} is not {wanted.tolist()}")
        for name, text in layout.texts.items():
            dataset = _dataset(path, file, name, ())
            if dataset.dtype != text.dtype or dataset[()] != text:
                _refuse(path, f"{name} is not {text.decode()}")
    _check_weights(str(path), weight)
    if bias.min() < -MAX_BIAS or bias.max() > MAX_BIAS:
        _refuse(path, f"biases must be integers of at most {MAX_BIAS}")
    if not 1 <= threshold <= MAX_THRESHOLD:
        _refuse(path, f"the threshold must be 1 to {MAX_THRESHOLD}, not {threshold}")
    return weight.astype(np.int16)


def _refuse(path: Path, why: str) -> NoReturn:
    raise UserError(f"{path}: {why}: export the run again")


def _check_weights(name: str, weight: NDArray) -> None:
    if weight.ndim not in (2, 4) or weight.dtype.kind != "i" or weight.size == 0:
        raise UserError(f"{name}: weights must be integers in a matrix or kernels, no floats")
    low, high = int(weight.min()), int(weight.max())
    if low < -256 or high > 254:
        raise UserError(f"{name}: weights reach from {low} to {high}; netx takes -256 to 254")
    if (weight & 1).any():
        raise UserError(f"{name}: odd weights do not fit 8 bits in steps of two")


@contextmanager
def _file(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    # what h5py and zlib make of a damaged file is nearly every kind of exception
    except Exception as error:
        why = shortened(error)
        raise UserError(
            f"{path} is missing, cut short or no HDF5 file ({why}): export the run again"
        ) from error


def _check_tree(path: Path, file: h5py.File, layout: Layout) -> None:
    """Refuse what stock netx would read besides, and links, which may lead out of the file."""
    for name, keys in layout.tree.items():
        group = file[name]
        if not isinstance(group, h5py.Group) or set(group) != keys:
            _refuse(path, f"{name} must be a group of {', '.join(sorted(keys))} and nothing else")
        for key in keys:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                _refuse(path, f"{name}{key} is a link")


def _integers(path: Path, file: h5py.File, name: str, shape: tuple[int, ...]) -> NDArray:
    dataset = _dataset(path, file, name, shape)
    if dataset.dtype.kind != "i":
        _refuse(path, f"{name} must hold integers")
    return dataset[()]


def _dataset(path: Path, file: h5py.File, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """A dataset that may be read: all of it stands in the file, and it has the shape given."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        _refuse(path, f"{name} is no dataset")
    if dataset.shape != shape:
        _refuse(path, f"{name} has the shape {dataset.shape}, not {shape}")
    if dataset.is_virtual or dataset.external or not _is_whole(dataset):
        _refuse(path, f"{name} does not stand in the file as it was written")
    return dataset


def _is_whole(dataset: h5py.Dataset) -> bool:
    """Whether as many bytes stand in the file as the dataset says, and unpack to as many.

    HDF5 makes up what is not in the file, and unpacks a chunk however large it becomes.
    """
    chunks, item = dataset.chunks, dataset.dtype.itemsize
    if chunks is None:
        return dataset.id.get_storage_size() == dataset.size * item
    counts = [-(-size // chunk) for size, chunk in zip(dataset.shape, chunks, strict=True)]
    filters = dataset.id.get_create_plist()
    if (
        any(chunk > size for size, chunk in zip(dataset.shape, chunks, strict=True))
        or dataset.id.get_num_chunks() != math.prod(counts)
        or [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
        != [h5py.h5z.FILTER_DEFLATE]
    ):
        return False
    size = math.prod(chunks) * item
    for position in itertools.product(*map(range, counts)):
        offset = tuple(i * chunk for i, chunk in zip(position, chunks, strict=True))
        unpacked, packed = zlib.decompressobj(), dataset.id.read_direct_chunk(offset)
        if packed[0] or len(unpacked.decompress(packed[1], size + 1)) != size or not unpacked.eof:
            return False
    return True
