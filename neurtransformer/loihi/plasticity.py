"""The SSA as a plastic synapse in Lava's own learning engine.

Each head is one stock `LearningDense`: its presynaptic neurons send queries and keys, its
postsynaptic neurons are values, and its weights are the head's state. A token takes three steps,
each an epoch of the learning rule:

    read    the query's squared counts arrive as graded spikes: what the past weighs
    write   the keys' do, and the value neurons send a spike back, with their counts as traces
    read    the query again: now the present is in it

    dw = - 2^-s y0 w + 2^e x0 x1 y1 - 2^e x0 x1 y2

y0, the spike back, makes a head forget just once per token; x0, a spike of this epoch, keeps out
the trace that a query has left. `GradedSpikeCfg.OVERWRITE` sets x1 to half the payload at once. A
trace is not negative, so y1 holds positive values and y2 those of negative ones: a neuron has one
row of weights for both. `learning.py` does the same in NumPy, integer for integer.

`run_outer_products` writes signed values into a synapse and reads it, with nothing else of an SSA.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.learning.learning_rule import Loihi3FLearningRule
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.io.source import RingBuffer

from neurtransformer.codes import NO_FORGETTING
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.janitor import temporary_folder
from neurtransformer.loihi import runner
from neurtransformer.loihi.learning import (
    FRACTION_BITS,
    SHIFTS,
    STEPS,
    WRITE,
    assemble,
    forgetting_shift,
    key_payload,
    pairs,
    value_trace,
)
from neurtransformer.loihi.plastic_synapses import hebbian_rule, plastic_synapses
from neurtransformer.loihi.processes import SPIKES_IN, SPIKES_OUT, STATE


def learning_rule(shift: int, exponent: int) -> Loihi3FLearningRule:
    """The rule of one head. shift: 0..7, or more for a head that never forgets."""
    unit = f"2^{max(exponent, -FRACTION_BITS)}"
    terms = [f"{unit}*x0*x1*y1", f" - {unit}*x0*x1*y2"]
    if shift in SHIFTS:
        # first, so that the accumulator has room for what is written
        terms.insert(0, f"-2^-{shift}*y0*w + ")
    return hebbian_rule("".join(terms))


class ValueNeurons(AbstractProcess):
    """The value neurons of a head and the witness: they teach its synapses and gather its reads.

    dim: values of the head. shift, present, exponent: of the head, see `learning.py`. log: a file
    for the reads (tokens, dim + 1).
    """

    def __init__(
        self, *, dim: int, shift: int, present: int, exponent: int, timesteps: int, log: Path
    ) -> None:
        super().__init__(timesteps=timesteps, log=log)
        rows = (dim + 1,)
        self.s_in = InPort(shape=(dim,))
        self.a_in = InPort(shape=rows)
        self.s_out_bap = OutPort(shape=rows)
        self.s_out_y1 = OutPort(shape=rows)
        self.s_out_y2 = OutPort(shape=rows)
        self.shift = Var(shape=(1,), init=shift)
        self.present = Var(shape=(1,), init=present)
        self.exponent = Var(shape=(1,), init=exponent)
        self.past = Var(shape=rows, init=0)


@implements(proc=ValueNeurons, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyValueNeurons(PyLoihiProcessModel):
    """ValueNeurons on a CPU."""

    s_in: PyInPort = SPIKES_IN
    a_in: PyInPort = SPIKES_IN
    s_out_bap: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, bool, precision=1)
    s_out_y1: PyOutPort = SPIKES_OUT
    s_out_y2: PyOutPort = SPIKES_OUT
    shift: np.ndarray = STATE
    present: np.ndarray = STATE
    exponent: np.ndarray = STATE
    past: np.ndarray = STATE

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.timesteps: int = proc_params["timesteps"]
        self.reads = open_memmap(proc_params["log"], mode="r+")

    def run_spk(self) -> None:
        counts = self.s_in.recv().astype(np.int64)
        arriving = self.a_in.recv()
        token, step = divmod(self.time_step - 1, STEPS)
        values = arithmetic.with_witness(counts, self.timesteps)
        trace = value_trace(values[None], self.exponent, self.timesteps)[0] * (step == WRITE)
        self.s_out_bap.send(np.full(trace.shape, step == WRITE))
        self.s_out_y1.send(np.maximum(trace, 0).astype(np.int32))
        self.s_out_y2.send(np.maximum(-trace, 0).astype(np.int32))
        # what a spike does at a synapse arrives one step after it
        if step == WRITE:
            self.past = arriving
        elif step == 0 and token > 0:
            after = arriving.astype(np.int64)
            past = self.past.astype(np.int64)
            self.reads[token - 1] = assemble(past, after, self.shift, self.present)


class Listener(AbstractProcess):
    """Neurons that write what arrives to a file. log: of (steps, n)."""

    def __init__(self, *, width: int, log: Path) -> None:
        super().__init__(log=log)
        self.a_in = InPort(shape=(width,))


@implements(proc=Listener, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyListener(PyLoihiProcessModel):
    """Listener on a CPU."""

    a_in: PyInPort = SPIKES_IN

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.file = open_memmap(proc_params["log"], mode="r+")

    def run_spk(self) -> None:
        self.file[self.time_step - 1] = self.a_in.recv()


# `run_lava` looks up the models of processes here
runner.MODELS |= {
    ValueNeurons: PyValueNeurons,
    Listener: PyListener,
}


def run_plastic_ssa(
    query: Integers,
    key: Integers,
    value: Integers,
    forgetting: tuple[Integers, Integers],
    exponent: Integers,
    timesteps: int,
) -> tuple[Integers, Integers]:
    """A sequence of counts through the heads of one block in Lava, from empty weights.

    query, key: (tokens, heads, key). value: (tokens, heads, dim). forgetting: shift and present;
    exponent: one of `EXPONENTS`; all (heads,).
    Returns the reads (tokens, heads, dim + 1) and the weights after each token (tokens, heads,
    dim + 1, key). Raises LavaFailed.
    """
    pre = _payloads(query, key, timesteps)
    post = np.zeros((len(pre), *value.shape[1:]), dtype=np.int32)
    post[WRITE:-1:STEPS] = value
    shift, present = forgetting_shift(forgetting[0]), forgetting[1]
    reads, weights = [], []
    # one after the other: Lava runs only processes that are connected, and heads are not
    for head, (s, u, e) in enumerate(zip(shift, present, exponent, strict=True)):
        read, weight = _run_head(pre[:, head], post[:, head], int(s), int(u), int(e), timesteps)
        reads.append(read)
        weights.append(weight)
    return np.stack(reads, axis=1), np.stack(weights, axis=1)


def _payloads(query: Integers, key: Integers, timesteps: int) -> NDArray[np.int32]:
    """What the presynaptic neurons send: (steps, heads, key), the last step silent."""
    pre = np.zeros((STEPS * len(key) + 1, *key.shape[1:]), dtype=np.int32)
    for step in range(STEPS):
        # the engine halves a payload before it becomes a trace
        sent = 2 * key_payload(key, timesteps) if step == WRITE else key_payload(query, timesteps)
        pre[step:-1:STEPS] = sent
    return pre


def _run_head(
    pre: NDArray[np.int32],
    post: NDArray[np.int32],
    shift: int,
    present: int,
    exponent: int,
    timesteps: int,
) -> tuple[Integers, Integers]:
    """One head. pre, post: what arrives in each step, (steps, key) and (steps, dim)."""
    tokens, rows, keys = len(pre) // STEPS, post.shape[1] + 1, pre.shape[1]
    with temporary_folder() as folder, runner.lava_off_stdout():
        reads = runner.new_log(folder / "reads.npy", (tokens, rows))
        weights = runner.new_log(folder / "weights.npy", (len(pre), rows, keys))
        queries_and_keys, values = RingBuffer(data=pre.T), RingBuffer(data=post.T)
        synapses = plastic_synapses(rows, keys, learning_rule(shift, exponent), weights)
        neurons = ValueNeurons(
            dim=rows - 1,
            shift=shift,
            present=present,
            exponent=exponent,
            timesteps=timesteps,
            log=reads,
        )
        queries_and_keys.s_out.connect(synapses.s_in)
        values.s_out.connect(neurons.s_in)
        synapses.a_out.connect(neurons.a_in)
        neurons.s_out_bap.connect(synapses.s_in_bap)
        neurons.s_out_y1.connect(synapses.s_in_y1)
        neurons.s_out_y2.connect(synapses.s_in_y2)
        runner.run_lava([queries_and_keys, values, synapses, neurons], len(pre))
        written = np.load(weights)[WRITE::STEPS]
        return np.load(reads).astype(np.int64), written.astype(np.int64)


def run_outer_products(
    pre: Integers, post: Integers, queries: Integers, exponent: int
) -> tuple[Integers, Integers]:
    """`learning.outer_products` of one sequence in Lava, a step each, and then its reads.

    pre: signed traces (tokens, n). post: (tokens, m). queries: payloads (queries, n). All within
    -127..127. Returns reads (queries, m) and the weights (m, 2 n). Raises LavaFailed.
    """
    tokens, steps = len(pre), len(pre) + len(queries) + 1
    sent = np.zeros((steps, 2 * pre.shape[1]), dtype=np.int32)
    sent[:tokens] = 2 * pairs(pre)
    sent[tokens:-1] = np.concatenate([queries, -queries], axis=-1)
    traces = np.zeros((2, steps, post.shape[1]), dtype=np.int32)
    traces[:, :tokens] = np.maximum(post, 0), np.maximum(-post, 0)
    rows, columns = post.shape[1], sent.shape[1]
    with temporary_folder() as folder, runner.lava_off_stdout():
        reads = runner.new_log(folder / "reads.npy", (steps, rows))
        weights = runner.new_log(folder / "weights.npy", (steps, rows, columns))
        inputs, y1, y2 = (RingBuffer(data=data.T) for data in (sent, *traces))
        synapses = plastic_synapses(rows, columns, learning_rule(NO_FORGETTING, exponent), weights)
        listener = Listener(width=rows, log=reads)
        inputs.s_out.connect(synapses.s_in)
        y1.s_out.connect(synapses.s_in_y1)
        y2.s_out.connect(synapses.s_in_y2)
        synapses.a_out.connect(listener.a_in)
        runner.run_lava([inputs, y1, y2, synapses, listener], steps)
        # what a query reads arrives one step after it
        arrived = np.load(reads)[tokens + 1 :]
        return arrived.astype(np.int64), np.load(weights)[-1].astype(np.int64)
