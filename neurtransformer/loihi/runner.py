"""One network of a netlist in Lava: its processes, built from the manifest's nodes, and a run.

Synapses come out of the stock netx Network that reads their file, and run in Lava's own Dense and
Conv (`stock.py`); what learns is Lava's LearningDense (`plastic_synapses.py`). Neurons and SSA are
ours (`processes.py`, `ssa.py`).
"""

import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.runtime.message_infrastructure.multiprocessing import SystemProcess
from lava.proc.conv.process import Conv
from lava.proc.dense.models import PyDenseModelBitAcc
from lava.proc.dense.process import Dense, LearningDense
from lava.proc.io.source import PySendModelFixed, RingBuffer
from lava.utils.weightutils import SignMode

from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.parts import GeluNeurons, Trace
from neurtransformer.loihi import nodes
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
log = logging.getLogger(__name__)


class LavaFailed(RuntimeError):
    """A Lava process stopped with an error."""


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
    with tempfile.TemporaryDirectory(prefix="neurtx-") as folder, lava_off_stdout():
        builder = _Builder(netlist, network, spikes, steps, Path(folder))
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
            logs[quantity] = self.folder / f"{node.name}.{quantity}.npy"
            open_memmap(logs[quantity], mode="w+", dtype=np.int32, shape=shape)
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


def run_lava(processes: list[Any], steps: int) -> None:
    """Run connected processes. Raises LavaFailed; Lava itself would wait for ever for a dead one.

    Each process is told its model: left to search, Lava executes every file in the folder of every
    process anew, which takes seconds.
    """
    models = {process: MODELS[type(process)] for process in processes}
    config = Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=models)
    try:
        processes[0].create_runtime(run_cfg=config)
        runtime = processes[0].runtime
        actors = list(runtime._messaging_infrastructure.actors)
        runtime.start(RunSteps(num_steps=steps, blocking=False))
        answers = runtime.service_to_runtime[0]
        while not answers.probe():
            for actor in actors:
                if actor.exception is not None or not actor.is_alive():
                    raise LavaFailed(f"a Lava process stopped: {_reason(actor)}")
            time.sleep(0.002)
        runtime.wait()
        runtime.stop()
    except BaseException as error:
        _end(processes[0].runtime)
        if isinstance(error, LavaFailed) or not isinstance(error, Exception):
            raise
        raise LavaFailed(f"Lava stopped: {error}") from error


def _end(runtime: Any) -> None:
    """End the operating-system processes of a run that went wrong."""
    if runtime is None or runtime._messaging_infrastructure is None:
        return
    runtime._is_started = False  # else it waits for the dead when it is collected
    actors = runtime._messaging_infrastructure.actors
    for end in (SystemProcess.terminate, SystemProcess.join):
        for actor in actors:
            with contextlib.suppress(ValueError):  # joined and closed already
                end(actor)
    runtime._messaging_infrastructure.smm.shutdown()


def _reason(actor: Any) -> str:
    if actor.exception is None:
        return f"exit code {actor.exitcode}"
    error, trace = actor.exception
    log.debug("%s", trace)
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def lava_off_stdout() -> Iterator[None]:
    """Lava and netx print warnings and tables; an answer may be all that belongs on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
