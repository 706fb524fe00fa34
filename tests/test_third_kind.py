"""A made-up third kind of attention: each token passes on its own value.

One class a floor and a line in each registry take it from the dense model to Lava; if more were
needed, the seam would be in the wrong place.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurtransformer.codes import MEAN_BITS
from neurtransformer.dense import load_dense
from neurtransformer.integer import arithmetic
from neurtransformer.integer import attention as integers
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.entries import Entry
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import Trace
from neurtransformer.loihi import attention as on_loihi
from neurtransformer.loihi import netlist
from neurtransformer.loihi.chip import load_chip
from neurtransformer.loihi.microcode import Clock, Microcode, Words
from neurtransformer.loihi.nodes import Log, Node, Programmed, Setting
from neurtransformer.loihi.place import place, summary
from neurtransformer.loihi.simulate import prompt_ids, simulate
from neurtransformer.recipe import Code, Coding
from neurtransformer.spiking import attention as spiking
from neurtransformer.spiking.attention.base import SpikingSelfAttention, State, decoded
from neurtransformer.spiking.convert import convert

# --- what a spiking/attention/identity.py would hold ---


class SpikingIdentity(SpikingSelfAttention):
    kind = "identity"

    def fit(self, softmax: Callable[[], Tensor], scaling: float) -> None:
        pass

    def new_state(self, batch: int) -> State:
        return ()

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.eye(query.shape[-2]).expand(*query.shape[:2], -1, -1)

    def parallel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        return value

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        steps: bool,
        state: State,
        mask: Tensor | None,
    ) -> tuple[Tensor, State]:
        return decoded(value, self.qkv) if steps else value, state


# --- integer/attention/identity.py ---


class IntegerIdentity(integers.IntegerAttention):
    kind = "identity"

    @staticmethod
    def entries(config: IntegerConfig) -> Iterator[tuple[str, Entry]]:
        yield from ()

    @staticmethod
    def quantised(attention: Any, worth: NDArray[np.float64]) -> dict[str, NDArray]:
        return {}

    def new_state(self, batch: int) -> tuple[Integers, ...]:
        return ()

    def weights(self, query: Integers, key: Integers) -> NDArray[np.float64]:
        return np.broadcast_to(np.eye(query.shape[-2]), (*query.shape[:-1], query.shape[-2]))

    def mix(
        self, query: Integers, key: Integers, value: Integers, state: tuple[Integers, ...]
    ) -> tuple[Integers, tuple[Integers, ...]]:
        return value << MEAN_BITS, state

    def core_steps(self, spikes: Integers, phase: int) -> tuple[Integers, Trace]:
        values = spikes[..., self.value_start :]
        count = arithmetic.integrate(values, np.zeros_like(values[0]), self.qkv.coding, len(spikes))
        still = np.repeat(count[-1:], phase - len(count), axis=0)
        trace = {"own.count": np.concatenate([count, still]).swapaxes(0, 1)}
        return count[-1] << MEAN_BITS, trace


# --- loihi/attention/identity.py ---


class OwnCode(Microcode):
    def __init__(self, clock: Clock, width: int, coding: Coding) -> None:
        super().__init__(clock)
        self.inputs, self.outputs, self.doubles = {"s_in": 3 * width}, width, coding == "phase"
        self.count = np.zeros(width, dtype=np.int32)

    def tick(self, now: int, arriving: Mapping[str, Words]) -> Words:
        step = self.clock.step(now)
        if 0 <= step < self.clock.slots:
            kept = 0 if step == 0 else self.count << self.doubles
            self.count[:] = kept + arriving["s_in"][-self.outputs :]
        return (self.count << MEAN_BITS) * np.int32(self.clock.is_last(now))


class Own(Programmed):
    """Sends a token's own value counts as soon as they are there."""

    kind: Literal["own"] = "own"
    receives: Coding

    ports: ClassVar[tuple[str, ...]] = ("s_in",)
    logged: ClassVar[Mapping[str, Log]] = {"count": Log()}

    def microcode(self, setting: Setting) -> Microcode:
        return OwnCode(setting.clock(self), self.outputs, self.receives)


class Identity(on_loihi.Attention):
    nodes = (Own,)

    @staticmethod
    def phase(slots: int, config: IntegerConfig) -> int:
        return slots + 2

    @staticmethod
    def between(config: IntegerConfig) -> list[Node]:
        coding = config.attention_code.coding
        return [Own(name="own", outputs=config.width, payload_bits=17, receives=coding)]


@pytest.mark.usefixtures("lava")
def test_a_third_kind_goes_all_the_way(
    tiny_dense_folder: Path,
    nano_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kinds, kind in (
        (spiking.KINDS, SpikingIdentity),
        (integers.KINDS, IntegerIdentity),
        (on_loihi.KINDS, Identity),
    ):
        monkeypatch.setitem(kinds, "identity", kind)
    dense, _ = load_dense(str(tiny_dense_folder))
    tokens = torch.randint(dense.config.vocab_size, (2, 32))
    run = convert(
        dense,
        tokens,
        4,
        str(tiny_dense_folder),
        attention="identity",
        attention_code=Code(3, "phase"),
    )
    netlist.write(tmp_path, IntegerGPT2.from_spiking(run), nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    network = found.manifest.networks[1]
    assert network.phase == network.slots + 2
    own = next(node for node in network.nodes if isinstance(node, Own))
    merged = next(node for node in network.nodes if node.name == "merged")
    assert own.start == merged.start > 0
    values = simulate(found, prompt_ids(found, "a word or two", 2), "lava", tokens=2)
    assert values["mismatches"] == 0 and values["same_text"]
    assert values["compared"] > 0
    assert summary(place(found.manifest.networks, load_chip()))["cores"] > 0
