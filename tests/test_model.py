"""The spiking model as a whole: steps equal counts, generation, training, resuming."""

import copy
import errno
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.measure.position import doubled, loss_by_position
from neurtransformer.measure.quality import SpikeCounter, counting_spikes, evaluate
from neurtransformer.recipe import Coding, load_recipe
from neurtransformer.spiking.attention.linear import LinearAttention, fit_forgetting
from neurtransformer.spiking.calibrate import fit_threshold
from neurtransformer.spiking.config import SpikingGPT2Config
from neurtransformer.spiking.convert import carry_over, convert
from neurtransformer.spiking.finetune import Step, batch_at, finetune
from neurtransformer.spiking.load import load_run, load_teacher
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel


def tokens(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 4096, (count, length), generator=torch.Generator().manual_seed(seed))


CODES = [(1, "rate"), (4, "rate"), (7, "rate"), (1, "phase"), (8, "phase")]


@pytest.mark.parametrize(
    ("attention", "timesteps", "coding"),
    [(kind, *code) for kind in ("linear", "ttfs") for code in CODES],
)
def test_steps_equal_counts_neuron_for_neuron(
    tiny_dense_folder: Path, attention: str, timesteps: int, coding: Coding
) -> None:
    dense, _ = load_dense(str(tiny_dense_folder))
    model = convert(dense, tokens(2, 32), timesteps, "tiny", coding=coding, attention=attention)
    x = tokens(2, 16, seed=1)
    with torch.no_grad():
        with counting_spikes(model) as by_counts:
            counts = model(x)
        model.steps = True
        with counting_spikes(model) as by_steps:
            steps = model(x)
    assert len(by_counts.spikes) == 2 * 7
    for name, spikes in by_counts.spikes.items():
        assert torch.equal(spikes, by_steps.spikes[name]), name
    assert torch.equal(counts.logits, steps.logits)


def test_run_loads_with_auto_class_and_generates(either_run: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(either_run)
    x = tokens(1, 5)
    cached = model.generate(x, max_new_tokens=8, do_sample=False, use_cache=True)
    plain = model.generate(x, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), x], 1)
    mask = (torch.arange(8) >= 3).long().unsqueeze(0)
    left = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(left[:, 8:], cached[:, 5:])


def test_evaluating_a_model_against_itself(tiny_run: Path) -> None:
    model, _ = load_run(tiny_run)
    dense = load_teacher(model)
    with counting_spikes(model) as counter:
        values = evaluate(model, dense, tokens(2, 32), counter)
    assert values["tokens"] == 64
    assert 0 < values["mean_spike_rate"] < 1
    spikes = {  # of each layer, per token
        name: 4 * rate * model.get_submodule(f"transformer.h.{name}").threshold.numel()
        for name, rate in values["spike_rate_by_layer"].items()
    }
    assert values["spikes_per_token"] == pytest.approx(sum(spikes.values()))
    with counting_spikes(model) as counter:
        same = evaluate(model, _as_dense(model), tokens(2, 32), counter)
    assert same["ppl_ratio"] == 1 and same["token_agreement"] == 1
    assert same["cosine_similarity"] == pytest.approx(1)


def _as_dense(model: Any) -> Any:
    """The spiking model with the one output that `evaluate` asks of a dense one."""

    def forward(chunk: Tensor, output_hidden_states: bool, use_cache: bool) -> Any:
        output = model(chunk)
        output.hidden_states = (output.last_hidden_state,)
        return output

    return forward


