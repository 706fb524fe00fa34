"""One network of a netlist in Lava: its processes, built from the manifest's nodes, and a run.

Synapses come out of the stock netx Network that reads their file, and run in Lava's own Dense and
Conv (`stock.py`); what learns is Lava's LearningDense (`plastic_synapses.py`). Neurons and SSA are
ours (`processes.py`, `ssa.py`).
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.conv.process import Conv
from lava.proc.dense.models import PyDenseModelBitAcc
from lava.proc.dense.process import Dense, LearningDense
from lava.proc.io.source import PySendModelFixed, RingBuffer
from lava.utils.weightutils import SignMode

from neurtransformer import stop
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.parts import GeluNeurons, Trace
from neurtransformer.loihi import nodes
from neurtransformer.loihi.janitor import reserve, temporary_folder
from neurtransformer.loihi.lava_runtime import LavaFailed, LavaRuntime, no_resources
from neurtransformer.loihi.netlist import Netlist
from neurtransformer.loihi.nodes import AnyNode, Network
from neurtransformer.loihi.plastic_synapses import (
    PyPlasticSynapses,
    hebbian_rule,
    plastic_synapses,
)
from neurtransformer.loihi.processes import (
    Accumulator,
    CodingNeurons,
    KeyNeurons,
    Logs,
    Norm,
    PyAccumulator,
    PyCodingNeurons,
    PyKeyNeurons,
    PyNorm,
)
from neurtransformer.loihi.ssa import SSA, PySSA
from neurtransformer.loihi.stock import PyConvolution, stock_convolution, stock_synapses

_LOGGED = {
    # node kind -> quantity -> whether it belongs to the token of the phase before
    "coding_neurons": {"u": False, "v": True, "spikes": True},
    "gelu_neurons": {"u": False, "v": True, "spikes": True},
    "key_neurons": {"u": False, "v": True, "spikes": True},
    "ssa": {"read": True, "state": True},
    "plastic_synapses": {"weight": False},
    "norm": {"y": False},
    "accumulator": {"u": False, "x": False},
}
MODELS = {
    # all tagged fixed_pt
    RingBuffer: PySendModelFixed,
    Dense: PyDenseModelBitAcc,
    Conv: PyConvolution,
    LearningDense: PyPlasticSynapses,
    Norm: PyNorm,
    CodingNeurons: PyCodingNeurons,
    KeyNeurons: PyKeyNeurons,
    SSA: PySSA,
    Accumulator: PyAccumulator,
}


def run_network(
    netlist: Netlist, network: Network, sent: Mapping[str, Integers]
) -> tuple[Trace, int]:
    """Run one network in Lava, in fixed point, from empty states.

    sent: what its sources send, `source.spikes` -> (tokens, phase, n); it may hold more.
    Returns what happened, in the form of the integer model's `steps` but without the sources and
    with the SSA state of every step, (tokens, phase, ...), and the number of time steps.
    Raises LavaFailed.
    """
    spikes = {name: sent[f"{name}.spikes"] for name in network.sources}
    tokens = len(next(iter(spikes.values())))
    steps = tokens * network.phase + network.latency
    with temporary_folder() as folder, lava_off_stdout():
        builder = _Builder(netlist, network, spikes, steps, folder)
        run_lava(builder.build(), steps)
        return builder.trace(tokens), steps


class _Builder:
    """Processes for the nodes of one network, and the files they log to."""

    def __init__(
        self,
        netlist: Netlist,
        network: Network,
        spikes: Mapping[str, Integers],
        steps: int,
        folder: Path,
    ) -> None:
        self.netlist, self.network, self.spikes = netlist, network, spikes
        self.steps, self.folder = steps, folder
        self.phase = network.phase

    def build(self) -> list[Any]:
        """All processes, wired."""
        made = {node.name: self._process(node) for node in self.network.nodes}
        for source, target in self.network.wires:
            ports = made[target][0]
            # a second port is for what comes from a source: the stream that goes by, or a teacher
            port = ports[1 if source in self.network.sources and len(ports) > 1 else 0]
            sends, hears = made[source][1], port
            # neurons are in a line, pictures are not
            if len(sends.shape) > len(hears.shape):
                sends = sends.flatten()
            elif len(sends.shape) < len(hears.shape):
                sends = sends.reshape(hears.shape)
            sends.connect(hears)
        return [process for _, _, process in made.values()]

    def _process(self, node: AnyNode) -> tuple[list[Any], Any, Any]:
        """(input ports, output port, process) for one node."""
        if isinstance(node, nodes.Source):
            process = self._source(node)
            return [], process.s_out, process
        if isinstance(node, nodes.Synapses):
            process = stock_synapses(self.netlist.folder / node.file, node.inputs)
            return [process.s_in], process.a_out, process
        if isinstance(node, nodes.Convolution):
            process = stock_convolution(self.netlist.folder / node.file, node)
            return [process.s_in], process.a_out, process
        if isinstance(node, nodes.PlasticSynapses):
            shape, log = (node.outputs, node.inputs), self._logs(node)["weight"]
            process = plastic_synapses(*shape, hebbian_rule(node.rule), log, SignMode.EXCITATORY)
            return [process.s_in, process.s_in_y1], process.a_out, process
        common: dict[str, Any] = {
            "phase": self.phase,
            "start": node.start,
            "logs": self._logs(node),
        }
        if isinstance(node, nodes.Norm):
            epsilon = int(self._tensor("norm.epsilon")[0])
            process = Norm(width=node.outputs, epsilon=epsilon, **common)
            return [process.x_in], process.s_out, process
        if isinstance(node, nodes.Accumulator):
            process = Accumulator(
                bias=self._for_each(node, node.bias),
                mantissa=self._for_each(node, f"{node.name}.mantissa"),
                shift=self._for_each(node, f"{node.name}.shift"),
                receives=node.receives,
                delay=node.delay,
                **common,
            )
            return [process.a_in, process.x_in], process.s_out, process
        if isinstance(node, nodes.SSA):
            process = SSA(
                timesteps=self.netlist.manifest.config.timesteps,
                shift=self._tensor("ssa.shift"),
                present=self._tensor("ssa.present"),
                dim=node.dim,
                key_dim=node.key_dim,
                **common,
            )
            return [process.s_in], process.s_out, process
        if isinstance(node, nodes.KeyNeurons):
            process = KeyNeurons(
                bias=self._for_each(node, node.bias),
                theta=self._for_each(node, f"{node.name}.theta"),
                most=node.most,
                input_shift=node.input_shift,
                **common,
            )
            return [process.a_in], process.s_out, process
        if isinstance(node, nodes.CodingNeurons):
            common |= {"unsigned": node.unsigned, "input_shift": node.input_shift}
        elif isinstance(node, nodes.GeluNeurons):
            gelu = GeluNeurons.of(self.netlist.model.tensors, f"{self.network.name}.{node.name}")
            common |= {"unsigned": node.outputs, "input_shift": 0, "gelu": gelu}
        process = CodingNeurons(
            bias=self._for_each(node, node.bias),
            theta=self._for_each(node, f"{node.name}.theta"),
            receives=node.receives,
            sends=node.sends,
            most=node.most,
            **common,
        )
        return [process.a_in], process.s_out, process

    def _tensor(self, name: str) -> Integers:
        return self.netlist.model.tensors[f"{self.network.name}.{name}"]

    def _for_each(self, node: AnyNode, name: str) -> Integers:
        """A tensor of its neurons; one of channels is the same for every position."""
        x = self._tensor(name)
        return np.tile(x, node.outputs // len(x))

    def _source(self, node: nodes.Source) -> Any:
        data = np.zeros((node.outputs, self.steps), dtype=np.int32)
        flat = self.spikes[node.name].reshape(-1, node.outputs)
        data[:, node.start : node.start + len(flat)] = flat.T
        return RingBuffer(data=data)

    def _logs(self, node: AnyNode) -> Logs:
        logs = {}
        for quantity in _LOGGED[node.kind]:
            shape = (self.steps, *_shape(node, quantity))
            logs[quantity] = new_log(self.folder / f"{node.name}.{quantity}.npy", shape)
        return logs

    def trace(self, tokens: int) -> Trace:
        """What the processes logged, cut into tokens and the steps of their phases."""
        found: Trace = {}
        for node in self.network.nodes:
            for quantity, later in _LOGGED.get(node.kind, {}).items():
                rows = np.load(self.folder / f"{node.name}.{quantity}.npy")
                first = node.start + later * self.phase
                rows = rows[first : first + tokens * self.phase]
                found[f"{node.name}.{quantity}"] = rows.reshape(tokens, self.phase, *rows.shape[1:])
        return found


def _shape(node: AnyNode, quantity: str) -> tuple[int, ...]:
    """Shape of a logged quantity in one time step."""
    if isinstance(node, nodes.SSA):
        read = node.heads, node.dim + 1
        return read if quantity == "read" else (*read, node.key_dim)
    if isinstance(node, nodes.PlasticSynapses):
        return node.outputs, node.inputs
    return (node.outputs,)


def new_log(path: Path, shape: tuple[int, ...]) -> Path:
    """A file for Lava's processes to write an int32 array to. Raises UserError if there is no room
    for it."""
    open_memmap(path, mode="w+", dtype=np.int32, shape=shape)
    reserve(path)
    return path


def run_lava(processes: list[Any], steps: int) -> None:
    """Run connected processes. Raises LavaFailed; Lava itself would wait for ever for a dead one.

    Signals wait until all processes have ended, which is soon.

    Each process is told its model: left to search, Lava executes every file in the folder of every
    process anew, which takes seconds.
    """
    models = {process: MODELS[type(process)] for process in processes}
    config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=models)
    try:
        executable = processes[0].compile(config)
        runtime = LavaRuntime(executable)
        executable.assign_runtime_to_all_processes(runtime)
        with stop.held() as runtime.signals:
            try:
                runtime.initialize()
                runtime.start(RunSteps(num_steps=steps, blocking=False))
                runtime.wait_until_done()
            finally:
                runtime.end()
    except OSError as error:
        raise no_resources(error) from error
    except Exception as error:
        if isinstance(error, LavaFailed):
            raise
        raise LavaFailed(f"Lava stopped: {error}") from error


@contextlib.contextmanager
def lava_off_stdout() -> Iterator[None]:
    """Lava and netx print warnings and tables; an answer may be all that belongs on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
