"""Induction measures: on networks whose attention is known, and by the command."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from neurtransformer.errors import UserError
from neurtransformer.icl import induction
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.load import load_run


def test_a_perfect_induction_head_scores_one_and_its_neighbours_nothing() -> None:
    ids = induction.repeated(50, 8)
    assert torch.equal(ids[:, :8], ids[:, 8:])
    assert bool((induction.repeated(3, 8) >= 1).all())  # token 0 starts documents
    weights = torch.zeros(1, 3, len(ids), 16, 16)
    for q in range(8, 16):
        weights[0, 0, :, q, q - 7] = 1  # what followed the earlier occurrence
        weights[0, 1, :, q, q - 8] = 1  # the earlier occurrence itself
    weights[0, 2] = 1 / 16
    scores = induction.prefix_matching(weights)
    assert torch.allclose(scores, torch.tensor([[1.0, 0.0, 1 / 16]]))


def test_copying_is_the_sign_of_the_eigenvalues() -> None:
    torch.manual_seed(0)
    to_value = torch.randn(4, 30)
    assert induction.copying(to_value, to_value.T) == pytest.approx(1)
    assert induction.copying(to_value, -to_value.T) == pytest.approx(-1)
    turned = torch.tensor([[0.0, 1], [-1, 0]])  # eigenvalues i and -i
    assert induction.copying(turned, torch.eye(2)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("length", [512, 64])
def test_the_score_looks_where_it_says(length: int) -> None:
    loss = torch.full((length - 1,), 9.0)
    scale = length / 512
    loss[int(38 * scale) : round(62 * scale)] = 5
    loss[int(480 * scale) :] = 4
    early, late = induction.early_and_late(loss)
    assert early == pytest.approx(5, abs=0.8) and late == pytest.approx(4, abs=0.8)


def test_the_integer_networks_attention_is_the_spiking_networks(either_run: Path) -> None:
    spiking = load_run(either_run)[0]
    integer = induction.integer_form(IntegerGPT2.from_spiking(spiking))
    ids = induction.repeated(4096, 16)
    with torch.no_grad():
        ours, theirs = integer.attention(ids), induction.spiking_form(spiking).attention(ids)
    assert ours.shape == theirs.shape == (2, 2, len(ids), 32, 32)
    assert (ours - theirs).abs().mean() < 0.01
    for mine, other in zip(
        integer.circuits(), induction.spiking_form(spiking).circuits(), strict=True
    ):
        for a, b in zip(mine, other, strict=True):
            assert induction.copying(*a) == pytest.approx(induction.copying(*b), abs=0.2)


def test_circuits_are_what_a_head_does_to_a_token() -> None:
    """What head 1 makes of one token's embedding, and what that adds to the logits, by hand."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    dense = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_()
        block = dense.transformer.h[0]
        token = dense.transformer.wte.weight[7]
        seen = (token - token.mean()) * block.ln_1.weight
        value = (seen @ block.attn.c_attn.weight)[16:][4:]
        written = value @ block.attn.c_proj.weight[4:]
        logits = dense.lm_head.weight @ ((written - written.mean()) * dense.transformer.ln_f.weight)
        spiking = convert(dense, torch.arange(16).view(2, 8), 4, "tiny")
        for form in (induction.dense_form(dense, spiking), induction.spiking_form(spiking)):
            to_value, to_logits = form.circuits()[0][1]
            assert torch.allclose(to_value[:, 7], value, atol=1e-5)
            assert torch.allclose(to_logits @ value, logits, atol=1e-4)


