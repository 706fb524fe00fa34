"""Lava's own synapses, Dense and Conv, with the weights that stock netx reads from a file."""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.lib.dl.netx import hdf5
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.conv.models import PyConvModelFixed
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense
from lava.utils.weightutils import determine_sign_mode

from neurtransformer.loihi import nodes

PAYLOAD_BITS = 8
"""Above 0 Lava's Conv and Dense take spikes with payloads, of any width; nodes say theirs."""


def stock_synapses(path: Path, inputs: int) -> Dense:
    """Lava's Dense with the weights and exponents that stock netx reads from `path`.

    A silent input is left out; it has done its work when it has decided the sign mode.
    """
    network = hdf5.Network(net_config=str(path), input_message_bits=PAYLOAD_BITS)
    synapse = network.layers[0].synapse
    weights = synapse.weights.init
    return Dense(
        weights=weights[:, :inputs],
        sign_mode=determine_sign_mode(weights),
        weight_exp=synapse.proc_params["weight_exp"],
        num_weight_bits=synapse.proc_params["num_weight_bits"],
        num_message_bits=PAYLOAD_BITS,
    )


def stock_convolution(path: Path, node: nodes.Convolution) -> Conv:
    """Lava's Conv with the kernels and the geometry that stock netx reads from `path`."""
    network = hdf5.Network(net_config=str(path), input_message_bits=PAYLOAD_BITS)
    stock = network.layers[0].synapse
    return Conv(
        weight=stock.weight.init,
        padding=tuple(stock.padding.init),
        stride=tuple(stock.stride.init),
        dilation=tuple(stock.dilation.init),
        input_shape=(node.side, node.side, node.in_channels),
        num_message_bits=PAYLOAD_BITS,
    )


@implements(proc=Conv, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyConvolution(PyConvModelFixed):
    """Lava's model of Conv, for a dilation and groups of 1, in NumPy. The stock one asks torch,
    which waits for ever in a process forked from one that has used torch's threads."""

    a_buf: np.ndarray

    def run_spk(self) -> None:
        self.a_out.send(self.a_buf)
        u = convolved(self.s_in.recv(), self.weight, self.padding, self.stride)
        self.a_buf = self.clamp_precision(u)


def convolved(picture: NDArray, kernels: NDArray, padding: NDArray, stride: NDArray) -> NDArray:
    """A picture (column, row, in) under kernels (out, column, row, in), which Lava holds turned by
    half a turn: (column, row, out). padding, stride: of columns and rows."""
    (left, top), (across, down) = padding, stride
    padded = np.pad(picture, ((left, left), (top, top), (0, 0)))
    fields = sliding_window_view(padded, kernels.shape[1:])[::across, ::down, 0]
    return np.tensordot(fields, kernels[:, ::-1, ::-1], axes=((2, 3, 4), (1, 2, 3)))
