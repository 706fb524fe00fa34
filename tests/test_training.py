"""Fine-tuning against the same spelled out: losses, rates, stages, what is trained and on what."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.recipe import Finetune, load_recipe
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking import finetune as training
from neurtransformer.spiking.calibrate import tapped
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.finetune import Distiller, finetune, rate_at, trainable, training_text
from neurtransformer.spiking.load import load_run, load_teacher
from neurtransformer.text import load_blocks, write_text

RECIPE = load_recipe(attention="linear").finetune.changed(
    steps=5,
    batch=2,
    match_share=0.4,
    match_rate=0.01,
    distil_rate=0.002,
    threshold_share=3.0,
    rest_share=0.3,
    train="blocks",
)


def tokens(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 4096, (count, length), generator=torch.Generator().manual_seed(seed))


def trained_run(run: Path, recipe: Finetune, **options: Any) -> tuple[Any, list[training.Step]]:
    model, _ = load_run(run)
    settings = {"seed": 3, "checkpoint": None, "resume": False, **options}
    blocks = settings.pop("blocks", tokens(6, 12))
    steps = finetune(
        model, load_teacher(model), blocks, recipe, device="cpu", on_step=lambda _: None, **settings
    )
    return model, steps


def test_both_losses_are_what_they_are_called(either_run: Path) -> None:
    model, _ = load_run(either_run)
    teacher, text = load_teacher(model), tokens(2, 12)
    teacher.transformer.wte.weight.data.mul_(4)  # so that either direction is another number
    model.train()
    distiller = Distiller(model, teacher)
    with torch.no_grad():
        ours, theirs = (net(text).logits.double().softmax(-1) for net in (model, teacher))
        divergence = (theirs * (theirs / ours).log()).sum(-1).mean()
        assert float(distiller(text, "distil")[0]) == pytest.approx(float(divergence), rel=1e-3)
        with tapped(teacher) as taps:
            teacher(text)
        shares = []
        for block, tap in zip(model.blocks, taps, strict=True):
            error = block.attn(tap["attn_in"])[0] - tap["attn_out"]
            shares.append(error.square().mean() / tap["attn_out"].var())
        expected = sum(map(float, shares)) / len(shares)
        assert float(distiller(text, "match")[0]) == pytest.approx(expected, rel=1e-4)


def test_an_attention_without_any_output_can_be_matched(tiny_dense_folder: Path) -> None:
    """As of a block that was pruned, or of a model that was hardly trained."""
    dense, _ = load_dense(str(tiny_dense_folder))
    dense.transformer.h[0].attn.c_proj.weight.data.zero_()
    model = convert(dense, tokens(2, 32), 4, "here", attention="linear").train()
    loss, _ = Distiller(model, dense)(tokens(2, 12), "match")
    loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found and all(torch.isfinite(x).all() for x in (loss, *found))


def test_the_rate_warms_up_and_runs_out() -> None:
    assert [rate_at(step, 100, 2.0) for step in (0, 4, 9, 50, 99)] == pytest.approx(
        [2 * 0.1, 2 * 0.5 * 0.96, 2 * 0.91, 2 * 0.5, 2 * 0.01]
    )


def test_thresholds_take_larger_steps_and_what_is_no_attention_smaller_ones(tiny_run: Path) -> None:
    model, _ = load_run(tiny_run)
    names = {id(p): name.split(".", 3)[-1] for name, p in model.named_parameters()}

    def scales(train: str) -> dict[str, float]:
        groups = trainable(model, RECIPE.changed(train=train))
        found = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
        marked = {names[id(p)] for p in model.parameters() if p.requires_grad}
        assert found.keys() == marked
        return found

    populations = "attn.encode", "attn.query", "attn.key", "attn.value", "attn.merged"
    thresholds = {f"{n}.threshold": 3.0 for n in (*populations, "mlp.encode", "mlp.hidden")}
    linear = {f"attn.{n}.{part}": 1.0 for n in ("c_attn", "c_proj") for part in ("weight", "bias")}
    rest = [f"{n}.{part}" for n in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for part in PARTS]
    assert scales("ssa") == thresholds | linear
    assert scales("blocks") == thresholds | linear | dict.fromkeys(rest, 0.3)


PARTS = ("weight", "bias")


def test_a_training_is_the_one_written_out(either_run: Path) -> None:
    """AdamW with a state of its own for each stage, gradients of one step alone, and clipped."""
    model, steps = trained_run(either_run, RECIPE)
    other, _ = load_run(either_run)
    distiller = Distiller(other, load_teacher(other))
    groups = trainable(other, RECIPE)
    params = [(p, group["scale"]) for group in groups for p in group["params"]]
    before = [p.detach().clone() for p, _ in params]
    other.train()
    losses = []
    # 2 of 5 steps match
    for stage, first, count, peak, most in (
        ("match", 0, 2, 0.01, 5.0),
        ("distil", 2, 3, 0.002, 1.0),
    ):
        means = [torch.zeros_like(p) for p, _ in params]
        squares = [torch.zeros_like(p) for p, _ in params]
        seen = [0] * len(params)
        for step in range(count):
            batch = training.batch_at(first + step, tokens(6, 12), 2, 3)
            with training.bfloat16_products():
                loss, _ = distiller(batch, stage)
                grads = torch.autograd.grad(loss, [p for p, _ in params], allow_unused=True)
            losses.append((stage, float(loss.detach())))
            norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
            clip = min(1.0, most / (float(norm) + 1e-6))
            rate = peak * min(1, (step + 1) / 10) * (1 - step / count)
            for i, ((p, scale), gradient) in enumerate(zip(params, grads, strict=True)):
                if gradient is None:
                    continue
                seen[i] += 1
                means[i] = 0.9 * means[i] + 0.1 * clip * gradient
                squares[i] = 0.95 * squares[i] + 0.05 * (clip * gradient) ** 2
                mean = means[i] / (1 - 0.9 ** seen[i])
                square = squares[i] / (1 - 0.95 ** seen[i])
                with torch.no_grad():
                    p -= scale * rate * mean / (square.sqrt() + 1e-8)
    assert [(s.number, s.stage) for s in steps] == [
        (i + 1, stage) for i, (stage, _) in enumerate(losses)
    ]
    assert [s.loss for s in steps] == pytest.approx([loss for _, loss in losses], rel=1e-3)
    ours = dict(model.named_parameters())
    for name, p in other.named_parameters():
        # the sign of a gradient of next to nothing is noise, and Adam's first step takes it whole
        far = (ours[name] - p).abs() > 1e-5
        assert far.float().mean() < 0.02, name
    moved = [
        float((p.detach() - was).abs().max()) for (p, _), was in zip(params, before, strict=True)
    ]
    assert min(moved) > 1e-4
    assert not model.training and not any(p.requires_grad for p in ours.values())


@pytest.mark.parametrize("other", [{"seed": 4}, {"blocks": tokens(6, 12, seed=1)}])
def test_a_checkpoint_of_another_seed_or_text_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    folder = tmp_path / "checkpoint"
    trained_run(tiny_run, RECIPE.changed(steps=1), checkpoint=folder)
    with pytest.raises(UserError, match="other settings"):
        trained_run(tiny_run, RECIPE.changed(steps=1), checkpoint=folder, resume=True, **other)


def test_a_checkpoint_from_before_batches_added_up_goes_on(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    folder = tmp_path / "checkpoint"
    trained_run(tiny_run, RECIPE.changed(steps=1), checkpoint=folder)
    report = read_json(folder / "report.json")
    for key in ("accumulate", "gradient_checkpointing"):
        del report["plan"]["recipe"][key]
    write_json(folder / "report.json", report)
    _, steps = trained_run(tiny_run, RECIPE.changed(steps=1), checkpoint=folder, resume=True)
    assert len(steps) == 1
    with pytest.raises(UserError, match="other settings"):
        recipe = RECIPE.changed(steps=1, accumulate=2)
        trained_run(tiny_run, recipe, checkpoint=folder, resume=True)


def test_each_stage_has_moments_of_its_own(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    trained_run(tiny_run, RECIPE, checkpoint=tmp_path / "checkpoint")
    tensors = load_file(tmp_path / "checkpoint" / "checkpoint.safetensors")
    assert {int(x) for name, x in tensors.items() if name.endswith(".step")} == {3}


def test_a_loss_that_is_none_ends_the_training(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = lambda self, tokens, stage: (self.distil(tokens) * math.nan, torch.zeros(()))  # noqa: E731
    monkeypatch.setattr(Distiller, "forward", spoilt)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        trained_run(tiny_run, RECIPE)


def test_gradients_of_several_batches_add_up_to_those_of_one(tiny_run: Path) -> None:
    # what matching is relative to is the variance of each batch
    recipe = RECIPE.changed(match_share=0)
    whole, parts = (
        trained_run(tiny_run, recipe.changed(batch=batch, accumulate=times))
        for batch, times in ((4, 1), (2, 2))
    )
    assert [s.loss for s in parts[1]] == pytest.approx([s.loss for s in whole[1]], rel=1e-3)
    ours = dict(parts[0].named_parameters())
    for name, p in whole[0].named_parameters():
        # as above: noise has a sign
        assert ((ours[name] - p).abs() > 1e-5).float().mean() < 0.02, name


def test_what_is_computed_anew_for_the_gradients_is_the_same(tiny_run: Path) -> None:
    kept: list[int] = []
    runs = []
    for anew in (False, True):
        count = 0

        def pack(x: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += x.numel()
            return x

        recipe = RECIPE.changed(match_share=0, gradient_checkpointing=anew)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            runs.append(trained_run(tiny_run, recipe))
        kept.append(count)
    assert [s.loss for s in runs[0][1]] == [s.loss for s in runs[1][1]]
    for a, b in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert not runs[1][0].is_activation_checkpointing
    assert kept[0] != kept[1]  # else there was no difference to be seen
    with pytest.raises(UserError, match="do not go together"):
        RECIPE.changed(gradient_checkpointing=True, spikes_budget=0.5)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(0, 20))
def test_batches_of_any_size_are_cut_from_one_order(
    n: int, batch: int, parts: int, at: int
) -> None:
    blocks = torch.arange(n)[:, None]
    cut = [training.batch_at(at * parts + part, blocks, batch, 5) for part in range(parts)]
    assert torch.equal(torch.cat(cut), training.batch_at(at, blocks, batch * parts, 5))
    passes = torch.cat([training.batch_at(number, blocks, 1, 5) for number in range(2 * n)])
    for once in passes.split(n):
        assert sorted(once.flatten().tolist()) == list(range(n))


def test_seeds_shuffle_differently() -> None:
    blocks = torch.arange(40).unsqueeze(1)
    orders = [
        torch.cat([training.batch_at(step, blocks, 4, seed) for step in range(10)]).flatten()
        for seed in (0, 1)
    ]
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert not torch.equal(*orders) and orders[0].tolist() != list(range(40))


def test_as_much_text_is_trained_on_as_steps_need(
    tiny_run: Path, nano_tokenizer: Any, tmp_path: Path
) -> None:
    """And what the teacher wrote itself beside CPython's text, but not beside the user's."""
    teacher = load_teacher(load_run(tiny_run)[0])
    recipe = RECIPE.changed(steps=3, batch=2, block=16, self_written=2)
    blocks = training_text(teacher, nano_tokenizer, None, recipe, 7, processes=2)
    # 3 steps of 2 blocks in 2 processes, and 2 blocks of the teacher's
    assert blocks.shape == (12 + 2, 16)
    own = load_blocks(None, nano_tokenizer, 16, split="train", limit_tokens=12 * 16)
    assert torch.equal(blocks[:12], own)
    assert torch.equal(blocks[12:], write_text(teacher, 2, 16, 7))
    assert not torch.equal(blocks[12:], write_text(teacher, 2, 16, 8))
    text = tmp_path / "text"
    text.write_text("some words and more " * 200)
    alone = training_text(teacher, nano_tokenizer, str(text), recipe.changed(block=999), 7)
    assert alone.shape == (6, 64)  # the teacher has no more positions
