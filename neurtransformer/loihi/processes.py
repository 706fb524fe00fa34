"""Our Lava process: a population of neurons that runs microcode (microcode.py, `attention/`).

Every array of the microcode is a Var of the process. A population can log arrays to files, a row
for each time step (`logs`), because Lava's monitors move each number in a message of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from neurtransformer.integer.arithmetic import STATE_BITS
from neurtransformer.loihi.microcode import Microcode

STATE = LavaPyType(np.ndarray, np.int32, precision=STATE_BITS)
SPIKES_IN = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=STATE_BITS)
SPIKES_OUT = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=STATE_BITS)


class LogFile(NamedTuple):
    """Where an array is logged. once: a row for each phase, written in its last step, instead of
    one for each time step."""

    path: Path
    once: bool = False


Logs = Mapping[str, LogFile]
"""Name of an array -> where it goes."""


class Population(AbstractProcess):
    """A population. logs: of arrays of its microcode, by name."""

    def __init__(self, code: Microcode, logs: Logs) -> None:
        super().__init__(code=code, logs=logs)
        for port, width in code.inputs.items():
            setattr(self, port, InPort(shape=(width,)))
        self.s_out = OutPort(shape=(code.outputs,))
        for name, x in code.arrays.items():
            setattr(self, name, Var(shape=x.shape, init=x))


@implements(proc=Population, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPopulation(PyLoihiProcessModel):
    """Population on a CPU; `model_of` adds the ports and Vars that its microcode has."""

    s_out: PyOutPort = SPIKES_OUT

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.code: Microcode = proc_params["code"]
        self.ports = tuple(self.code.inputs)
        self.logs = {
            name: (log, open_memmap(log.path, mode="r+"))
            for name, log in proc_params["logs"].items()
        }
        self.bound = False

    def run_spk(self) -> None:
        if not self.bound:  # Lava has made arrays of its own of the Vars
            for name in self.code.arrays:
                setattr(self.code, name, getattr(self, name))
            self.bound = True
        now = self.time_step - 1
        arriving = {port: getattr(self, port).recv() for port in self.ports}
        self.s_out.send(self.code.tick(now, arriving))
        for name, (log, file) in self.logs.items():
            if not log.once:
                file[now] = getattr(self.code, name)
            elif self.code.clock.is_last(now):
                file[self.code.clock.token(now)] = getattr(self.code, name)


def model_of(code: Microcode) -> type[PyPopulation]:
    """The process model for such a population."""
    fields = dict.fromkeys(code.inputs, SPIKES_IN) | dict.fromkeys(code.arrays, STATE)
    return type(f"Py{type(code).__name__}", (PyPopulation,), fields)
