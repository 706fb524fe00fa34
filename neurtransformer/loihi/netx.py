"""One projection as a netx HDF5 file, which stock `lava.lib.dl.netx.hdf5.Network` loads and runs.

    /layer/0  type "input", shape (in,)
    /layer/1  type "dense", shape (out,), weight (out, in), bias (out,),
              neuron/{type "CUBA", iDecay 4096, vDecay 0, vThMant}

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from neurtransformer.errors import UserError

MAX_BIAS = 4095
"""Largest magnitude of Lava's 13-bit bias mantissa that has a counterpart of the other sign."""

MAX_THRESHOLD = 2**17 - 1
_NEURON = {"iDecay": 4096, "vDecay": 0}


def silent_inputs(weight: NDArray) -> Literal[0, 1]:
    """How many inputs the file of `weight` has that never spike: 1 if no weight is positive."""
    return 0 if (weight > 0).any() else 1


def write_projection(
    path: Path, weight: NDArray, bias: NDArray, theta: NDArray | None, timesteps: int
) -> None:
    """Write one projection. weight: (out, in) integers. bias: (out,), for a phase of T steps.

    theta: thresholds of the neurons behind it, (out,), or None where nothing fires.
    Raises UserError for what netx would not read back as it is.
    """
    _check_weights(path, weight)
    # what the stock neuron can be told of them, see above
    step_bias = np.clip(np.rint(bias / timesteps), -MAX_BIAS, MAX_BIAS)
    threshold = MAX_THRESHOLD if theta is None else np.clip(np.median(theta), 1, MAX_THRESHOLD)
    if silent_inputs(weight):
        weight = np.concatenate([weight, np.zeros_like(weight[:, :1])], axis=1)
        weight[0, -1] = 2
    outputs, inputs = weight.shape
    # in memory first: on a full disk HDF5 leaves a file it cannot close, and crashes
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        layer = file.create_group("layer/0")
        layer["type"] = np.bytes_("input")
        layer["shape"] = np.array([inputs])
        layer = file.create_group("layer/1")
        layer["type"] = np.bytes_("dense")
        layer["shape"] = np.array([outputs])
        layer.create_dataset("weight", data=weight.astype(np.int16), compression="gzip")
        layer["bias"] = step_bias.astype(np.int16)
        layer["neuron/type"] = np.bytes_("CUBA")
        for key, value in _NEURON.items():
            layer[f"neuron/{key}"] = value
        layer["neuron/vThMant"] = int(threshold)
    path.write_bytes(content.getvalue())


def read_projection(path: Path, inputs: int, outputs: int) -> NDArray[np.int16]:
    """The weights (outputs, inputs) of a file that `write_projection` made.

    Raises UserError if it is cut short, or anything in it is not what netx reads unchanged.
    """
    with _file(path) as file:
        weight = _dataset(path, file, "layer/1/weight", "i")
        bias = _dataset(path, file, "layer/1/bias", "i")
        threshold = int(_dataset(path, file, "layer/1/neuron/vThMant", "i"))
        names: dict[str, Any] = {
            "layer/0/type": b"input",
            "layer/0/shape": [weight.shape[-1]],
            "layer/1/type": b"dense",
            "layer/1/shape": [outputs],
            "layer/1/neuron/type": b"CUBA",
            **{f"layer/1/neuron/{key}": value for key, value in _NEURON.items()},
        }
        for name, wanted in names.items():
            if not np.array_equal(_dataset(path, file, name), wanted):
                raise UserError(f"{path}: {name} is not {wanted}: export the run again")
    _check_weights(path, weight)
    padded = weight.shape == (outputs, inputs + 1) and silent_inputs(weight[:, :-1]) == 1
    if weight.shape != (outputs, inputs) and not padded:
        raise UserError(f"{path}: weights are {weight.shape}, not {(outputs, inputs)}")
    if bias.shape != (outputs,) or np.abs(bias.astype(int)).max() > MAX_BIAS:
        raise UserError(f"{path}: biases must be {outputs} integers of at most {MAX_BIAS}")
    if not 1 <= threshold <= MAX_THRESHOLD:
        raise UserError(f"{path}: the threshold must be 1 to {MAX_THRESHOLD}, not {threshold}")
    return weight[:, :inputs].astype(np.int16)


def _check_weights(path: Path, weight: NDArray) -> None:
    name = path.name
    if weight.ndim != 2 or weight.dtype.kind != "i" or weight.size == 0:
        raise UserError(f"{name}: weights must be a matrix of integers; netx truncates floats")
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
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} is missing, cut short or no HDF5 file ({str(error).splitlines()[0]}): "
            "export the run again"
        ) from error


def _dataset(path: Path, file: h5py.File, name: str, kind: str | None = None) -> NDArray:
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        raise UserError(f"{path} holds no {name}: export the run again")
    if kind is not None and node.dtype.kind != kind:
        raise UserError(f"{path}: {name} must hold integers")
    return node[()]
