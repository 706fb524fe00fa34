"""The start of a training with a budget: bases that leave the network as it is, thresholds that
spend spikes where they matter, and the price that keeps to the budget."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from neurtransformer.dense import load_dense
from neurtransformer.families.base import Sizes
from neurtransformer.recipe import Code, Coding, Digits, Finetune, load_recipe
from neurtransformer.spiking import finetune as training
from neurtransformer.spiking.attention.ttfs import GAIN_SPAN, RaceAttention
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.finetune import Step, finetune, next_price
from neurtransformer.spiking.load import load_teacher
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.spiking.sparing import Spread, balanced, listen, spare, turn
from neurtransformer.spiking.synops import cost_of, share_of

STEPS = 12


def text(count: int, length: int) -> Tensor:
    return torch.randint(0, 4096, (count, length), generator=torch.Generator().manual_seed(0))


def converted(
    dense: Path,
    coding: Coding = "phase",
    timesteps: int = 5,
    kind: str = "ttfs",
    digits: Digits = "binary",
) -> SpikingGPT2LMHeadModel:
    return convert(
        load_dense(str(dense))[0], text(4, 16), timesteps, str(dense), coding=coding,
        attention=kind, attention_code=Code(timesteps, coding), digits=digits, first_token=0,
    )  # fmt: skip


def test_in_a_balanced_basis_both_matrices_are_the_same_and_diagonal() -> None:
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(2, 3, 8, 8, generator=random, dtype=torch.float64)
    first, second = (x @ x.mT for x in factors)
    basis = balanced(first, second)
    back = torch.linalg.inv(basis)
    ours, theirs = basis @ first @ basis.mT, back.mT @ second @ back
    strength = ours.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(ours, torch.diag_embed(strength), atol=1e-2 * float(strength.max()))
    assert torch.allclose(ours, theirs, atol=1e-2 * float(strength.max()))
    assert bool((strength.diff() <= 0).all())


def test_turning_leaves_scores_and_outputs_as_they_are(tiny_dense_folder: Path) -> None:
    """Seen without codes: what neurons integrate, and what the projection behind them makes of it.
    Scores may all move by the same."""
    model = converted(tiny_dense_folder)
    attention, x = model.blocks[0].attn, torch.randn(1, 10, model.config.sizes.width)
    attention.train()  # weights are not rounded
    heads = attention.heads

    def scores_and_output() -> tuple[Tensor, Tensor]:
        counts = attention.encode(x)
        parts = attention.membranes(counts, False, None)
        query, key, value = (attention.split_heads(part, heads) for part in parts)
        first_key, first_value = attention.first_key, attention.first_value
        assert first_key is not None and first_value is not None
        first = (part.view(1, heads, 1, -1) for part in (first_key, first_value))
        key, value = (torch.cat(pair, dim=-2) for pair in zip(first, (key, value), strict=True))
        scores = query @ key.mT
        mean = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)
        # the output's bias holds what the centre of the code comes to
        output = (mean - attention.merged.center) @ attention.c_proj.weight.T
        return scores, output + attention.c_proj.bias

    scores, output = scores_and_output()
    weights = attention.c_attn.weight.clone()
    heard = listen(model, load_teacher(model), text(4, 16), 0)
    attention.train()
    turn(model, heard)
    assert not torch.allclose(attention.c_attn.weight, weights, atol=1e-3)
    turned_scores, turned_output = scores_and_output()
    moved = turned_scores - scores
    assert torch.allclose(moved, moved[..., :1].expand_as(moved), atol=1e-4)
    assert torch.allclose(turned_output, output, atol=1e-4)


def test_listening_changes_nothing(tiny_dense_folder: Path) -> None:
    model, other = converted(tiny_dense_folder), converted(tiny_dense_folder)
    heard = listen(model, load_teacher(model), text(3, 16), 0)
    for name, x in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(len(layer.gradients) == 3 * 16 for layers in heard for layer in layers)
    assert all(bool((layer.gradients != 0).any()) for layers in heard for layer in layers)


@pytest.mark.parametrize(
    ("kind", "coding", "digits"),
    [
        ("ttfs", "phase", "binary"),
        ("ttfs", "phase", "signed"),
        ("ttfs", "rate", "binary"),
        ("linear", "rate", "binary"),
    ],
)
def test_a_higher_price_costs_less_and_a_budget_is_met(
    tiny_dense_folder: Path, kind: str, coding: Coding, digits: Digits
) -> None:
    model = converted(tiny_dense_folder, coding, kind=kind, digits=digits)
    tokens = text(4, 16)
    before, teacher = cost_of(model, tokens), load_teacher(model)
    heard = listen(model, teacher, tokens, 0)
    turn(model, heard)
    spread, shares = Spread(model, heard, before, 16), []
    for price in (1e-3, 1e-2, 1e-1, 1.0):
        spread.at(price)
        shares.append(float(share_of(cost_of(model, tokens), before)))
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0]
    fresh = converted(tiny_dense_folder, coding, kind=kind, digits=digits)
    spare(fresh, teacher, tokens, before, 0.6, 0)
    assert 0.55 < float(share_of(cost_of(fresh, tokens), before)) <= 0.6


def test_what_matters_more_has_finer_steps(tiny_dense_folder: Path) -> None:
    model, tokens = converted(tiny_dense_folder), text(4, 16)
    heard = listen(model, load_teacher(model), tokens, 0)
    hidden = heard[0][3]
    hidden.gradients[:, 0], hidden.gradients[:, 1] = 1.0, -0.1
    spread = Spread(model, heard, cost_of(model, tokens), 16)
    for fitted in spread.fitted[0]:
        fitted.fill_(1e-3)
    price = 3e-9 / spread.each(hidden)
    spread.at(price)
    fine, coarse = (hidden.neuron.threshold[:2] / hidden.neuron.most).tolist()
    # noise of a step s costs fisher * s^2 / 24, and half a digit less saves spikes at that price
    assert fine**2 / 12 == pytest.approx(3e-9 / (2 * math.log(2)), rel=1e-3)
    assert coarse == pytest.approx(10 * fine, rel=1e-3)


def test_channels_that_are_left_out_are_silent_whatever_comes(tiny_dense_folder: Path) -> None:
    attention = converted(tiny_dense_folder).blocks[0].attn
    keys, values = (torch.arange(attention.rows[1]) % every == 0 for every in (3, 4))
    merged: list[Tensor] = []
    attention.merged.register_forward_hook(lambda module, args, counts: merged.append(counts))
    assert attention.left_out == (0, 0, 0, 0)
    attention.leave_out_keys(keys)
    attention.leave_out_values(values)
    assert attention.left_out == (*2 * [int(keys.sum())], *2 * [int(values.sum())])
    x = torch.randn(1, 10, attention.rows[0]) * 10
    membranes = attention.membranes(attention.encode(x), False, None)
    for membrane, channels in zip(membranes, (keys, keys, values), strict=True):
        assert torch.equal((membrane == 0).all(1)[0], channels)
    attention(x)
    assert torch.equal((merged[-1] == 0).all(1)[0], values)
    assert attention.first_key is not None and attention.first_value is not None
    assert torch.equal(attention.first_key == 0, keys)
    assert torch.equal(attention.first_value == 0, values)


def test_leaving_out_what_says_nothing_changes_nothing(tiny_dense_folder: Path) -> None:
    model, tokens = converted(tiny_dense_folder), text(2, 16)
    for block in model.blocks:
        attention = block.attn
        nothing = torch.arange(attention.rows[1]) % 4 == 0
        with torch.no_grad():  # queries of 0, and values that the output does not read
            for x in (attention.c_attn.weight, attention.c_attn.bias):
                x[: attention.rows[0]][nothing] = 0.0
            attention.c_proj.weight[:, nothing] = 0.0
    before = model(tokens).logits
    for block in model.blocks:
        attention = block.attn
        nothing = torch.arange(attention.rows[1]) % 4 == 0
        attention.leave_out_keys(nothing)
        attention.leave_out_values(nothing)
    assert torch.equal(model(tokens).logits, before)


def test_products_of_spikes_are_worth_no_more_than_the_core_can_tell() -> None:
    attention = RaceAttention(Sizes(1, 8, 2, 2, 16, 32, 16), Code(5, "phase"))
    power = torch.ones(8)
    with torch.no_grad():
        attention.query.threshold.copy_(torch.tensor([1.0, 1, 1, 9, 1, 1, 1, 1]))
    attention.even_gains(power)
    usual = (1 + 1 + 1 + 9) / 4
    worth = (attention.query.threshold * attention.key.threshold).tolist()
    assert worth == pytest.approx([1, 1, 1, GAIN_SPAN * usual, 1, 1, 1, 1])
    assert attention.query.threshold[3] == 9


def test_the_price_follows_what_is_spent() -> None:
    assert next_price(Step(1, "distil", 0.1, share=0.6, price=0.2), 0.5) > 0.2
    assert next_price(Step(1, "distil", 0.1, share=0.5, price=0.2), 0.5) == pytest.approx(0.2)
    assert next_price(Step(1, "distil", 0.1, share=0.4, price=0.2), 0.5) < 0.2


def trained(
    dense: Path,
    budget: float | None,
    prepare: Callable[[SpikingGPT2LMHeadModel], None] = lambda model: None,
    **options: Any,
) -> tuple[Any, list[Step]]:
    model = converted(dense)
    prepare(model)
    recipe: Finetune = load_recipe(attention="ttfs").finetune.changed(
        steps=STEPS, batch=2, distil_rate=0.003, spikes_budget=budget
    )
    settings = {"checkpoint": None, "resume": False, "on_step": lambda step: None, **options}
    steps = finetune(
        model, load_teacher(model), text(16, 16), recipe, seed=0, device="cpu", **settings
    )
    return model, steps


def test_what_was_left_out_stays_out(tiny_dense_folder: Path) -> None:
    def thin(model: SpikingGPT2LMHeadModel) -> None:
        for attention in (block.attn for block in model.blocks):
            attention.leave_out_keys(torch.arange(attention.rows[1]) % 3 == 0)
            attention.leave_out_values(torch.arange(attention.rows[2]) % 4 == 0)

    then = converted(tiny_dense_folder)
    thin(then)
    now, _ = trained(tiny_dense_folder, None, thin)
    for before, after in zip(then.blocks, now.blocks, strict=True):
        assert not torch.equal(before.attn.c_attn.weight, after.attn.c_attn.weight)
        assert before.attn.left_out == after.attn.left_out != (0, 0, 0, 0)


def test_a_budget_is_kept_from_the_first_step_to_the_last(tiny_dense_folder: Path) -> None:
    free, bound = (trained(tiny_dense_folder, budget)[1] for budget in (None, 0.6))
    assert {(step.share, step.price) for step in free} == {(0.0, 0.0)}
    assert all(0.5 < step.share < 0.66 for step in bound)
    assert bound[0].loss > free[0].loss
    assert len({step.price for step in bound}) > 1


def test_the_penalty_pulls_at_the_spikes(tiny_dense_folder: Path, monkeypatch: Any) -> None:
    """The same start, and a price that is 0 or far too high."""

    def last_share(price: float) -> float:
        monkeypatch.setattr(training, "next_price", lambda step, budget: price)
        return trained(tiny_dense_folder, 0.6)[1][-1].share

    assert last_share(100.0) < last_share(0.0)


class Stopped(Exception):
    pass


def test_a_training_with_a_budget_goes_on_where_it_stopped(
    tiny_dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", STEPS // 2)
    whole, steps = trained(tiny_dense_folder, 0.6)

    def stop(step: Step) -> None:
        if step.number == STEPS // 2 + 1:
            raise Stopped

    with pytest.raises(Stopped):
        trained(tiny_dense_folder, 0.6, checkpoint=tmp_path / "checkpoint", on_step=stop)
    kept = load_file(tmp_path / "checkpoint" / "checkpoint.safetensors")
    assert "model.transformer.h.0.attn.merged.center" in kept
    resumed, again = trained(
        tiny_dense_folder, 0.6, checkpoint=tmp_path / "checkpoint", resume=True
    )
    assert again == steps
    for name, x in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], x), name


@pytest.mark.parametrize("budget", ["0", "1.5", "-1", "half"])
def test_a_budget_that_is_none_is_refused(neurtx: Any, tiny_run: Path, budget: str) -> None:
    assert (
        "--spikes-budget" in neurtx("finetune", str(tiny_run), "--spikes-budget", budget).mistake()
    )


def test_heads_that_share_keys_and_rotary_positions_save_spikes_too(
    tiny_llama_folder: Path,
) -> None:
    tokens = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    model = convert(
        load_dense(str(tiny_llama_folder))[0], tokens, 5, str(tiny_llama_folder), coding="phase",
        attention="ttfs", first_token=0,
    )  # fmt: skip
    attention = model.blocks[0].attn
    assert attention.shared > 1

    def through_each_head() -> Tensor:
        values = attention.c_attn.weight[-attention.rows[2] :].unflatten(
            0, (attention.kv_heads, -1)
        )
        out = attention.c_proj.weight.unflatten(1, (attention.kv_heads, attention.shared, -1))
        return torch.einsum("ohsd,hdi->hsoi", out, values).detach()

    before, weights, state = cost_of(model, tokens), through_each_head(), model.state_dict()
    state = {name: x.clone() for name, x in state.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RaceAttention, "leave_out_values", lambda attention, channels: None)
        spare(model, load_teacher(model), tokens, before, 0.6, 0)
    assert 0.5 < float(share_of(cost_of(model, tokens), before)) <= 0.6
    assert torch.allclose(through_each_head(), weights, atol=1e-5)
    model.load_state_dict(state)
    spare(model, load_teacher(model), tokens, before, 0.6, 0)
    assert 0.5 < float(share_of(cost_of(model, tokens), before)) <= 0.6
    query, key, value, merged = attention.left_out
    assert query == key == 0  # rotary positions turn their channels in pairs
    assert merged == attention.shared * value > 0
