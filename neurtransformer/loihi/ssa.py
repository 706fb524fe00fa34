"""Spiking self-attention with its plastic state as one Lava process of our own.

It *counts* the spikes of key and value during a phase; when the next phase begins it writes the
product of values and squared keys into its plastic state, and during that phase it *reads* the
state with the query spikes of the same token, which it has delayed by one phase. They facilitate:
the n-th of a neuron carries 2n - 1, and a graded spike of n carries n^2. Phases are those of
processes.py; the same in Lava's learning engine is plasticity.py.
"""

from typing import Any

import numpy as np

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.loihi.processes import SPIKES_IN, SPIKES_OUT, STATE, Logs, PhasedModel


class SSA(AbstractProcess):
    """Causal spiking self-attention of all heads of a block, its plastic state included.

    shift, present: (heads,), how fast it forgets and what the present weighs. dim, key_dim: values
    and keys of a head. Takes the spikes of query, key and value, each of all heads, and sends the
    mean value counts (heads * dim,) in the last step of a phase.
    """

    def __init__(
        self,
        *,
        shift: Integers,
        present: Integers,
        dim: int,
        key_dim: int,
        timesteps: int,
        phase: int,
        start: int,
        logs: Logs,
    ) -> None:
        super().__init__(timesteps=timesteps, phase=phase, start=start, logs=logs)
        heads = len(shift)
        spikes = heads * (2 * key_dim + dim)
        self.s_in = InPort(shape=(spikes,))
        self.s_out = OutPort(shape=(heads * dim,))
        self.shift = Var(shape=shift.shape, init=shift)
        self.present = Var(shape=present.shape, init=present)
        self.state = Var(shape=(heads, dim + 1, key_dim), init=0)
        self.read = Var(shape=(heads, dim + 1), init=0)
        self.delayed = Var(shape=(phase, spikes), init=0)
        self.query = Var(shape=(phase, heads, key_dim), init=0)


@implements(proc=SSA, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySSA(PhasedModel):
    """SSA on a CPU."""

    s_in: PyInPort = SPIKES_IN
    s_out: PyOutPort = SPIKES_OUT
    shift: np.ndarray = STATE
    present: np.ndarray = STATE
    state: np.ndarray = STATE
    read: np.ndarray = STATE
    delayed: np.ndarray = STATE
    query: np.ndarray = STATE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.timesteps: int = proc_params["timesteps"]
        self.visible: Integers | None = None

    def run_spk(self) -> None:
        spikes = self.s_in.recv()
        step = self.step_in_phase()
        heads, rows, _ = self.state.shape
        mean = np.zeros(heads * (rows - 1), dtype=np.int32)
        if step == 0 and self.time_step > self.begin + self.period:
            self.write()
        if step >= 0 and self.visible is not None:
            self.read = self.read + (self.visible * self.query[step][:, None, :]).sum(-1)
            self.record(read=self.read, state=self.state)
            if step == self.period - 1:
                mean = arithmetic.normalise(self.read, self.timesteps).reshape(-1).astype(np.int32)
        if step >= 0:
            self.delayed[step] = spikes
        self.s_out.send(mean)

    def write(self) -> None:
        """The Hebbian write of the token whose spikes are all there; reading begins anew."""
        query, key, value = self._split(self.delayed.astype(np.int64))
        self.query = arithmetic.facilitated(query)
        state = self.state.astype(np.int64)
        written = arithmetic.ssa_written(
            key.sum(0),
            arithmetic.with_witness(value.sum(0), self.timesteps),
            self.shift.astype(np.int64),
            self.timesteps,
        )
        self.visible = arithmetic.ssa_visible(state, written, self.present, self.query.sum(0))
        self.state = arithmetic.ssa_next(state, written, self.shift)
        self.read = np.zeros_like(self.read)

    def _split(self, spikes: Integers) -> list[Integers]:
        """(phase, spikes) to query, key and value, each (phase, heads, their dim)."""
        heads, _, key_dim = self.state.shape
        parts = np.split(spikes, (heads * key_dim, 2 * heads * key_dim), axis=1)
        return [part.reshape(len(spikes), heads, -1) for part in parts]
