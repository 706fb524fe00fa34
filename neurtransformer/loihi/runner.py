"""One network of a netlist in Lava: its processes, built from the manifest's nodes, and a run.

Synapses come out of the stock netx Network that reads their file, and run in Lava's own Dense and
Conv (`stock.py`); what learns is Lava's LearningDense (`plastic_synapses.py`). Everything else is
microcode of ours in a `processes.Population`.
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
from neurtransformer.integer.parts import Trace
from neurtransformer.janitor import reserve, temporary_folder
from neurtransformer.loihi.lava_runtime import LavaFailed, LavaRuntime, no_resources
from neurtransformer.loihi.netlist import Netlist
from neurtransformer.loihi.network import Network
from neurtransformer.loihi.nodes import (
    Convolution,
    Node,
    PlasticSynapses,
    Programmed,
    Setting,
    Source,
    Synapses,
)
from neurtransformer.loihi.plastic_synapses import (
    PyPlasticSynapses,
    hebbian_rule,
    plastic_synapses,
)
from neurtransformer.loihi.processes import LogFile, Population, model_of
from neurtransformer.loihi.stock import PyConvolution, stock_convolution, stock_synapses

MODELS = {
    # all tagged fixed_pt
    RingBuffer: PySendModelFixed,
    Dense: PyDenseModelBitAcc,
    Conv: PyConvolution,
    LearningDense: PyPlasticSynapses,
}


def run_network(
    netlist: Netlist, network: Network, sent: Mapping[str, Integers]
) -> tuple[Trace, int]:
    """Run one network in Lava, in fixed point, from empty states.

    sent: what its sources send, `source.spikes` -> (tokens, phase, n); it may hold more.
    Returns what happened, in the form of the integer model's `steps` but without the sources, and
    the number of time steps. Raises LavaFailed.
    """
    spikes = {name: sent[f"{name}.spikes"] for name in network.sources}
    tokens = len(next(iter(spikes.values())))
    steps = tokens * network.phase + network.latency
    with temporary_folder() as folder, lava_off_stdout():
        builder = _Builder(netlist, network, spikes, steps, folder)
        run_lava(builder.build(), steps)
        return builder.trace(), steps


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
        self.tokens = len(next(iter(spikes.values())))
        self.setting = Setting(self._tensor, network.phase, network.slots, self.tokens)

    def build(self) -> list[Any]:
        """All processes, wired."""
        made = {node.name: self._process(node) for node in self.network.nodes}
        for wire in self.network.wires:
            sends = getattr(made[wire.source], wire.output)
            hears = getattr(made[wire.target], wire.input)
            # neurons are in a line, pictures are not
            if len(sends.shape) > len(hears.shape):
                sends = sends.flatten()
            elif len(sends.shape) < len(hears.shape):
                sends = sends.reshape(hears.shape)
            sends.connect(hears)
        return list(made.values())

    def _process(self, node: Node) -> Any:
        match node:
            case Programmed():
                return Population(node.microcode(self.setting), self._logs(node))
            case Source():
                return self._source(node)
            case Synapses():
                return stock_synapses(self.netlist.folder / node.file, node.inputs)
            case Convolution():
                return stock_convolution(self.netlist.folder / node.file, node)
            case PlasticSynapses():
                shape, weights = (node.outputs, node.inputs), self._logs(node)["weight"].path
                rule = hebbian_rule(node.rule)
                return plastic_synapses(*shape, rule, weights, SignMode.EXCITATORY)
        raise TypeError(f"{node.name} is neither microcode nor a process of Lava's")

    def _tensor(self, name: str) -> Integers:
        return self.netlist.model.tensors[f"{self.network.name}.{name}"]

    def _source(self, node: Source) -> Any:
        data = np.zeros((node.outputs, self.steps), dtype=np.int32)
        flat = self.spikes[node.name].reshape(-1, node.outputs)
        data[:, node.start : node.start + len(flat)] = flat.T
        return RingBuffer(data=data)

    def _logs(self, node: Node) -> dict[str, LogFile]:
        logs = {}
        for quantity, how in node.logged.items():
            # one more than there are tokens, for what is logged of the token of the phase before
            rows = self.steps if not how.once else self.steps // self.network.phase + 1
            shape = rows, *node.shape(quantity, self.tokens)
            path = new_log(self.folder / f"{node.name}.{quantity}.npy", shape)
            logs[quantity] = LogFile(path, how.once)
        return logs

    def trace(self) -> Trace:
        """What the processes logged, cut into tokens and the steps of their phases."""
        found: Trace = {}
        phase = self.network.phase
        for node in self.network.nodes:
            for quantity, how in node.logged.items():
                rows = np.load(self.folder / f"{node.name}.{quantity}.npy")
                if how.once:
                    rows = rows[how.later :][: self.tokens]
                else:
                    rows = rows[node.start + how.later * phase :][: self.tokens * phase]
                    rows = rows.reshape(self.tokens, phase, *rows.shape[1:])
                found[f"{node.name}.{quantity}"] = rows
        return found


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
    models = {process: _model(process) for process in processes}
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


def _model(process: Any) -> Any:
    if isinstance(process, Population):
        return model_of(process.proc_params["code"])
    return MODELS[type(process)]


@contextlib.contextmanager
def lava_off_stdout() -> Iterator[None]:
    """Lava and netx print warnings and tables; an answer may be all that belongs on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
