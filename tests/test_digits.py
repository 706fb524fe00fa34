"""Signed digits: the same counts by spikes of -1, 0 and 1, in all forms of the network."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import words
from hypothesis import given
from hypothesis import strategies as st
from test_lava import compare, entering

from neurtransformer import nir_export
from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.integer.attention.ttfs import COARSE_STEPS, FINE_STEPS
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist
from neurtransformer.loihi.graph import networks
from neurtransformer.loihi.nodes import Neurons
from neurtransformer.measure.card import _codes
from neurtransformer.measure.origin import facts
from neurtransformer.measure.quality import counting_spikes
from neurtransformer.provenance import model_sha256, run_sha256
from neurtransformer.recipe import Code, load_recipe
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking import coding
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron
from neurtransformer.spiking.synops import soft_spikes

TIMESTEPS = st.integers(1, 8)


def non_adjacent(number: int) -> list[int]:
    """The non-adjacent form, the lowest digit first: an odd number ends in the digit that leaves a
    multiple of four."""
    digits = []
    while number:
        digits.append(2 - number % 4 if number % 2 else 0)
        number = (number - digits[-1]) // 2
    return digits


def fewest(timesteps: int) -> dict[int, int]:
    """Of all numbers that so many digits can make, the least number of digits that are not 0."""
    found = {0: 0}
    for _ in range(timesteps):
        longer: dict[int, int] = {}
        for number, spikes in found.items():
            for digit in (-1, 0, 1):
                whole = 2 * number + digit
                longer[whole] = min(longer.get(whole, 99), spikes + abs(digit))
        found = longer
    return found


def added_up(spikes: Any) -> Any:
    """The numbers whose digits spikes (T, ...) are."""
    number = 0 * spikes[0]
    for spike in spikes:
        number = 2 * number + spike
    return number


# --- spiking: steps and counts ---


@pytest.mark.parametrize("timesteps", range(1, 9))
def test_every_count_is_sent_and_by_as_few_spikes_as_can_be(timesteps: int) -> None:
    most = 2**timesteps - 1
    counts = torch.arange(-most, most + 1.0)
    spikes = coding.signed_spikes_from_total(counts, timesteps, signed=True)
    assert set(spikes.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(added_up(spikes), counts)
    single = coding.signed_spikes_from_total(counts, timesteps, signed=False)
    assert torch.equal(added_up(single), counts.clamp(min=0))
    assert torch.equal(single[:, most:], spikes[:, most:])
    sent = coding.spikes_in(counts, "phase", timesteps, "signed")
    assert torch.equal(sent, spikes.abs().sum(0))
    least = fewest(timesteps)
    for count, digits in zip(counts.int().tolist(), spikes.T.int().tolist(), strict=True):
        if 3 * abs(count) <= 2 ** (timesteps + 1):
            naf = non_adjacent(count)
            assert digits[::-1] == naf + [0] * (timesteps - len(naf))
            assert not any(a and b for a, b in pairwise(digits))
            assert sum(map(abs, digits)) == least[count]
        assert sum(map(abs, digits)) <= abs(count).bit_count()


@given(st.lists(st.floats(-300, 300, width=32), min_size=1), TIMESTEPS, st.booleans())
def test_steps_are_digits_of_counts(values: list[float], timesteps: int, signed: bool) -> None:
    z = torch.tensor([*values, 0.49999997, -0.49999997, 2.0**timesteps - 0.5, -1e6, 1e6])
    z = torch.cat([z, z.round(), z.floor() + 0.5])
    z = torch.cat([z, torch.nextafter(z, z + 1), torch.nextafter(z, z - 1)])
    counts = coding.counts_from_total(z, 2**timesteps - 1, signed)
    spikes = coding.signed_spikes_from_total(z, timesteps, signed)
    assert torch.equal(added_up(spikes), counts)
    assert torch.equal(spikes.abs().sum(0), coding.spikes_in(counts, "phase", timesteps, "signed"))


def test_a_larger_count_is_dearer_to_the_gradient() -> None:
    neuron = CodingNeuron(1, 8, signed=True, coding="phase", digits="signed")
    counts = torch.arange(-neuron.most, neuron.most + 1.0).requires_grad_()
    spikes = soft_spikes(counts, neuron)
    assert torch.allclose(spikes, neuron.spikes_of(counts.detach()))
    spikes.sum().backward()
    assert counts.grad is not None
    assert torch.equal(counts.grad.sign(), counts.detach().sign())


# --- the integers, which know no counts ---


@given(st.data(), TIMESTEPS, st.booleans(), st.integers(0, 3))
def test_integers_send_what_the_spiking_network_sends(
    data: st.DataObject, timesteps: int, signed: bool, longer: int
) -> None:
    """Thresholds and membranes from anywhere, at the edges of counts and of 24 bits."""
    most, n = 2**timesteps - 1, 12
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    theta = (rng.integers(1, LIMIT // most, n) >> rng.integers(0, 23, n)).clip(1)
    u = theta * rng.integers(-2 * most - 3, 2 * most + 4, n) // 2 + rng.integers(-2, 3, n)
    u[:2] = data.draw(st.sampled_from([(-LIMIT, LIMIT), (0, -1), (1, 0)]))
    u = u.clip(-LIMIT, LIMIT)
    slots = timesteps + (longer if timesteps > 1 else 0)
    spikes, v = arithmetic.fire_steps(
        u, theta, most, signed, slots + 1, slots, "phase", digits="signed"
    )
    # the half is added in integers here, and a float32 would round
    start, sign = arithmetic.fire_start(u, theta, signed)
    size = start / theta - 0.5
    z = torch.from_numpy(sign * size.clip(0) if signed else size)
    theirs = coding.signed_spikes_from_total(z, timesteps, signed).numpy()
    assert (spikes[slots - timesteps : slots] == theirs).all()
    assert not spikes[: slots - timesteps].any() and not spikes[slots:].any()
    counts = arithmetic.fire_counts(u, theta, most, signed)
    assert (added_up(spikes[:slots]) == counts).all()
    assert (v[-1] == np.maximum(start, 0) - np.abs(counts) * theta).all() or timesteps == 1
    assert np.abs(v).max() <= LIMIT


# --- a network in all its forms ---


def converted(folder: Path, digits: Any, kind: str = "ttfs") -> SpikingLanguageModel:
    dense, _ = load_dense(str(folder))
    return convert(
        dense, words(2, 32), 6, str(folder), coding="phase", attention=kind,
        attention_code=Code(4, "phase"), digits=digits, first_token=0, limited=(9, 3),
    )  # fmt: skip


@pytest.fixture(params=["gpt2", "llama"])
def dense(request: pytest.FixtureRequest, tiny_dense_folder: Path, tiny_llama_folder: Path) -> Path:
    return tiny_dense_folder if request.param == "gpt2" else tiny_llama_folder


@pytest.mark.parametrize("kind", ["ttfs", "linear"])
def test_steps_are_counts_and_nothing_but_spikes_changes(dense: Path, kind: str) -> None:
    model, ids = converted(dense, "signed", kind), words(2, 12)
    with torch.no_grad():
        with counting_spikes(model) as by_counts:
            logits = model(ids).logits
        model.steps = True
        with counting_spikes(model) as by_steps:
            assert torch.equal(model(ids).logits, logits)
        with counting_spikes(binary := converted(dense, "binary", kind)) as of_binary:
            assert torch.equal(binary(ids).logits, logits)
    saved = 0
    for name, spikes in by_counts.spikes.items():
        assert torch.equal(spikes, by_steps.spikes[name]), name
        neuron = model.get_submodule(f"transformer.h.{name}")
        same = torch.equal(spikes, of_binary.spikes[name])
        stays = neuron.coding == "rate" or neuron.limit is not None
        assert same == stays, name
        saved += not stays
    assert saved >= 3 * len(model.blocks)


@torch.no_grad()
def test_integer_steps_are_counts_whatever_the_transport(dense: Path) -> None:
    model = IntegerGPT2.from_spiking(converted(dense, "signed"))
    config = model.config
    assert config.code.digits == config.attention_code.digits == "signed"
    assert (config.hidden_code.digits == "signed") == (config.hidden_spikes is None)
    x = np.random.default_rng(0).integers(-(2**14), 2**14, (9, config.width))
    attention, mlp = model.attention[0], model.feedforward[0]
    after, _ = attention.counts(x[None], attention.new_state(1))
    steps = config.hidden_timesteps or config.timesteps
    for slots, of_mlp in ((1, steps if config.hidden_spikes else 1), (4, steps), (6, 16)):
        trace = attention.steps(x, 2 * (slots + COARSE_STEPS + FINE_STEPS), slots)
        assert (trace["residual.x"][:, -1] == after[0]).all()
        hidden = mlp.steps(x, of_mlp, of_mlp)
        assert (hidden["residual.x"][:, -1] == mlp.counts(x)).all()
    # single neurons too, but none that stop, nor a graded spike
    assert hidden["hidden.spikes"].min() < 0


def digits_of(model: IntegerGPT2, spikes: Any) -> dict[str, str]:
    """Of every population of neurons of its graph."""
    return {
        f"{network.name}.{node.name}": node.digits
        for network in networks(model.config, spikes, {})
        for node in network.nodes
        if isinstance(node, Neurons)
    }


def test_a_graded_spike_is_no_digit(dense: Path) -> None:
    model = IntegerGPT2.from_spiking(converted(dense, "signed"))
    gated = model.config.gated
    for spikes in ("binary", "graded"):
        # what drives membranes that saturate has time steps in either transport
        found, by_digits = digits_of(model, spikes), spikes == "binary" or gated
        assert found["h.0.attn.qkv"] == ("signed" if by_digits else "binary")
        assert found["h.1.mlp.encode"] == ("signed" if by_digits else "binary")
        # those that stop have binary digits
        assert found["h.0.mlp.hidden"] == ("signed" if by_digits and not gated else "binary")
        assert found["head.encode"] == ("signed" if gated else "binary")


def test_lava_is_the_integer_model(dense: Path, nano_tokenizer: Any, tmp_path: Path) -> None:
    """A block, every spike and every state; of a Llama also the head, which has digits there."""
    model = IntegerGPT2.from_spiking(converted(dense, "signed"))
    netlist.write(tmp_path, model, nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    assert found.model.config == model.config
    names = ("h.0.attn", "head") if model.config.gated else ("h.0.attn", "h.0.mlp")
    for network in found.manifest.networks:
        if network.name in names:
            tally = compare(found, network, entering(found, network, 1, 4))
            assert tally.mismatches == 0 and tally.compared > 0, (network.name, tally)


def test_a_spike_of_a_single_neuron_needs_a_sign(tiny_dense_folder: Path) -> None:
    def hidden(digits: Any) -> Any:
        model = IntegerGPT2.from_spiking(converted(tiny_dense_folder, digits))
        (network,) = (x for x in networks(model.config, "binary", {}) if x.name == "h.0.mlp")
        return next(node for node in network.nodes if node.name == "hidden")

    plain, signed = hidden("binary"), hidden("signed")
    assert (plain.payload_bits, signed.payload_bits) == (1, 2)
    assert signed.words == plain.words + 1


# --- what is asked for, and what is kept ---


def test_a_recipe_asks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    assert load_recipe().digits == "binary"
    path.write_text("digits: signed\n")
    recipe = load_recipe(path)  # phase coded in the attention alone
    assert recipe.attention_code == Code(5, "phase", "signed")
    assert recipe.code == Code(8, "rate", "binary")
    assert load_recipe(path, coding="phase").code == Code(8, "phase", "signed")
    for wrong in ({"coding": "rate"}, {"attention": "linear"}):
        with pytest.raises(UserError, match="digits: signed is for phase coding") as error:
            load_recipe(path, **wrong)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    path.write_text("digits: ternary\n")
    with pytest.raises(UserError, match="digits"):
        load_recipe(path)


def test_rate_coding_has_none(tiny_dense_folder: Path) -> None:
    dense, _ = load_dense(str(tiny_dense_folder))
    with pytest.raises(UserError, match="rate coded"):
        convert(dense, words(1, 8), 4, "", digits="signed")


def test_a_run_keeps_them_and_one_that_is_silent_has_binary_ones(
    tiny_dense_folder: Path, tmp_path: Path, tiny_run: Path
) -> None:
    model = converted(tiny_dense_folder, "signed")
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    model.save_pretrained(run)
    config = read_json(run / "config.json")
    assert config["digits"] == "signed"
    loaded, _ = load_run(run)
    assert loaded.blocks[0].attn.query.digits == "signed"
    assert model_sha256(loaded) == model_sha256(model)
    silent = {name: value for name, value in config.items() if name != "digits"}
    hashes = []
    for values in (silent, {**silent, "digits": "binary"}):
        write_json(run / "config.json", values)
        again, _ = load_run(run)
        assert again.blocks[0].attn.query.digits == "binary"
        hashes += [model_sha256(again), run_sha256(run, values)]
    assert len(set(hashes)) == 1 and model_sha256(model) not in hashes
    for values in ({"digits": "ternary"}, {"coding": "rate", "attention_coding": "rate"}):
        write_json(run / "config.json", {**config, **values})
        with pytest.raises(UserError, match="digits"):
            load_run(run)


def test_nir_knows_no_digits(tiny_dense_folder: Path, tmp_path: Path) -> None:
    """Its graphs send counts."""
    graphs = []
    for digits in ("binary", "signed"):
        model = IntegerGPT2.from_spiking(converted(tiny_dense_folder, digits))
        (tmp_path / digits).mkdir()
        graphs.append(nir_export.write(tmp_path / digits, model)["graphs"])
    assert graphs[0] == graphs[1]


def test_a_report_and_a_card_say_so(tiny_dense_folder: Path) -> None:
    for digits in ("binary", "signed"):
        config = converted(tiny_dense_folder, digits).config.to_dict()
        said = dict(facts({}, config, None)), _codes(config)
        assert ("digits" in said[0], "signed digits" in said[1]) == (digits == "signed",) * 2
