"""Lava's own plastic synapses, LearningDense, as our networks use them: watched, graded, and empty
but for what is innate."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

import neurtransformer.loihi.lava_compat  # noqa: F401  (must come before Lava)

# isort: split
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.learning.constants import GradedSpikeCfg
from lava.magma.core.learning.learning_rule import Loihi3FLearningRule
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.dense.models import PyLearningDenseModelBitApproximate
from lava.proc.dense.process import LearningDense
from lava.utils.weightutils import SignMode

from neurtransformer.integer.arithmetic import Integers
from neurtransformer.loihi.stock import PAYLOAD_BITS

NO_DECAY = 2**60
"""A time constant with which the engine's exp(-1 / tau) is 1.0: no trace is rounded at random.
(0 would clear a trace at once.)"""


def hebbian_rule(text: str) -> Loihi3FLearningRule:
    """A rule in every time step, of a trace x1 and third factors y1 and y2 that do not decay."""
    rule = Loihi3FLearningRule(dw=text, x1_tau=NO_DECAY, t_epoch=1, rng_seed=1)
    rule.y1_tau = rule.y2_tau = NO_DECAY
    return rule


def plastic_synapses(
    rows: int,
    columns: int,
    rule: Loihi3FLearningRule,
    log: Path,
    signs: SignMode = SignMode.MIXED,
    innate: Integers | None = None,
) -> LearningDense:
    """Plastic synapses whose traces are half the payloads.

    log: a file for the weights after each step, (steps, rows, columns). signs: of the weights,
    mixed ones are -256..255, excitatory ones 0..255. innate: weights at the start, (rows, columns),
    even ones where signs are mixed; None for 0.
    """
    weights = np.zeros((rows, columns), dtype=np.int32)
    if innate is not None:
        weights += innate.astype(np.int32)
    return LearningDense(
        weights=weights,
        learning_rule=rule,
        graded_spike_cfg=GradedSpikeCfg.OVERWRITE,
        num_message_bits=PAYLOAD_BITS,
        sign_mode=signs,
        log=log,
    )


@implements(proc=LearningDense, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlasticSynapses(PyLearningDenseModelBitApproximate):
    """Lava's own LearningDense in fixed point, which also writes its weights to a file."""

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.file = open_memmap(proc_params["log"], mode="r+")

    def run_lrn(self) -> None:
        super().run_lrn()
        self.file[self.time_step - 1] = self.weights
