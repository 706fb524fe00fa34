"""The closed forms of `measure/operations.py` against counts taken one by one.

The network runs in time steps, token by token, and what it does is done again beside it: each spike
goes through its synapses one after the other, each race is run neuron by neuron, and every addition
and update is counted. The results have to be the network's own, and the counts those of the forms.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import words
from torch import Tensor
from torch.nn import functional as F

from neurtransformer.codes import COARSE, END_BITS, REACH
from neurtransformer.dense import load_dense
from neurtransformer.measure.counts import LayerSpikes, Ops, Shape
from neurtransformer.measure.energy import layer_spikes
from neurtransformer.measure.operations import spiking_attention, spiking_feed_forward
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.recipe import Code, Coding, Digits
from neurtransformer.spiking import coding as codes
from neurtransformer.spiking import neuron as neurons
from neurtransformer.spiking.attention import linear, race, ttfs
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import SpikingLanguageModel, SSAState
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear

TOKENS = 4
PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
ATTENTION = ("encode", "query", "key", "value", "merged", "c_attn", "c_proj")
FEED_FORWARD = ("encode", "hidden", "c_fc", "c_proj")


class Ledger:
    """What a network does, counted while it computes.

    counts: by block, layer and what is done there, such as (0, "attn.c_attn", "events").
    """

    def __init__(self, model: SpikingLanguageModel, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[tuple[int, str, str]] = Counter()
        self.block, self.layer = 0, ""
        self.doubles = self.begun = self.pairs = False
        self.timesteps = 0
        self.query = self.synapses = torch.empty(0)
        self.fine = self.low = 0
        self.there: dict[tuple[int, str], Tensor] = {}
        self.hooks: list[Any] = []
        for number, block in enumerate(model.blocks):
            attention = block.attn
            leads = (attention.c_attn.weight != 0).any(1).split(attention.rows)
            for name, part in zip(("query", "key", "value"), leads, strict=True):
                self.there[number, f"attn.{name}"] = part
            self.there[number, "attn.merged"] = (attention.c_proj.weight != 0).any(0)
            for name, module in block.named_modules():
                if isinstance(module, CodingNeuron | SpikeLinear):
                    entering = self.entering(number, name)
                    self.hooks.append(module.register_forward_pre_hook(entering))
                if isinstance(module, CodingNeuron):
                    self.hooks.append(module.register_forward_hook(self.sent))
        patch.setattr(neurons, "F", SimpleNamespace(linear=self.linear))
        patch.setattr(codes, "soft_reset_neuron", self.counting_node(codes.soft_reset_neuron))
        patch.setattr(codes, "signed_digit", self.digits(codes.signed_digit))
        patch.setattr(ttfs.RaceAttention, "answered", self.asked(ttfs.RaceAttention.answered))
        patch.setattr(ttfs, "race_steps", self.raced)
        patch.setattr(ttfs, "key_synapses", self.written(ttfs.key_synapses))
        patch.setattr(linear, "ssa_token", self.fast_weights(linear.ssa_token))
        for kind in (ttfs, linear):
            patch.setattr(kind, "normalise", self.normalised(kind.normalise))

    def add(self, what: str, number: int) -> None:
        self.counts[self.block, self.layer, what] += number

    def of(self, block: int, layer: str, *what: str) -> int:
        return sum(self.counts[block, layer, name] for name in what)

    # --- neurons and the synapses between them ---

    def present(self, x: Tensor) -> Tensor:
        """What x (..., channels) says of the neurons of this layer that have synapses."""
        there = self.there.get((self.block, self.layer))
        return x if there is None else x[..., there]

    def heads(self, name: str) -> Tensor:
        """Which channels of each head, or of each that keeps keys and values, have synapses."""
        return self.there[self.block, f"attn.{name}"].unflatten(0, (-1, self.synapses.shape[-1]))

    def entering(self, block: int, name: str) -> Callable[..., None]:
        def hear(module: Any, args: tuple[Any, ...]) -> None:
            self.block, self.layer, self.begun = block, name, False
            self.doubles = isinstance(module, SpikeLinear) and module.gain == 2
            self.pairs = isinstance(module, CodingNeuron) and module.signed
            self.timesteps = getattr(module, "timesteps", 0)
            if name in (
                "attn.encode",
                "attn.merged",
                "mlp.encode",
            ):  # of a value, and not of spikes
                self.add("integrated", self.present(args[0]).numel())

        return hear

    def sent(self, module: CodingNeuron, args: tuple[Any, ...], spikes: Tensor) -> None:
        # neurons that fire in this time step, or could
        self.add("fired", self.present(spikes).numel())
        self.add("spikes", int(spikes.abs().sum()))

    def linear(self, spikes: Tensor, weight: Tensor) -> Tensor:
        """One time step of a layer of synapses, spike by spike."""
        arrived = torch.zeros(len(weight), dtype=weight.dtype)
        reached = int((weight != 0).any(1).sum())
        for number in spikes.flatten().nonzero().flatten().tolist():
            spike = spikes.flatten()[number]
            # a staggered pair may send two in a step
            for _ in range(int(spike.abs())):
                arrived += weight[:, number] * spike.sign()
                self.add("events", reached)
        self.add("integrated", reached)
        self.add("doubled", reached if self.doubles and self.begun else 0)
        self.begun = True
        assert torch.equal(arrived, F.linear(spikes, weight).flatten())
        return arrived.view(*spikes.shape[:-1], -1)

    def counting_node(self, soft_reset_neuron: Callable[[], Any]) -> Callable[[], Any]:
        """SpikingJelly's neurons, which compare each time that they are asked. Of a signed pair
        only the one that can fire is simulated."""

        def asked(node: Any, args: tuple[Any, ...]) -> None:
            self.add("compared", (1 + self.pairs) * self.present(args[0]).numel())

        def make() -> Any:
            node = soft_reset_neuron()
            node.register_forward_pre_hook(asked)
            return node

        return make

    def digits(self, signed_digit: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """One step of signed digits, neuron by neuron. The lower threshold is kept from the step
        before, but for the first; in thetas, of which one is 1 here."""

        def send(v: Tensor, weight: int) -> Tensor:
            spikes = signed_digit(v, weight)
            first = weight == 2 ** (self.timesteps - 1)
            self.low = 2 * weight // 3 if first else (self.low - self.low % 2) // 2
            pairs = (self.present(x).flatten().tolist() for x in (v, spikes))
            for x, sent in zip(*pairs, strict=True):
                self.add("halved", 1)
                above = self.low + 1
                self.add("raised", 1)
                up, down = x >= above, x < -self.low
                self.add("compared", 2)
                assert sent == up - down
            return spikes

        return send

    # --- the race ---

    def written(self, key_synapses: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def write(key: Tensor, gain: Tensor, most: int) -> Tensor:
            self.layer, self.synapses = "core", key
            self.add("gained", int(self.heads("key").sum()))
            self.add("kept", int(self.heads("value").sum()))
            return key_synapses(key, gain, most)

        return write

    def asked(self, answered: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def ask(attention: Any, query: Tensor, synapses: Tensor, *rest: Any) -> Tensor:
            self.query, self.synapses = query, synapses
            self.doubles = attention.qkv.coding == "phase"
            return answered(attention, query, synapses, *rest)

        return ask

    def raced(self, score: Tensor, width: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        spikes, running = race.race_steps(score, width, there)
        for head in range(score.shape[0]):
            for row in range(score.shape[1]):
                seen = there.expand_as(score)[head, row]
                membrane = self.driven(self.query[:, head, row], self.synapses[head, seen])
                assert torch.equal(membrane, score[head, row, seen])
                column = int(self.heads("value")[head].sum()) + 1
                fired = self.one_race([int(x) for x in membrane], int(width[head]), column)
                theirs = spikes[:, head, row, seen].nonzero().tolist()
                assert sorted(fired) == sorted((step, token) for step, token in theirs)
                assert self.fine == int(running[:, head, row].sum())
        return spikes, running

    def driven(self, query: Tensor, synapses: Tensor) -> Tensor:
        """The membranes (j,) of token neurons after the spikes (T, dim) of one query."""
        membrane = torch.zeros(len(synapses))
        for step, spikes in enumerate(query):
            if self.doubles and step:
                membrane *= 2
                self.add("doubled", len(synapses))
            for channel in spikes.nonzero().flatten().tolist():
                membrane += synapses[:, channel] * spikes[channel]
                self.add("scored", len(synapses))
            self.add("integrated", len(synapses))
        return membrane

    def one_race(self, membrane: list[int], width: int, column: int) -> list[tuple[int, int]]:
        """The step of the fine race in which each token neuron fires, and its number. column: of a
        value, and its witness."""
        low, high = -REACH * width, REACH * width - 1
        held = [min(max(x + width // 2, low), high) for x in membrane]
        level, found = REACH, False
        while not found:
            level -= COARSE
            self.add("fallen", 1)
            for x in held:
                found |= x >= level * width
                self.add("compared", 1)
        level, d, self.fine = level + COARSE, 0, 0
        fired: dict[int, int] = {}
        while d < 2**END_BITS:
            level -= 1
            self.add("fallen", 1)
            now = 0
            for token, x in enumerate(held):
                self.add("compared", 1)
                if x >= level * width and token not in fired:
                    fired[token] = self.fine
                    now += 1
                    self.add("values", column)
            # in an odd level, the first: d <- 2 d + 3 heard, a shift, two for the product, a sum
            odd = self.fine % 2 == 0
            self.add("listening", column)
            self.add("listened", (4 if odd else 2) * column)
            d = 2 * d + 3 * now if odd else d + 2 * now
            self.fine += 1
        return [(step, token) for token, step in fired.items()]

    # --- fast weights ---

    def fast_weights(self, ssa_token: Callable[..., Any]) -> Callable[..., Any]:
        def token(
            state: Tensor, query: Tensor, key: Tensor, value: Tensor, forgetting: Any, *rest: Any
        ) -> Any:
            self.layer = "core"
            _, heads, column, keys = state.shape
            for head in range(heads):
                for k in range(keys):
                    self.add("forgotten", column)
                    if key[0, head, k] > 0:
                        self.add("squared", 1)
                        self.add("written", column)
                        self.add("present", column if forgetting[1][head] > 0 else 0)
                    for spikes in query:
                        if spikes[0, head, k] > 0:
                            self.add("payloads", 1)
                            self.add("visited", column)
            return ssa_token(state, query, key, value, forgetting, *rest)

        return token

    def normalised(self, normalise: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(read: Tensor, bits: int) -> Tensor:
            self.layer = "core"
            there = self.there[self.block, "attn.merged"]
            self.add("products", read[..., :-1].flatten()[there].numel())
            return normalise(read, bits)

        return count


# --- the networks ---


@pytest.fixture(params=["gpt2", "llama"])
def dense(request: pytest.FixtureRequest, tiny_dense_folder: Path, tiny_llama_folder: Path) -> Path:
    return tiny_dense_folder if request.param == "gpt2" else tiny_llama_folder


def converted(
    folder: Path, kind: str, coding: Coding, digits: Digits = "binary"
) -> SpikingLanguageModel:
    model = convert(
        load_dense(str(folder))[0], words(2, 24), 4, str(folder), coding=coding, attention=kind,
        attention_code=Code(3, coding), digits=digits, first_token=0, limited=(7, 2),
    )  # fmt: skip
    model.steps = True
    return model


def thin(model: SpikingLanguageModel) -> None:
    """Leave the same channels of each head out."""
    for attention in (block.attn for block in model.blocks):
        channel = torch.arange(attention.rows[1]) % attention.head_dim
        attention.leave_out_keys(channel % 3 == 1)
        attention.leave_out_values(channel % 4 < 2)
        assert min(attention.left_out) > 0


Token = tuple[Shape, list[LayerSpikes], Ledger]


def token_by_token(model: SpikingLanguageModel) -> Iterator[Token]:
    """For each token of a short text the geometry at that position, the spikes that were measured,
    block by block, and what was counted."""
    state = SSAState(len(model.blocks))
    # with the innate token, which no spike sends
    state.states = [block.attn.new_state(1) for block in model.blocks]
    shape = Shape.of(model.config)
    assert shape.innate
    for position in range(TOKENS):
        with pytest.MonkeyPatch.context() as patch, counting_spikes(model) as counter:
            ledger = Ledger(model, patch)
            model(words(1, TOKENS)[:, position : position + 1], use_cache=True, cache=state)
        for hook in ledger.hooks:
            hook.remove()
        here = replace(shape, context=2 * position + 2)
        assert here.seen == position + 2  # the innate one, those before, and itself
        yield here, layer_spikes(model, counter, counter.spikes), ledger


CODES = [("rate", "binary"), ("phase", "binary"), ("phase", "signed")]


@pytest.mark.parametrize(("coding", "digits"), CODES)
@pytest.mark.parametrize("kind", ["ttfs", "ttfs, thinned", "linear"])
def test_counted_one_by_one(dense: Path, kind: str, coding: Coding, digits: Digits) -> None:
    kind, *thinned = kind.split(",")
    model = converted(dense, kind, coding, digits)
    if thinned:
        thin(model)
    for shape, layers, ledger in token_by_token(model):
        for block, spikes in enumerate(layers):
            count = partial(ledger.of, block)
            parts = {
                "attn": spiking_attention(shape, spikes),
                "mlp": spiking_feed_forward(shape, spikes),
            }
            for layer in PROJECTIONS:
                part, name = layer.split(".")
                events = count(layer, "events")
                assert parts[part][name] == Ops(ac=events, weights=events, events=events), layer
            for part, names in (("attn", ATTENTION), ("mlp", FEED_FORWARD)):
                integrated, fired, halved, others = (
                    sum(count(f"{part}.{name}", *what) for name in names)
                    for what in (
                        ["integrated"],
                        ["fired"],
                        ["halved"],
                        ["doubled", "compared", "spikes", "raised"],
                    )
                )
                assert parts[part]["neurons"] == Ops(
                    ac=integrated + halved + others,
                    # a threshold that is halved is kept: read and written beside theta
                    states=2 * integrated + 3 * fired + 2 * halved,
                    updates=integrated + fired,
                )
            core = the_race if kind == "ttfs" else the_fast_weights
            core(parts["attn"], shape, count)
    assert sum(ledger.counts.values()) > 10_000
    signed = any("halved" in entry for entry in ledger.counts)
    assert signed == (digits == "signed")


@pytest.mark.parametrize(("coding", "digits"), CODES)
def test_counted_by_spikingjelly(
    dense: Path, coding: Coding, digits: Digits, monkeypatch: Any
) -> None:
    """Its counter knows spikes of 0 and 1 alone. So the two neurons of a signed pair send through
    synapses of their own, and of a staggered pair one after the other."""
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

    found = {"projections": 0, "values": 0}

    def synapses(spikes: Tensor, weight: Tensor) -> Tensor:
        arrived = torch.zeros(1)
        for sign in (1, -1):
            for least in (1, 2):
                sent = (sign * spikes >= least).to(weight.dtype)
                arrived = arrived + sign * counted("projections", F.linear, sent, weight)
        assert torch.equal(arrived, F.linear(spikes, weight))
        return arrived

    def listen(spikes: Tensor, running: Tensor, value: Tensor) -> Tensor:
        return counted("values", race.listen, spikes, running, value)

    def counted(what: str, compute: Callable[..., Tensor], *given: Tensor) -> Tensor:
        counter = SynOpCounter()
        with DispatchCounterMode([counter]):
            result = compute(*given)
        found[what] += counter.get_total()
        return result

    model = converted(dense, "ttfs", coding, digits)
    monkeypatch.setattr(neurons, "F", SimpleNamespace(linear=synapses))
    monkeypatch.setattr(ttfs, "listen", listen)
    with counting_spikes(model) as counter:
        model(words(1, 8))
    # with the innate token, texts of 8 tokens have a context of 9
    shape = replace(Shape.of(model.config), context=9)
    layers = layer_spikes(model, counter, counter.spikes)
    events = {"projections": 0.0, "values": 0.0}
    for spikes in layers:
        attention, mlp = spiking_attention(shape, spikes), spiking_feed_forward(shape, spikes)
        synaptic = [attention["c_attn"], attention["c_proj"], mlp["c_fc"], mlp["c_proj"]]
        events["projections"] += 8 * sum(ops.events for ops in synaptic)
        events["values"] += 8 * attention["values"].events
    assert found == pytest.approx(events)
    assert min(events.values()) > 1000


Count = Callable[..., int]


def the_race(part: dict[str, Ops], shape: Shape, count: Count) -> None:
    sent = sum(count(f"attn.{name}", "spikes") for name in ("query", "key", "value"))
    written = count("core", "gained", "kept")
    assert part["write"] == Ops(
        mac=count("core", "gained"), ac=sent, weights=written, events=sent, writes=written
    )
    scored, updates = count("core", "scored"), count("core", "integrated")
    assert part["scores"] == Ops(
        ac=scored + count("core", "doubled"),
        weights=scored,
        states=2 * updates,
        events=scored,
        updates=updates,
    )
    compared, listening = count("core", "compared"), count("core", "listening")
    assert part["race"] == Ops(
        ac=count("core", "compared", "fallen", "listened"),
        states=compared + 2 * listening,
        updates=compared + listening,
    )
    values = count("core", "values")
    assert part["values"] == Ops(ac=values, weights=values, events=values)
    assert part["normalise"].mac == count("core", "products")


def the_fast_weights(part: dict[str, Ops], shape: Shape, count: Count) -> None:
    sent = sum(count(f"attn.{name}", "spikes") for name in ("key", "value"))
    written = count("core", "written")
    assert part["write"] == Ops(
        mac=written + count("core", "squared"),
        ac=sent,
        states=2 * written,
        events=sent,
        writes=written,
    )
    present = count("core", "present")
    assert part["present"] == Ops(mac=present, states=2 * present)
    forgotten = count("core", "forgotten")
    assert part["forget"] == Ops(ac=forgotten, states=2 * forgotten, writes=forgotten)
    visited, payloads = count("core", "visited"), count("core", "payloads")
    assert part["read"] == Ops(
        mac=visited + payloads,
        ac=visited + payloads + shape.heads,
        states=visited,
        events=visited,
    )
    assert part["normalise"].mac == count("core", "products")
