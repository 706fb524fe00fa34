"""Llama down to the chip: rotary positions, heads that share keys and values, SwiGLU, RMSNorm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from conftest import likeness, words

from neurtransformer.codes import COARSE_STEPS, FINE_STEPS
from neurtransformer.dense import load_dense
from neurtransformer.integer.arithmetic import LIMIT, MOST_CARRIED
from neurtransformer.integer.attention import IntegerAttention
from neurtransformer.integer.config import IntegerConfig
from neurtransformer.integer.layout import check, layout
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.quantise import worst_sums
from neurtransformer.loihi import netlist
from neurtransformer.loihi.llama import RotaryNeurons, SwigluNeurons
from neurtransformer.loihi.nodes import Spikes
from neurtransformer.loihi.simulate import pairs, prompt_ids, simulate
from neurtransformer.recipe import Code
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import SpikingLanguageModel


def converted(
    folder: Path, first: int | None, limited: tuple[int, int] | None
) -> SpikingLanguageModel:
    dense, _ = load_dense(str(folder))
    return convert(
        dense,
        words(2, 48),
        8,
        "tiny",
        coding="phase",
        attention="ttfs",
        attention_code=Code(6, "phase"),
        first_token=first,
        limited=limited,
    )


# no innate token: that makes a difference in attention alone, which a GPT-2's test has too
ALIKE = [pytest.param((None, limited), marks=pytest.mark.slow) for limited in (None, (6, 2))]


@pytest.fixture(scope="module", params=[(0, None), (0, (12, 4)), *ALIKE])
def spiking(request: pytest.FixtureRequest, tiny_llama_folder: Path) -> SpikingLanguageModel:
    """With an innate token, and without one; hidden neurons that stop, in more steps than the rest
    have and in fewer."""
    return converted(tiny_llama_folder, *request.param)


@pytest.fixture(scope="module")
def stopping(tiny_llama_folder: Path) -> IntegerGPT2:
    """One whose hidden neurons stop."""
    return IntegerGPT2.from_spiking(converted(tiny_llama_folder, 0, (12, 4)))


@pytest.fixture(scope="module")
def model(spiking: SpikingLanguageModel) -> IntegerGPT2:
    return IntegerGPT2.from_spiking(spiking)


@torch.no_grad()
def test_integers_follow_the_spiking_network(
    model: IntegerGPT2, spiking: SpikingLanguageModel
) -> None:
    ids = words(2, 40)
    theirs = spiking(ids).logits
    near = likeness(model(ids), theirs)
    assert near > 0.98
    changed = []
    for change in ("unturned", "elsewhere", "other heads", "gates for inputs"):
        other = IntegerGPT2(model.config, dict(model.tensors))
        attention: Any
        for i, attention in enumerate(other.attention):
            if change == "unturned":
                attention.rotary = None
            elif change == "elsewhere":
                attention.rotary.fine[:] = attention.rotary.fine[::-1].copy()
            elif change == "other heads":
                attention.each = lambda x: np.concatenate([x, x], axis=-3)
            elif change == "gates for inputs":
                c_fc = other.feedforward[i].c_fc
                c_fc.weight[:] = np.roll(c_fc.weight, 96, axis=0)
        changed.append(likeness(other(ids), theirs))
    assert max(changed) < near - 0.005, changed


def test_token_after_token_is_all_at_once(model: IntegerGPT2) -> None:
    ids = words(2, 12)
    states = model.new_states()
    parts = [model(ids[:, :5], states)]
    parts += [model(ids[:, i : i + 1], states) for i in range(5, 12)]
    assert torch.equal(torch.cat(parts, dim=1), model(ids))


def test_steps_are_counts_whatever_the_transport(model: IntegerGPT2) -> None:
    x = np.random.default_rng(0).integers(-(2**14), 2**14, (17, model.config.width))
    attention, mlp = model.attention[0], model.feedforward[0]
    after, state = attention.counts(x[None], attention.new_state(1))
    least = max(8, model.config.hidden_timesteps or 0)
    # one graded spike, where none drives what saturates; as many steps as digits, and more
    for slots, steps in ((1, least if model.config.hidden_spikes else 1), (6, least), (7, 16)):
        trace = attention.steps(x, 2 * (slots + COARSE_STEPS + FINE_STEPS), slots)
        assert (trace["residual.x"][:, -1] == after[0]).all()
        assert (trace["race.keys"][-1] == state[0][0]).all()
        # a token neuron fires at most once in each of two races
        assert trace["race.spikes"].sum(1).max() == 2
        hidden = mlp.steps(x, steps, steps)
        assert (hidden["residual.x"][:, -1] == mlp.counts(x)).all()
        assert hidden["hidden.spikes"].min() < 0 < hidden["hidden.spikes"].max()
        for name, values in {**trace, **hidden}.items():
            assert np.abs(values).max() <= LIMIT, name


def test_the_layout_is_what_quantising_makes(model: IntegerGPT2) -> None:
    assert layout(model.config).keys() == model.tensors.keys()
    check(model.config, dict(model.tensors), pytest.fail)
    carry = any(name.endswith(".carry") for name in model.tensors)
    assert carry == (model.config.hidden_spikes is not None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "no multiple of 3"),
        ({"rotary": None}, "rotary"),
        ({"model": "gpt2"}, "rotary"),
        ({"attention": "linear"}, "ttfs alone"),
        ({"heads": 64, "kv_heads": 64}, "even width"),
        ({"hidden_timesteps": 12, "hidden_spikes": None}, "number of spikes"),
        ({"hidden_timesteps": None, "hidden_spikes": 4}, "number of spikes"),
        ({"hidden_timesteps": 3, "hidden_spikes": 4}, "at most"),
        ({"hidden_timesteps": 17, "hidden_spikes": 4}, "16"),
        ({"hidden_timesteps": 12, "hidden_spikes": 4, "coding": "rate"}, "phase coded"),
    ],
)
def test_sizes_that_no_llama_has(model: IntegerGPT2, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntegerConfig.model_validate({**model.config.model_dump(), **change})


def _all(value: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.full_like(x, value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("h.0.mlp.hidden.carry", _all(7), "range"),
        ("h.0.mlp.hidden.carry", _all(-1), "range"),
        ("h.1.attn.encode.carry", lambda x: x[1:], "should be"),
        ("h.1.attn.merged.carry", None, "missing"),
        ("h.0.mlp.c_proj.bias", _all(LIMIT), "24 bits"),
        ("h.1.attn.c_attn.bias", _all(-LIMIT), "24 bits"),
    ],
)
def test_spoilt_tensors_of_what_spikes_carry_are_found(
    stopping: IntegerGPT2,
    name: str,
    change: Callable[[np.ndarray], np.ndarray] | None,
    message: str,
) -> None:
    spoilt = dict(stopping.tensors)
    old = spoilt.pop(name)
    if change is not None:
        spoilt[name] = change(old)
    found: list[str] = []

    def complain(complaint: str) -> NoReturn:
        found.append(complaint)
        raise ValueError(complaint)

    with pytest.raises(ValueError, match=message):
        check(stopping.config, spoilt, complain)


def test_a_step_of_what_spikes_carry_has_to_fit() -> None:
    """The largest weights by the largest spikes may leave 24 bits in one step."""
    inputs = LIMIT // (254 << MOST_CARRIED)
    for more, fits in ((0, True), (1, False)):
        weight = np.full((2, inputs + more), 254, np.int16)
        carry = np.full(inputs + more, MOST_CARRIED, np.int32)
        worst = worst_sums(weight, np.zeros(2, np.int32), 1, carry=carry)
        assert (worst <= LIMIT).all() == fits


@pytest.mark.usefixtures("lava")
def test_lava_saturates_as_the_integer_model_does(
    stopping: IntegerGPT2, nano_tokenizer: Any, tmp_path: Path
) -> None:
    """The largest weights, counts and spikes there are: many a membrane finds no room."""
    from neurtransformer.loihi.runner import run_network

    large = dict(stopping.tensors)
    for name, x in large.items():
        if name.endswith(".carry"):
            large[name] = np.full_like(x, MOST_CARRIED)
        elif name.endswith(".theta"):
            large[name] = np.ones_like(x)
        elif name.startswith("h.") and name.endswith(".weight"):
            large[name] = (254 * np.sign(x)).astype(x.dtype)
    model = IntegerGPT2(stopping.config, large)
    netlist.write(tmp_path, model, nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    _, *networks, _ = found.manifest.networks
    x = np.random.default_rng(0).integers(-(2**14), 2**14, (4, 64))
    for network in networks[:2]:
        theirs = found.model.networks[network.name]
        ours = theirs.steps(x, network.phase, network.slots)
        for quantity in ours.keys() & {"qkv.u", "hidden.u", "residual.u"}:
            assert (np.abs(ours[quantity][:, -1]) == LIMIT).mean() > 0.1, quantity
        counts = (
            theirs.counts(x[None], theirs.new_state(1))[0][0]
            if isinstance(theirs, IntegerAttention)
            else theirs.counts(x)
        )
        assert (ours["residual.x"][:, -1] == counts).all()
        lavas, _ = run_network(found, network, ours)
        for name, mine, other in pairs(network, ours, lavas):
            assert (mine == other).all(), name


@pytest.mark.usefixtures("lava")
@pytest.mark.parametrize("spikes", ["binary", pytest.param("graded", marks=pytest.mark.slow)])
def test_lava_is_the_integer_model(
    model: IntegerGPT2, nano_tokenizer: Any, tmp_path: Path, spikes: Spikes
) -> None:
    netlist.write(tmp_path, model, nano_tokenizer, spikes)
    found = netlist.read_text(tmp_path)
    _, attention, mlp, *_ = found.manifest.networks
    assert any(isinstance(node, RotaryNeurons) for node in attention.nodes)
    assert any(isinstance(node, SwigluNeurons) for node in mlp.nodes)
    ids = prompt_ids(found, "a word or two", 2)
    values = simulate(found, ids, "lava", tokens=2)
    assert values["mismatches"] == 0 and values["same_text"], values


@pytest.mark.usefixtures("lava")
@pytest.mark.parametrize("code", [pytest.param((), marks=pytest.mark.slow), ("--coding", "phase")])
def test_from_the_dense_model_to_lava(
    neurtx: Callable[..., Any], tiny_llama_folder: Path, code: tuple[str, ...]
) -> None:
    assert neurtx("convert", str(tiny_llama_folder), *code, "--out", "run").returncode == 0
    done = neurtx("export", "run", "--target", "loihi2", "--out", "net", "--json")
    assert done.returncode == 0, done.stderr
    assert abs(json.loads(done.stdout)["ppl_ratio_to_spiking"] - 1) < 0.03
    done = neurtx("simulate", "net", "--prompt", "a word", "--tokens", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mismatches"] == 0
    words = ("--prompt", "a word", "--tokens", "2", "--backend", "integer")
    assert neurtx("generate", "run", *words).returncode == 0
    assert "no product of two signals" in neurtx("export", "run", "--target", "nir").mistake()
    assert neurtx("place", "net").returncode == 0


def test_fast_weights_of_a_llama_have_no_integers(
    neurtx: Callable[..., Any], tiny_llama_folder: Path
) -> None:
    words = ("--out", "run", "--attention", "linear")
    assert neurtx("convert", str(tiny_llama_folder), *words).returncode == 0
    line = neurtx("export", "run", "--target", "loihi2").mistake()
    assert "ttfs alone" in line


def test_place_by_name(neurtx: Callable[..., Any]) -> None:
    found = json.loads(neurtx("place", "smollm2-135m", "--json").stdout)
    assert found["model"] == "smollm2-135m"
    assert found["fits"] == {"one chip": False, "Kapoho Point": False, "Hala Point": True}