def test_evaluating_by_hand(either_run: Path) -> None:
    """Against another model than itself, token by token in float64."""
    model, _ = load_run(either_run)
    dense, text = load_teacher(model), tokens(3, 20)
    with torch.no_grad():
        dense.transformer.wte.weight.mul_(3)
    with counting_spikes(model) as counter:
        values = evaluate(model, dense, text, counter, batch=2)
    with torch.no_grad():
        ours, theirs = model(text), dense(text)
        hidden = dense.transformer(text)[0].double(), ours.last_hidden_state.double()
    logits = theirs.logits.double(), ours.logits.double()
    ppl = []
    for x in logits:
        shares = x.softmax(-1)
        right = [shares[i, j, text[i, j + 1]] for i in range(3) for j in range(19)]
        ppl.append(math.exp(-sum(math.log(p) for p in right) / len(right)))
    assert [values["ppl_dense"], values["ppl_spiking"]] == pytest.approx(ppl, rel=1e-4)
    assert values["ppl_ratio"] == pytest.approx(ppl[1] / ppl[0], rel=1e-4) and ppl[1] != ppl[0]
    for name, (a, b) in (("cosine_similarity", hidden), ("cosine_similarity_logits", logits)):
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        assert values[name] == pytest.approx(float(cosine.mean()), abs=1e-5)
    agreed = [
        int(a.argmax()) == int(b.argmax()) for a, b in zip(*map(_tokens, logits), strict=True)
    ]
    assert values["token_agreement"] == pytest.approx(sum(agreed) / 60) and 0 < sum(agreed) < 60
    # the query, key and value neurons of a race are as many as GPT-2's channels
    qkv = 5 * 64 if model.config.attention == "linear" else 3 * 64
    neurons = 2 * (64 + qkv + 64 + 64 + 256)
    coded = values["spikes_per_token"]
    for block, events in enumerate(counter.events):
        coded -= events.get("race", 0) / counter.tokens[f"{block}.attn.key"]
    assert values["mean_spike_count"] == pytest.approx(coded / neurons)
    assert values["mean_spike_rate"] == pytest.approx(coded / neurons / 4)


def test_each_layer_has_its_own_time_steps() -> None:
    counter = SpikeCounter()
    counter.spikes = {"a": torch.tensor([10.0, 20.0, 30.0]), "b": torch.tensor([40.0])}
    counter.tokens, counter.timesteps = {"a": 10, "b": 10}, {"a": 5, "b": 8}
    assert counter.mean_count() == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert counter.mean_rate() == pytest.approx((1 / 5 + 2 / 5 + 3 / 5 + 4 / 8) / 4)


def _tokens(x: Tensor) -> list[Tensor]:
    return list(x.flatten(0, 1))


def test_joined_blocks_are_a_quarter_of_the_text() -> None:
    text = torch.arange(18 * 4).view(18, 4)
    assert torch.equal(doubled(text), torch.arange(16).view(2, 8))
    assert torch.equal(doubled(text[:3]), torch.arange(8).view(1, 8))
    assert torch.equal(doubled(text[:1]), text[:1])


def test_loss_by_position(either_run: Path) -> None:
    model, _ = load_run(either_run)
    dense = load_teacher(model)
    # without a cache transformers would look for several texts in a row of positions
    dense.config.use_cache = False
    text = tokens(5, 127)  # the context is 64
    near, far = loss_by_position(model, dense, text, 2)
    assert (near["position"], far["position"]) == (31, 94)
    within = _losses(model, dense, text[:, :64])
    assert within == pytest.approx({name: near[name] for name in within}, abs=1e-5)
    whole = _losses(_with_positions(model, 127), _with_positions(dense, 127), text)
    assert whole == pytest.approx({name: (near[name] + far[name]) / 2 for name in whole}, abs=1e-5)
    # both still hear in the second half what was said in the first
    other = torch.cat([tokens(5, 63, seed=1), text[:, 63:]], 1)
    elsewhere = loss_by_position(model, dense, other, 2)[1]
    assert far["spiking"] != elsewhere["spiking"] and far["dense"] != elsewhere["dense"]


def _losses(model: Any, dense: Any, blocks: Tensor) -> dict[str, float]:
    with counting_spikes(model) as counter:
        values = evaluate(model, dense, blocks, counter)
    return {name: math.log(values[f"ppl_{name}"]) for name in ("dense", "spiking")}


