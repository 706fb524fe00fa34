"""The innate first token in integers and in Lava: it is there from the start, and never sent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import likeness, words

from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import LIMIT, LOGIT_BITS
from neurtransformer.integer.attention.ttfs import RaceAttention
from neurtransformer.integer.layout import check, layout
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist
from neurtransformer.loihi.attention import KINDS
from neurtransformer.loihi.chip import load_chip
from neurtransformer.loihi.place import place, summary
from neurtransformer.loihi.simulate import prompt_ids, simulate
from neurtransformer.recipe import Code
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.model import SpikingLanguageModel

FIRST = 0


@pytest.fixture(scope="module", params=["ttfs", "linear"])
def spiking(request: pytest.FixtureRequest, tiny_dense_folder: Path) -> SpikingLanguageModel:
    """The tiny model behind an innate token that heads like, as a real one's do."""
    dense, _ = load_dense(str(tiny_dense_folder))
    for block in dense.transformer.h:
        block.attn.c_attn.weight.data.mul_(4)
    code = Code(5, "phase") if request.param == "ttfs" else Code(4, "rate")
    found = convert(
        dense,
        words(2, 48),
        4,
        "tiny",
        attention=request.param,
        attention_code=code,
        first_token=FIRST,
    )
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.endswith("first_value"):
                parameter.mul_(3)
    return found


@pytest.fixture(scope="module")
def model(spiking: SpikingLanguageModel) -> IntegerGPT2:
    return IntegerGPT2.from_spiking(spiking)


@torch.no_grad()
def test_integers_follow_the_spiking_network(
    model: IntegerGPT2, spiking: SpikingLanguageModel
) -> None:
    ids = words(2, 40)
    theirs = spiking(ids).logits
    assert likeness(model(ids), theirs) > 0.95
    # and not without the token, or with positions that begin at 0
    without = IntegerGPT2.from_spiking(spiking)
    for attention in without.attention:
        attention.first = None
    elsewhere = IntegerGPT2.from_spiking(spiking)
    elsewhere.embedding.begin -= 1
    near = likeness(model(ids), theirs)
    assert likeness(without(ids), theirs) < near - 0.01
    assert likeness(elsewhere(ids), theirs) < near - 0.01


