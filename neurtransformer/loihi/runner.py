"""One network of a netlist in Lava: its processes, built from the manifest's nodes, and a run.

Synapses come out of the stock netx Network that reads their file, and run in Lava's own Dense and
Conv (`stock.py`); what learns is Lava's LearningDense (`plastic_synapses.py`). Everything else is
microcode of ours in a `processes.Population`.
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
from neurtransformer.integer.parts import Trace
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
log = logging.getLogger(__name__)


class LavaFailed(RuntimeError):
    """A Lava process stopped with an error."""


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
    with tempfile.TemporaryDirectory(prefix="neurtx-") as folder, lava_off_stdout():
        builder = _Builder(netlist, network, spikes, steps, Path(folder))
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
            path = self.folder / f"{node.name}.{quantity}.npy"
            shape = rows, *node.shape(quantity, self.tokens)
            open_memmap(path, mode="w+", dtype=np.int32, shape=shape)
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


def run_lava(processes: list[Any], steps: int) -> None:
    """Run connected processes. Raises LavaFailed; Lava itself would wait for ever for a dead one.

    Each process is told its model: left to search, Lava executes every file in the folder of every
    process anew, which takes seconds.
    """
    models = {process: _model(process) for process in processes}
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


def _model(process: Any) -> Any:
    if isinstance(process, Population):
        return model_of(process.proc_params["code"])
    return MODELS[type(process)]


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