def _with_positions(model: Any, count: int) -> Any:
    """A copy with so many positions, the new ones embedded as the last of the old."""
    model = copy.deepcopy(model)
    old = model.get_submodule("transformer.wpe").weight
    model.get_submodule("transformer.wpe").weight = torch.nn.Parameter(
        torch.cat([old, old[-1:].expand(count - len(old), -1)])
    )
    model.config.n_positions = count
    return model


def test_calibration_finds_what_it_should() -> None:
    x = torch.randn(4000, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 2.0, -1.0])
    threshold, center = fit_threshold(x, [x.mean(0)], 8, signed=True)
    assert torch.allclose(center, x.mean(0))
    assert torch.allclose(threshold / x.std(0), torch.full((3,), 2.9), atol=0.6)
    previous = torch.eye(40).roll(1, 0).tril(-1).expand(1, 1, 40, 40)
    everything = (torch.ones(40, 40).tril() / torch.arange(1, 41)[:, None]).expand(1, 1, 40, 40)
    shift, present = fit_forgetting(torch.cat([previous, everything], 1))
    assert shift.tolist() == [0, 24] and present.tolist() == [0.0, 1.0]


def test_queries_and_keys_begin_as_mirrored_pairs(tiny_dense_folder: Path) -> None:
    """Head by head: [W; -W] of what GPT-2's Conv1D holds as columns; values as they were."""
    dense, _ = load_dense(str(tiny_dense_folder))
    model = SpikingGPT2LMHeadModel(SpikingGPT2Config(**_sizes(dense), timesteps=4))
    carry_over(model, dense)
    ours, theirs = model.blocks[1].attn.c_attn, dense.transformer.h[1].attn.c_attn
    for rows, columns in ((ours.weight, theirs.weight.T), (ours.bias, theirs.bias)):
        assert len(rows) == 5 * 64
        for part in range(2):  # query, key
            for head in range(2):
                pair = rows[128 * part + 64 * head :][:64]
                pretrained = columns[64 * part + 32 * head :][:32]
                assert torch.equal(pair[:32], pretrained) and torch.equal(pair[32:], -pretrained)
        assert torch.equal(rows[256:], columns[128:])


def _sizes(dense: Any) -> dict[str, int]:
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return {name: getattr(dense.config, name) for name in names}