def test_all_measures_of_a_form() -> None:
    """Of a network whose head 1 of layer 2 copies, and which learns from token 60 on."""
    asked = []

    def attention(ids: torch.Tensor) -> torch.Tensor:
        asked.append(ids)
        length = ids.shape[1]
        weights = torch.zeros(3, 2, len(ids), length, length)
        weights[2, 1] = torch.eye(length).roll(1 - length // 2, 1)
        return weights

    def logits(ids: torch.Tensor) -> torch.Tensor:
        position = torch.arange(ids.shape[1])
        found = torch.zeros(*ids.shape, 9)
        found[..., 0] = torch.where(position < 60, 0.0, 5.0)
        return found

    one = torch.eye(9)
    form = induction.Form(attention, logits, lambda: 3 * [[(one, one), (one, -one)]])
    found = induction.measure(form, 9, torch.zeros(2, 512, dtype=torch.long))
    assert asked[0].shape == (8, 128)  # 64 tokens, twice
    assert found["best_head"] == [2, 1] and found["prefix_matching_max"] == 1
    assert sum(map(sum, found["prefix_matching"])) == 1
    assert found["copying"] == 3 * [pytest.approx([1, -1])]
    later = math.log(math.exp(5) + 8) - 5
    assert found["loss_late"] == pytest.approx(later, abs=1e-5)
    # the losses of tokens 38 to 61, two of which are low
    assert found["loss_early"] == pytest.approx((22 * math.log(9) + 2 * later) / 24, rel=1e-5)
    assert found["icl_score"] == pytest.approx(found["loss_late"] - found["loss_early"])
    assert found["icl_score"] < -1
    short = induction.measure(form, 9, torch.zeros(1, 40, dtype=torch.long))
    assert asked[1].shape == (8, 40) and short["prefix_matching_max"] == 1


def test_by_command(
    either_run: Path, copy_of: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    from neurtx.main import neurtx

    picture = tmp_path / "heads.svg"
    arguments = ["icl", "induction", str(copy_of(either_run)), "--limit", "128", "--json"]
    assert not neurtx.main([*arguments, "--picture", str(picture)], standalone_mode=False)
    values = json.loads(capfd.readouterr().out)
    for form in ("dense", "converted", "spiking", "integer"):
        assert 0 <= values[form]["prefix_matching_max"] <= 1
        assert len(values[form]["prefix_matching"]) == 2
        assert isinstance(values[form]["icl_score"], float)
    assert picture.read_text().lstrip().startswith("<?xml")
    for wrong, told in ((picture, "exists already"), (tmp_path / "heads.png", "must end in .svg")):
        with pytest.raises(UserError, match=told):
            neurtx.main([*arguments, "--picture", str(wrong)], standalone_mode=False)


def test_a_run_that_was_only_converted_is_its_own_control(
    neurtx: Any, tiny_dense_folder: Path
) -> None:
    assert neurtx("convert", str(tiny_dense_folder), "--timesteps", "4").returncode == 0
    found = json.loads(neurtx("icl", "induction", "--limit", "128", "--json").stdout)
    assert found["converted"] == found["spiking"] != found["dense"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("regression", "a-run"), "unexpected extra argument"),
        (("omniglot", "--text", "a"), "No such option '?--text"),
        (("induction", "--ways", "5"), "No such option '?--ways"),
        (("--limit", "5", "omniglot"), "No such option '?--limit"),
        (("--limit", "1", "induction"), "1 is not in the range"),
        (("drawing",), "No such command"),
        ((), "Missing command"),
    ],
)
def test_an_option_of_another_task_is_a_mistake(arguments: tuple[str, ...], told: str) -> None:
    from neurtx.main import neurtx

    with pytest.raises(click.UsageError) as error:
        neurtx.main(["icl", *arguments], standalone_mode=False)
    assert re.search(told, error.value.format_message())


@pytest.mark.parametrize("task", ["induction", "regression", "omniglot"])
def test_each_task_has_help_of_its_own(task: str, capfd: pytest.CaptureFixture) -> None:
    from neurtx.main import neurtx

    neurtx.main(["icl", task, "--help"], standalone_mode=False)
    told = capfd.readouterr().out
    assert told.startswith(f"Usage: neurtx icl {task}") or f"icl {task} [OPTIONS]" in told
    assert ("--ways" in told) == (task == "omniglot") and ("--text" in told) == (
        task == "induction"
    )
