"""Lava: stock netx reads our files unchanged, and our processes equal the integer model."""

import errno
import os
import signal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import Trace
from neurtransformer.loihi import netlist, netx
from neurtransformer.loihi.network import Network
from neurtransformer.loihi.nodes import Spikes
from neurtransformer.loihi.simulate import Tally, pairs, prompt_ids, simulate
from neurtransformer.recipe import MAX_PHASE_TIMESTEPS, Coding
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.model import SpikingGPT2Config, SpikingGPT2LMHeadModel

SEEDS = st.integers(0, 2**32 - 1)
Sign = Literal["mixed", "positive", "negative"]
SIGNS: list[Sign] = ["mixed", "positive", "negative"]

pytestmark = pytest.mark.usefixtures("lava")


# --- netx files in stock Lava ---


def even(seed: int, outputs: int, inputs: int, signs: Sign) -> np.ndarray:
    """A random even matrix; its range is random too, with a liking for powers of two."""
    rng = np.random.default_rng(seed)
    most = int(rng.integers(1, 129) if seed % 2 else 2 ** rng.integers(0, 8))
    low = 0 if signs == "positive" else -most
    high = 0 if signs == "negative" else min(most, 127)
    return 2 * rng.integers(low, high + 1, (outputs, inputs)).astype(np.int16)


@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.sampled_from(SIGNS))
def test_stock_netx_reads_the_weights_unchanged(
    tmp_path_factory: pytest.TempPathFactory, seed: int, outputs: int, inputs: int, signs: Sign
) -> None:
    """Through everything that netx and Lava's Dense do to a matrix before the first spike."""
    from lava.lib.dl.netx import hdf5
    from lava.utils.weightutils import clip_weights, truncate_weights

    from neurtransformer.loihi.runner import stock_synapses

    path = tmp_path_factory.mktemp("netx") / "a.net"
    weight = even(seed, outputs, inputs, signs)
    netx.write_projection(path, weight, np.arange(outputs), np.full(outputs, 9), 1)
    network = hdf5.Network(net_config=str(path))
    assert (network.layers[0].neuron.bias_mant.init == np.arange(outputs)).all()
    assert network.layers[0].neuron.vth.init == 9
    dense = stock_synapses(path, inputs)
    sign = dense.proc_params["sign_mode"]
    used = clip_weights(dense.weights.init, sign, num_bits=8)
    used = truncate_weights(used, sign, dense.proc_params["num_weight_bits"])
    exponent = dense.proc_params["weight_exp"]
    assert exponent <= 0
    assert (used >> -exponent == weight).all()
    assert not (used & ((1 << -exponent) - 1)).any()


def test_stock_netx_runs_a_file_by_the_formula(tmp_path: Path) -> None:
    """What a netlist's file does in stock Lava alone: hard reset, one threshold (DESIGN.md)."""
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    rng = np.random.default_rng(0)
    inputs, outputs, steps = 12, 7, 30
    weight = 2 * rng.integers(-127, 128, (outputs, inputs)).astype(np.int16)
    bias = rng.integers(-90, 90, outputs)
    netx.write_projection(tmp_path / "a.net", weight, bias, np.full(outputs, 300), 1)
    spikes = rng.integers(0, 2, (inputs, steps))
    source, sink = Source(data=spikes), Sink(shape=(outputs,), buffer=steps)
    network = hdf5.Network(net_config=str(tmp_path / "a.net"))
    source.s_out.connect(network.inp)
    network.out.connect(sink.a_in)
    source.run(condition=RunSteps(steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    found = sink.data.get()
    source.stop()

    v = np.zeros(outputs, dtype=int)
    for step in range(steps):
        # the synapse passes a spike on one step later
        arriving = weight @ spikes[:, step - 1] if step else 0
        v = v + (arriving << 6) + (bias << 6)
        fired = v > 300 << 6
        v[fired] = 0
        assert (found[:, step] == fired).all(), step
    assert 0 < found.sum() < found.size


# --- our processes ---


def random_spiking(
    seed: int,
    heads: int,
    dim: int,
    timesteps: int,
    coding: Coding = "rate",
    first: int | None = None,
) -> SpikingGPT2LMHeadModel:
    """One block with weights, thresholds, centres and forgetting from all over their ranges."""
    rng = torch.Generator().manual_seed(seed)
    width = heads * dim
    config = SpikingGPT2Config(
        vocab_size=4096,
        n_positions=16,
        n_embd=width,
        n_head=heads,
        n_layer=1,
        n_inner=3 * width + 1,
        timesteps=timesteps,
        coding=coding,
        first_token=first,
    )
    spiking = SpikingGPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in spiking.named_parameters():
            size = 10.0 ** float(torch.empty(1).uniform_(-2, 0.5, generator=rng))
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * size)
            if name.endswith("threshold"):
                parameter.abs_().clamp_(min=0.01)
        attention = spiking.blocks[0].attn
        choice = torch.randint(9, (heads,), generator=rng)
        attention.shift.copy_(torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 24])[choice])
        attention.present.copy_(torch.tensor([0, 0.25, 0.5, 1, 2])[choice % 5])
        for neuron in (attention.merged, spiking.blocks[0].mlp.hidden):
            neuron.center.copy_(torch.randn(neuron.center.shape, generator=rng))
    return spiking


