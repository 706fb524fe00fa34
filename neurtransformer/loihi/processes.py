"""Our Lava processes: neurons, LayerNorm, the residual stream. (The SSA is in ssa.py.)

Time is cut into phases of P steps: P = T with one spike per step, P = 1 with one graded spike per
phase. One phase handles one token, and every process is one or more phases behind the one before
it, as in a pipeline. A process whose `start` is s takes step s + 1 as the first of its phase 0.

- A neuron *integrates* the spikes of a phase in u, which its bias joins in the last step; when the
  next phase begins, u is handed to v, from which the neuron *fires* during that phase (soft reset),
  while u integrates the next token. On the chip these are the two states of one neuron. Where
  phase-coded spikes arrive u doubles each step; where they are sent the threshold halves each step.

The residual stream, what LayerNorm makes of it and keys are sent in the last step of a phase. A
signed population sends spikes of +1 and -1, a staggered pair of +1 and +2. All arithmetic is
`integer/arithmetic.py`'s. Every process can log a quantity to a file per step (`logs`), because
Lava's monitors move each number in a message of its own.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

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

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.blocks import GeluNeurons
from neurtransformer.recipe import Coding

STATE = LavaPyType(np.ndarray, np.int32, precision=arithmetic.STATE_BITS)
SPIKES_IN = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=arithmetic.STATE_BITS)
SPIKES_OUT = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=arithmetic.STATE_BITS)

Logs = dict[str, Path]


class CodingNeurons(AbstractProcess):
    """Soft-reset neurons. bias, theta: (n,). The first `unsigned` of them are unsigned.

    receives, sends: the codes of the spikes that arrive and leave. most: the largest count that
    leaves. What arrives is shifted left by `input_shift`. With `gelu` the membrane passes a GELU
    before it fires.
    """

    def __init__(
        self,
        *,
        bias: Integers,
        theta: Integers,
        unsigned: int,
        receives: Coding,
        sends: Coding,
        most: int,
        input_shift: int,
        gelu: GeluNeurons | None = None,
        phase: int,
        start: int,
        logs: Logs,
    ) -> None:
        super().__init__(
            receives=receives,
            sends=sends,
            most=most,
            input_shift=input_shift,
            gelu=gelu,
            phase=phase,
            start=start,
            logs=logs,
        )
        shape = bias.shape
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.bias = Var(shape=shape, init=bias)
        self.theta = Var(shape=shape, init=theta)
        self.signed = Var(shape=shape, init=(np.arange(len(bias)) >= unsigned).astype(np.int32))
        self.u = Var(shape=shape, init=0)
        self.v = Var(shape=shape, init=0)
        self.sign = Var(shape=shape, init=1)


class PhasedModel(PyLoihiProcessModel):
    """What our process models share: where in its phase a process is, and its logs.

    (The base class has `phase`, `start` and `log` of its own, of other meanings.)
    """

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.period: int = proc_params["phase"]
        self.begin: int = proc_params["start"]
        self.files = {k: open_memmap(p, mode="r+") for k, p in proc_params["logs"].items()}

    def step_in_phase(self) -> int:
        """0 .. phase - 1, and -1 before phase 0 has begun."""
        return (
            -1 if self.time_step <= self.begin else (self.time_step - 1 - self.begin) % self.period
        )

    def record(self, **values: NDArray) -> None:
        """Write quantities of this time step to those files that were asked for."""
        for name in values.keys() & self.files.keys():
            self.files[name][self.time_step - 1] = values[name]


class IntegratingModel(PhasedModel):
    """A membrane u that integrates the spikes of a phase, and starts again with the next."""

    a_in: PyInPort = SPIKES_IN
    bias: np.ndarray = STATE
    u: np.ndarray = STATE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.doubling = int(proc_params["receives"] == "phase")

    def integrate(self, arriving: NDArray, step: int) -> None:
        """One step of a phase."""
        before = self.u << self.doubling if step > 0 else np.zeros_like(self.u)
        self.u = before + arriving
        if step == self.period - 1:
            self.u = self.u + self.bias


@implements(proc=CodingNeurons, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyCodingNeurons(IntegratingModel):
    """CodingNeurons on a CPU."""

    s_out: PyOutPort = SPIKES_OUT
    theta: np.ndarray = STATE
    signed: np.ndarray = STATE
    v: np.ndarray = STATE
    sign: np.ndarray = STATE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.input_shift: int = proc_params["input_shift"]
        self.gelu: GeluNeurons | None = proc_params["gelu"]
        self.sends: Coding = proc_params["sends"]
        self.most: int = proc_params["most"]

    def run_spk(self) -> None:
        arriving = self.a_in.recv()
        step = self.step_in_phase()
        if step < 0:
            self.s_out.send(np.zeros_like(self.u))
            return
        if step == 0 and self.time_step > self.begin + self.period:
            self.hand_over()
        self.integrate(arriving << self.input_shift, step)
        fired, self.v = arithmetic.fire_step(
            self.v, self.theta, self.most, step, self.period, self.sends
        )
        spikes = (self.sign * fired).astype(np.int32)
        self.s_out.send(spikes)
        self.record(u=self.u, v=self.v, spikes=spikes)

    def hand_over(self) -> None:
        """From integrating to firing."""
        u: Integers = self.u.astype(np.int64)
        if self.gelu is not None:
            u = self.gelu.membrane(u)
        self.v, self.sign = arithmetic.fire_start(u, self.theta, self.signed.astype(bool))


class KeyNeurons(AbstractProcess):
    """Unsigned neurons that send twice their count, 0..most, in the last step of a phase.

    bias, theta: (n,). What arrives is shifted left by `input_shift`. The learning engine takes half
    a payload as its trace.
    """

    def __init__(
        self,
        *,
        bias: Integers,
        theta: Integers,
        most: int,
        input_shift: int,
        phase: int,
        start: int,
        logs: Logs,
    ) -> None:
        super().__init__(
            receives="rate",
            most=most,
            input_shift=input_shift,
            phase=phase,
            start=start,
            logs=logs,
        )
        shape = bias.shape
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.bias = Var(shape=shape, init=bias)
        self.theta = Var(shape=shape, init=theta)
        self.u = Var(shape=shape, init=0)
        self.v = Var(shape=shape, init=0)


@implements(proc=KeyNeurons, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyKeyNeurons(IntegratingModel):
    """KeyNeurons on a CPU."""

    s_out: PyOutPort = SPIKES_OUT
    theta: np.ndarray = STATE
    v: np.ndarray = STATE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.input_shift: int = proc_params["input_shift"]
        self.most: int = proc_params["most"]

    def run_spk(self) -> None:
        arriving = self.a_in.recv()
        step = self.step_in_phase()
        spikes = np.zeros_like(self.u)
        if step == 0 and self.time_step > self.begin + self.period:
            self.v, _ = arithmetic.fire_start(self.u, self.theta, False)
        if step >= 0:
            self.integrate(arriving << self.input_shift, step)
        if step == self.period - 1:
            spikes = (2 * arithmetic.fire(self.v, self.theta, self.most)[0]).astype(np.int32)
        self.s_out.send(spikes)
        if step >= 0:
            self.record(u=self.u, v=self.v, spikes=spikes)


class Accumulator(AbstractProcess):
    """Membranes that do not fire: they add what they integrate to the residual stream.

    bias, mantissa, shift: (n,), see `arithmetic.rescale`. delay: phases that the stream, which
    comes by `x_in` in the last step of a phase, waits for the membranes of the same token; 0 if
    none comes. Sends the sum in the last step of a phase, else 0.
    """

    def __init__(
        self,
        *,
        bias: Integers,
        mantissa: Integers,
        shift: Integers,
        receives: Coding,
        delay: int,
        phase: int,
        start: int,
        logs: Logs,
    ) -> None:
        super().__init__(receives=receives, delay=delay, phase=phase, start=start, logs=logs)
        shape = bias.shape
        self.a_in = InPort(shape=shape)
        self.x_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)
        self.bias = Var(shape=shape, init=bias)
        self.mantissa = Var(shape=shape, init=mantissa)
        self.shift = Var(shape=shape, init=shift)
        self.u = Var(shape=shape, init=0)
        self.waiting = Var(shape=(delay + 1, *shape), init=0)


@implements(proc=Accumulator, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyAccumulator(IntegratingModel):
    """Accumulator on a CPU. `waiting` holds the stream of the last tokens, by their number."""

    x_in: PyInPort = SPIKES_IN
    s_out: PyOutPort = SPIKES_OUT
    mantissa: np.ndarray = STATE
    shift: np.ndarray = STATE
    waiting: np.ndarray = STATE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.delay: int = proc_params["delay"]

    def run_spk(self) -> None:
        arriving = self.a_in.recv()
        if self.delay and self.time_step % self.period == 0:
            self.waiting[(self.time_step // self.period - 1) % len(self.waiting)] = self.x_in.recv()
        elif self.delay:
            self.x_in.recv()
        step = self.step_in_phase()
        x = np.zeros_like(self.u)
        if step >= 0:
            self.integrate(arriving, step)
        if step == self.period - 1:
            x = self.stream()
        self.s_out.send(x)
        if step >= 0:
            self.record(u=self.u, x=x)

    def stream(self) -> NDArray:
        """The stream behind this network, for the token whose phase ends."""
        token = (self.time_step - 1 - self.begin) // self.period
        before = self.waiting[token % len(self.waiting)].astype(np.int64) if self.delay else 0
        added = arithmetic.rescale(
            self.u.astype(np.int64), self.mantissa.astype(np.int64), self.shift.astype(np.int64)
        )
        return arithmetic.saturate(before + added).astype(np.int32)


class Norm(AbstractProcess):
    """LayerNorm of the stream but for mean, gain and bias: see `arithmetic.normed`.

    What arrives in a step leaves in that step; in most steps it is nothing.
    """

    def __init__(self, *, width: int, epsilon: int, phase: int, start: int, logs: Logs) -> None:
        super().__init__(epsilon=epsilon, phase=phase, start=start, logs=logs)
        self.x_in = InPort(shape=(width,))
        self.s_out = OutPort(shape=(width,))


@implements(proc=Norm, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyNorm(PhasedModel):
    """Norm on a CPU."""

    x_in: PyInPort = SPIKES_IN
    s_out: PyOutPort = SPIKES_OUT

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.epsilon: int = proc_params["epsilon"]

    def run_spk(self) -> None:
        x = self.x_in.recv().astype(np.int64)
        y = np.zeros_like(x)
        if self.step_in_phase() == self.period - 1:
            y = arithmetic.normed(x, self.epsilon)
        self.s_out.send(y.astype(np.int32))
        self.record(y=y)