@torch.no_grad()
def test_the_core_is_the_spiking_core(model: IntegerGPT2, spiking: SpikingLanguageModel) -> None:
    """On equal counts, gains and levels both begin with the same state and give the same means."""
    ours: Any = model.attention[1]
    theirs: Any = spiking.blocks[1].attn
    if isinstance(ours, RaceAttention):
        ours = type(ours)(model.tensors, "h.1.attn", model.config)
        gain, width = theirs.gains()
        ours.gain, ours.width = gain.long().numpy(), width.long().numpy()
        ours.first = tuple(x[0].long().numpy() for x in theirs.first(1, gain))
        most = ours.qkv.most
        near = model.tensors["h.1.attn.race.first_key"].reshape(ours.first[0].shape)
        assert np.abs(near - ours.first[0]).max() <= 4  # by its own thresholds
    else:
        most = model.config.timesteps
    rng = np.random.default_rng(0)
    lows = [-most if signed else 0 for signed in theirs.signed]
    dims = [rows // 2 for rows in theirs.rows]
    counts = [
        rng.integers(low, most + 1, (2, 2, 20, dim)) for low, dim in zip(lows, dims, strict=True)
    ]
    begin, expected_begin = ours.new_state(2), theirs.new_state(2)
    for mine, other in zip(begin, expected_begin, strict=False):
        assert (mine == other.numpy()).all() and np.abs(mine).max() > 0
    mean, _ = ours.mix(*counts, begin)
    floats = [torch.tensor(x).float() for x in counts]
    expected, _ = theirs.mix(*floats, False, expected_begin, None)
    assert (mean * 2.0**-8 == expected.numpy()).all()
    weights = torch.from_numpy(ours.weights(*counts[:2])).float()
    assert weights.shape == (2, 2, 20, 21)
    torch.testing.assert_close(weights, theirs.weights(*floats[:2]), rtol=1e-5, atol=0)


def test_steps_are_counts_whatever_the_transport(model: IntegerGPT2) -> None:
    x = np.random.default_rng(0).integers(-(2**14), 2**14, (17, model.config.width))
    attention: Any = model.attention[0]
    after, state = attention.counts(x[None], attention.new_state(1))
    for slots in (1, model.config.attention_code.timesteps):
        phase = KINDS[model.config.attention].phase(slots, model.config)
        trace = attention.steps(x, phase, slots)
        assert (trace["residual.x"][:, -1] == after[0]).all()
        if isinstance(attention, RaceAttention):
            assert (trace["race.keys"][-1] == state[0][0]).all()
            assert attention.first is not None
            assert (trace["race.keys"][0, :, 0] == attention.first[0][:, 0]).all()
            assert trace["race.spikes"].shape[-1] == 18 and trace["race.spikes"][..., 0].any()
        else:
            assert (trace["ssa.state"][-1] == state[0][0]).all()
        for name, values in trace.items():
            assert np.abs(values).max() <= LIMIT, name


def test_token_after_token_is_all_at_once(model: IntegerGPT2) -> None:
    ids = words(2, 12)
    first = torch.full((2, 1), FIRST)
    for given in (ids, torch.cat([first, ids], dim=1), torch.cat([first, first, ids], dim=1)):
        states = model.new_states()
        parts = [model(given[:, i : i + 1], states) for i in range(given.shape[1])]
        assert torch.equal(torch.cat(parts, dim=1), model(given))


@torch.no_grad()
def test_a_text_that_begins_with_the_token_means_the_same(
    model: IntegerGPT2, spiking: SpikingLanguageModel
) -> None:
    ids = words(3, 9)
    first = torch.full((3, 1), FIRST)
    again = model(torch.cat([first, ids], dim=1))
    assert torch.equal(again[:, 1:], model(ids))
    theirs = spiking(torch.cat([first, ids], dim=1)).logits[:, :1]
    assert (again[:, :1] - theirs).abs().max() <= 2.0 ** -(LOGIT_BITS + 1) + 1e-5
    mixed = torch.cat([first, ids], dim=1)
    mixed[1] = words(1, 10, seed=3)
    assert torch.equal(model(mixed)[::2], again[::2])
    assert torch.equal(model(mixed)[1:2], model(mixed[1:2]))
    with pytest.raises(ValueError, match="begin all with the first token, or none"):
        model(mixed, model.new_states())


def test_it_takes_one_position(model: IntegerGPT2) -> None:
    first = torch.full((1, 1), FIRST)
    assert model.config.context == 63
    assert model(torch.cat([first, words(1, 63)], dim=1)).shape[1] == 64
    for given in (words(1, 64), torch.cat([first, words(1, 64)], dim=1)):
        with pytest.raises(UserError, match="64 tokens are more than the 63"):
            model(given)


def test_generate_with_and_without_it(model: IntegerGPT2) -> None:
    ids, first = words(1, 5), torch.full((1, 1), FIRST)
    again = torch.cat([first, ids], dim=1)
    assert torch.equal(model.generate(again, 6), torch.cat([first, model.generate(ids, 6)], dim=1))
    alone = model.generate(first, 3)[0]
    assert int(alone[1]) == int(model(first)[0, 0].argmax())
    assert torch.equal(alone[1:], model.generate(alone[None, 1:2], 2)[0])


def test_the_layout_is_what_quantising_makes(model: IntegerGPT2) -> None:
    assert layout(model.config).keys() == model.tensors.keys()

    def complain(what: str) -> None:
        raise UserError(what)

    check(model.config, dict(model.tensors), complain)
    node = "race" if model.config.attention == "ttfs" else "ssa"
    limits = {"race": (127, 31), "ssa": (4, 4)}[node]
    for part, limit in zip(("key", "value"), limits, strict=True):
        name = f"h.1.attn.{node}.first_{part}"
        spoilt = {**model.tensors, name: np.full_like(model.tensors[name], limit + 1)}
        with pytest.raises(UserError, match="out of range"):
            check(model.config, spoilt, complain)
    less = {k: x for k, x in model.tensors.items() if k != "head.first_logits"}
    with pytest.raises(UserError, match=r"head\.first_logits is missing"):
        check(model.config, less, complain)


def test_a_first_token_must_be_one(model: IntegerGPT2) -> None:
    sizes = model.config.model_dump()
    with pytest.raises(ValueError, match="is none of"):
        type(model.config)(**{**sizes, "first_token": model.config.vocabulary})
    with pytest.raises(ValueError, match="no position"):
        type(model.config)(**{**sizes, "positions": 1})


def test_damaged_synapses_are_refused(spiking: SpikingLanguageModel) -> None:
    kept = spiking.first_hidden.clone()
    spiking.first_hidden[3] = float("nan")
    try:
        with pytest.raises(UserError, match="first_hidden holds NaN"):
            IntegerGPT2.from_spiking(spiking)
    finally:
        spiking.first_hidden.copy_(kept)


@pytest.mark.usefixtures("lava")
def test_a_netlist_has_it(model: IntegerGPT2, nano_tokenizer: Any, tmp_path: Path) -> None:
    netlist.write(tmp_path, model, nano_tokenizer, "binary")
    found = netlist.read_text(tmp_path)
    assert found.manifest.version == 11 and found.model.config.first_token == FIRST
    node: Any = next(n for n in found.manifest.networks[1].nodes if n.name in ("race", "ssa"))
    assert node.innate == 1
    assert "positions begin at 1" in found.manifest.host
    for name, x in model.tensors.items():
        assert (found.model.tensors[name] == x).all(), name
    ids = prompt_ids(found, "a word or two", 3)
    values = simulate(found, ids, "lava", tokens=3)
    assert values["mismatches"] == 0 and values["same_text"], values
    again = simulate(found, [FIRST, *ids], "integer", tokens=3)
    assert (again["text"], again["tokens"]) == (values["text"], values["tokens"])
    assert again["mismatches"] == 0 and again["same_text"]
    assert summary(place(found.manifest.networks, load_chip()))["cores"] > 0


def test_prompts_are_measured_without_it(
    model: IntegerGPT2, nano_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netlist.write(tmp_path, model, nano_tokenizer, "graded")
    found = netlist.read_text(tmp_path)
    written = found.tokenizer.decode([FIRST])
    assert prompt_ids(found, f"{written}word", 1)[0] == FIRST
    with pytest.raises(UserError, match="every text begins with"):
        prompt_ids(found, written, 1)
    length = len(prompt_ids(found, "word " * 12, 1))
    prompt_ids(found, f"{written}{'word ' * 12}", 64 - length)
    with pytest.raises(UserError, match="63 positions"):
        prompt_ids(found, f"{written}{'word ' * 12}", 65 - length)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["ttfs", "linear"])
@pytest.mark.usefixtures("lava")
def test_from_the_dense_model_to_lava(
    neurtx: Callable[..., Any], tiny_dense_folder: Path, attention: str
) -> None:
    words = ("--out", "run", "--timesteps", "4", "--attention", attention)
    assert neurtx("convert", str(tiny_dense_folder), *words).returncode == 0
    assert json.loads(Path("run/config.json").read_text())["first_token"] == 0
    done = neurtx("export", "run", "--target", "loihi2", "--out", "net", "--json")
    assert done.returncode == 0, done.stderr
    assert abs(json.loads(done.stdout)["ppl_ratio_to_spiking"] - 1) < 0.02
    done = neurtx("simulate", "net", "--prompt", "a word or two", "--tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mismatches"] == 0