def test_thresholds_of_what_is_squared_leave_room_for_peaks(
    tiny_dense_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, _ = load_dense(str(tiny_dense_folder))
    roomy = convert(dense, tokens(1, 32), 4, "tiny").blocks[0].attn
    monkeypatch.setattr(LinearAttention, "rooms", {})
    tight = convert(dense, tokens(1, 32), 4, "tiny").blocks[0].attn
    assert torch.allclose(roomy.query.threshold, 1.3 * tight.query.threshold)
    assert torch.allclose(roomy.key.threshold, 1.3 * tight.key.threshold)
    assert torch.equal(roomy.value.threshold, tight.value.threshold)


def test_each_sign_of_a_pretrained_channel_has_its_neuron(tiny_run: Path) -> None:
    """Of a mirrored pair exactly one fires, and both do over a text."""
    model, _ = load_run(tiny_run)
    attention = model.blocks[0].attn
    with torch.no_grad():
        _, key, _ = attention.code(torch.randn(1, 200, 64))
    positive, negative = key.chunk(2, dim=-1)
    assert not (positive * negative).any()
    assert positive.any() and negative.any()


@pytest.mark.parametrize("train", ["ssa", "blocks"])
def test_finetuning_lowers_the_loss_and_leaves_the_rest_frozen(
    either_run: Path, train: str
) -> None:
    model, _ = load_run(either_run)
    dense = load_teacher(model)
    kind = model.config.attention
    # a race is near the dense attention as it is, where large steps only lead away
    rate = {"linear": 0.01, "ttfs": 0.001}[kind]
    recipe = load_recipe(attention=kind).finetune.changed(
        steps=16, batch=4, match_share=0.5, train=train, match_rate=rate, distil_rate=0.0003
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    history = finetune(
        model, dense, tokens(4, 24), recipe, seed=0, device="cpu", checkpoint=None,
        resume=False, on_step=lambda step: None,
    )  # fmt: skip
    match, distil = ([s.loss for s in history if s.stage == t] for t in ("match", "distil"))
    assert match[-1] < match[0] and distil[-1] < distil[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    if train == "ssa":
        assert changed and all(".attn." in n or n.endswith("threshold") for n in changed)
    else:
        assert {"mlp.c_fc.weight", "ln_2.bias"} <= {name.split(".", 3)[-1] for name in changed}
        assert all(name.startswith("transformer.h.") for name in changed)


def test_resumed_training_ends_as_the_uninterrupted(
    either_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurtransformer.spiking.finetune.CHECKPOINT_EVERY", 2)
    kind = load_run(either_run)[0].config.attention
    recipe = load_recipe(attention=kind).finetune.changed(steps=9, batch=2)
    assert recipe.match_share == {"linear": 0.5, "ttfs": 0.0}[kind]
    text = tokens(6, 16)

    def train(folder: Path, resume: bool, stop_after: int | None) -> Any:
        model, _ = load_run(either_run)

        def on_step(step: Step) -> None:
            if step.number == stop_after:
                raise KeyboardInterrupt

        try:
            finetune(
                model, load_teacher(model), text, recipe, seed=3, device="cpu",
                checkpoint=folder, resume=resume, on_step=on_step,
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return model

    whole = train(tmp_path / "a", False, None)
    for stop in (3, 7):
        train(tmp_path / "b", stop > 3, stop)
    resumed = train(tmp_path / "b", True, None)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    other = recipe.changed(batch=1)
    model, _ = load_run(either_run)
    with pytest.raises(UserError, match="other settings"):
        finetune(
            model, load_teacher(model), text, other, seed=3, device="cpu",
            checkpoint=tmp_path / "b", resume=True, on_step=lambda step: None,
        )  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), SafetensorError("os error 28"), UserError("a file is there")],
)
def test_a_checkpoint_that_cannot_be_written_ends_no_training(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("neurtransformer.spiking.finetune.CHECKPOINT_EVERY", 1)
    monkeypatch.setattr("neurtransformer.spiking.finetune.write_checkpoint", fail)
    warned: list[Any] = []
    monkeypatch.setattr(
        "neurtransformer.spiking.finetune.log.warning", lambda *words: warned.append(words)
    )
    recipe = load_recipe(attention="linear").finetune.changed(steps=2, batch=2, match_share=0.5)
    model, _ = load_run(tiny_run)
    history = finetune(
        model, load_teacher(model), tokens(2, 16), recipe, seed=3, device="cpu",
        checkpoint=tmp_path / "c", resume=False, on_step=lambda step: None,
    )  # fmt: skip
    assert len(history) == len(warned) == 2


def test_every_pass_sees_every_block_once() -> None:
    blocks = torch.arange(10).unsqueeze(1)
    seen = torch.cat([batch_at(step, blocks, 2, seed=1) for step in range(5)])
    assert sorted(seen.flatten().tolist()) == list(range(10))
    assert not torch.equal(seen[:2], batch_at(5, blocks, 2, seed=1))


def _as_before_wide_keys(path: Path) -> None:
    """As runs were when a head had as many queries and keys as values."""
    tensors = load_file(path)
    for name, x in tensors.items():
        if ".c_attn." in name:
            tensors[name] = x[: 3 * 64].clone()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 100), "does not load"),
        (lambda run: (run / "model.safetensors").unlink(), "missing"),
        (lambda run: _as_before_wide_keys(run / "model.safetensors"), "does not (load|fit)"),
        (lambda run: (run / "config.json").write_text("{"), "JSON"),
        (lambda run: (run / "config.json").write_text('{"model_type": "bert"}'), "bert"),
    ],
)
def test_damaged_run_is_one_clear_line(
    tiny_run: Path, copy_of: Any, spoil: Any, message: str
) -> None:
    run = copy_of(tiny_run)
    spoil(run)
    with pytest.raises(UserError, match=message) as error:
        load_run(run)
    assert "\n" not in str(error.value)