def compare(found: netlist.TextNetlist, network: Network, x: np.ndarray) -> Tally:
    from neurtransformer.loihi.runner import run_network

    ours = found.model.networks[network.name].steps(x, network.phase, network.slots)
    theirs, steps = run_network(found, network, ours)
    assert steps == len(x) * network.phase + network.latency
    tally = Tally()
    for name, mine, lavas in pairs(network, ours, theirs):
        tally.add(name, mine, lavas)
    return tally


def entering(found: netlist.TextNetlist, network: Network, seed: int, length: int) -> np.ndarray:
    """Tokens for the embedding, else a residual stream from anywhere in its range."""
    rng = np.random.default_rng(seed)
    config = found.model.config
    if network.name == "embed":
        return rng.integers(0, config.vocabulary, length)
    size = 2.0 ** rng.uniform(0, 23, (length, 1))
    stream = np.rint(rng.standard_normal((length, config.width)) * size)
    return stream.clip(-LIMIT, LIMIT).astype(np.int64)


def check_random(
    folder: Path,
    tokenizer: Any,
    case: tuple[int, int, int, int, int],
    spikes: Spikes,
    coding: Coding,
    first: int | None,
) -> None:
    """All networks of a random model of one block, equal at every step."""
    seed, heads, dim, timesteps, length = case
    model = IntegerGPT2.from_spiking(random_spiking(seed, heads, dim, timesteps, coding, first))
    netlist.write(folder, model, tokenizer, spikes)
    found = netlist.read_text(folder)
    for network in found.manifest.networks:
        tally = compare(found, network, entering(found, network, seed, length))
        assert tally.mismatches == 0, (network.name, tally)
        assert tally.compared > 0


@pytest.mark.parametrize(
    ("case", "spikes", "coding", "first"),
    [
        ((1, 2, 8, 5, 4), "binary", "rate", None),
        ((2, 3, 5, 64, 3), "graded", "rate", 9),
        ((3, 1, 4, 1, 6), "binary", "rate", None),
        ((4, 2, 6, 8, 4), "binary", "phase", 0),
        ((5, 2, 6, 5, 4), "graded", "phase", None),
    ],
)
def test_lava_is_the_integer_model(
    tmp_path: Path,
    nano_tokenizer: Any,
    case: tuple[int, int, int, int, int],
    spikes: Spikes,
    coding: Coding,
    first: int | None,
) -> None:
    check_random(tmp_path, nano_tokenizer, case, spikes, coding, first)


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_projections_that_need_a_silent_input(
    tmp_path: Path, nano_tokenizer: Any, value: float
) -> None:
    spiking = random_spiking(4, 2, 8, 4)
    spiking.blocks[0].attn.c_proj.weight.data.fill_(value)
    netlist.write(tmp_path, IntegerGPT2.from_spiking(spiking), nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    network = found.manifest.networks[1]
    tally = compare(found, network, entering(found, network, 4, 3))
    assert tally.mismatches == 0 and tally.compared > 0


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.tuples(
        SEEDS,
        st.integers(1, 4),
        st.integers(1, 12),
        st.sampled_from([1, 2, 3, 4, 8, 16, 64]),
        st.integers(1, 6),
    ),
    st.sampled_from(["binary", "graded"]),
    st.sampled_from(["rate", "phase"]),
    st.sampled_from([None, 3]),
)
def test_lava_is_the_integer_model_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    nano_tokenizer: Any,
    case: tuple[int, int, int, int, int],
    spikes: Spikes,
    coding: Coding,
    first: int | None,
) -> None:
    if coding == "phase":
        case = (*case[:3], min(case[3], MAX_PHASE_TIMESTEPS), case[4])
    check_random(tmp_path_factory.mktemp("netlist"), nano_tokenizer, case, spikes, coding, first)


def test_simulate_a_prompt(
    either_run: Path, nano_tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spiking = load_run(either_run)[0]
    # a residual stream of 20 bits, whose squares take 40
    spiking.lm_head.weight.data.mul_(500)
    model = IntegerGPT2.from_spiking(spiking)
    netlist.write(tmp_path, model, nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    heard: list[str] = []
    ids = prompt_ids(found, "a word or two", 3)
    values = simulate(found, ids, "lava", tokens=3, on_network=heard.append)
    assert values["mismatches"] == 0 and values["max_abs_difference"] == 0
    assert heard == [network.name for network in found.manifest.networks]
    assert values["tokens"] == len(ids) + 2
    continuation = model.generate(torch.tensor([ids]), 3)[0, len(ids) :]
    assert values["text"] == nano_tokenizer.decode(continuation) and values["same_text"]
    assert capfd.readouterr().out == ""


def test_all_differences_are_counted() -> None:
    tally = Tally()
    for name, differences in (("a", [0, 0]), ("b", [1, -9, 0]), ("c", [2, 2, 2])):
        theirs = np.arange(len(differences))
        tally.add(name, theirs + differences, theirs)
    assert tally == Tally(compared=8, mismatches=5, max_abs_difference=9, first_mismatch="b")


def test_a_difference_is_counted(
    tiny_run: Path, nano_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees one wrong integer in one step."""
    from neurtransformer.loihi import runner

    netlist.write(
        tmp_path, IntegerGPT2.from_spiking(load_run(tiny_run)[0]), nano_tokenizer, "graded"
    )
    found = netlist.read_text(tmp_path)

    def wrong(which: netlist.TextNetlist, network: Network, sent: Trace) -> Any:
        source = f"{network.sources[0]}.spikes"
        entered = sent[source][:, 0]
        if network.name == "embed":
            entered = entered[:, : which.model.config.vocabulary].argmax(-1)
        ours = which.model.networks[network.name].steps(entered, network.phase, network.slots)
        trace: Trace = {k: x.copy() for k, x in ours.items() if k != source}
        if "ssa.state" in trace:
            trace["ssa.state"] = trace["ssa.state"][:, None].copy()
        if network.name == "h.1.attn":
            trace["merged.v"][0, 0, 3] += 7
        return trace, 1

    monkeypatch.setattr(runner, "run_network", wrong)
    values = simulate(found, prompt_ids(found, "a word", 1), "lava")
    assert (values["mismatches"], values["max_abs_difference"]) == (1, 7)
    assert values["first_mismatch"] == "h.1.attn.merged.v"


# --- when Lava fails ---


def children() -> set[int]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return set(map(int, path.read_text().split()))


@pytest.mark.parametrize("when", ["start", "run"])
def test_a_dead_process_is_an_error_and_not_a_wait(tmp_path: Path, when: str) -> None:
    from lava.proc.io.source import RingBuffer

    from neurtransformer.loihi.microcode import Clock, Norm
    from neurtransformer.loihi.processes import LogFile, Population
    from neurtransformer.loihi.runner import LavaFailed, run_lava

    log = tmp_path / "y.npy"
    if when == "run":  # too few rows for what is to be logged
        np.save(log, np.zeros((2, 4), np.int32))
    before = children()
    source = RingBuffer(data=np.zeros((4, 9), int))
    code = Norm(Clock(1, 1, 0), width=4, epsilon=1, shifts=(0,), roots=[1], fraction_bits=14)
    norm = Population(code, {"y": LogFile(log)})
    source.s_out.connect(norm.x_in)
    with pytest.raises(LavaFailed):
        run_lava([source, norm], 9)
    assert len(children() - before) <= 1  # multiprocessing's resource tracker stays


def test_no_room_for_what_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before Lava starts, for at a mapped file without room it would be killed."""
    from neurtransformer.loihi import runner

    def full(path: Path) -> None:
        raise UserError("no room")

    monkeypatch.setattr(runner, "reserve", full)
    with pytest.raises(UserError, match="no room"):
        runner.new_log(tmp_path / "log.npy", (3, 4))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "/dev/shm"),
        (errno.EACCES, "/dev/shm"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "memory"),
    ],
)
def test_what_the_system_does_not_give(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    from lava.magma.compiler.channels import pypychannel
    from lava.proc.io.source import RingBuffer

    from neurtransformer.loihi.runner import run_lava

    def refuse(value: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pypychannel, "Semaphore", refuse)
    before = children()
    with pytest.raises(UserError, match=words):
        run_lava([RingBuffer(data=np.zeros((4, 9), int))], 9)
    assert not children() - before


def test_a_process_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lava.proc.io.source import RingBuffer

    from neurtransformer.loihi.lava_runtime import LavaFailed, LavaRuntime
    from neurtransformer.loihi.runner import run_lava

    wait = LavaRuntime.wait_until_done

    def killed(runtime: LavaRuntime) -> None:
        os.kill(runtime.actors[0].pid, signal.SIGKILL)
        wait(runtime)

    monkeypatch.setattr(LavaRuntime, "wait_until_done", killed)
    with pytest.raises(LavaFailed, match="SIGKILL"):
        run_lava([RingBuffer(data=np.zeros((4, 99_999), int))], 99_999)
