"""The integer network against a spiking one that says something: gpt2-nano's, part by part."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from fuzzing import CONFIG
from neurtransformer.dense import load_dense
from neurtransformer.errors import UserError
from neurtransformer.integer import arithmetic, quantise
from neurtransformer.integer.arithmetic import LIMIT, LOGIT_BITS, NORM_SHIFTS, Integers
from neurtransformer.integer.config import FINAL_MOST, IntegerConfig
from neurtransformer.integer.layout import check, layout
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import Encoder
from neurtransformer.integer.quality import evaluate_integer
from neurtransformer.loihi.graph import networks
from neurtransformer.loihi.nodes import Spikes
from neurtransformer.recipe import Coding
from neurtransformer.runs import BUNDLED
from neurtransformer.spiking.convert import convert
from neurtransformer.spiking.load import load_run
from neurtransformer.spiking.model import SpikingGPT2LMHeadModel
from neurtransformer.spiking.neuron import CodingNeuron
from neurtransformer.text import load_blocks

Pair = tuple[SpikingGPT2LMHeadModel, IntegerGPT2, Tensor]


@pytest.fixture(scope="module", params=["rate", "phase"])
def nano(request: pytest.FixtureRequest, nano_tokenizer: Any) -> Pair:
    """The run that ships, or gpt2-nano just converted; its integers; some held-out text."""
    if request.param == "rate":
        model, _ = load_run(BUNDLED / "gpt2-nano-linear")
    else:
        dense, _ = load_dense("gpt2-nano")
        text = load_blocks(None, nano_tokenizer, 128, split="train", limit_tokens=512)
        model = convert(dense, text, 5, "gpt2-nano", coding="phase")
    ids = load_blocks(None, nano_tokenizer, 128, split="heldout", limit_tokens=256)
    return model, IntegerGPT2.from_spiking(model), ids


def off(ours: Any, exact: Tensor) -> float:
    """Root mean square of the error over that of the exact values."""
    found = torch.as_tensor(np.asarray(ours), dtype=torch.float32)
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@torch.no_grad()
def test_each_part_does_what_the_spiking_one_does(nano: Pair) -> None:
    """Fed with the spiking network's own stream. What it adds to the mean over channels, which
    nobody sees, is left out."""
    model, integer, ids = nano
    unit = 2.0**-integer.config.stream_bits

    def without_mean(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    def entering(x: Tensor) -> Integers:
        return (without_mean(x) / unit).round().long().numpy()

    def added(before: Integers, after: Integers) -> np.ndarray:
        return (after - before) * unit

    x = model.transformer["wte"](ids) + model.transformer["wpe"](torch.arange(ids.shape[1]))
    errors = {"embed": off(integer.embedding.counts(ids.numpy()) * unit, without_mean(x))}
    for i, block in enumerate(model.blocks):
        ours, stream = integer.attention[i], entering(x)
        names = "query", "key", "value"
        exact = block.attn.code(block.ln_1(x))
        for name, mine, other in zip(names, ours.heads_of(stream), exact, strict=True):
            errors[f"{i}.{name}"] = off(mine, other)
        update = block.attn(block.ln_1(x))[0]
        after = ours.counts(stream, ours.new_state(len(stream)))[0]
        errors[f"{i}.attn"] = off(added(stream, after), without_mean(update))
        x = x + update
        stream, update = entering(x), block.mlp(block.ln_2(x))
        after = integer.feedforward[i].counts(stream)
        errors[f"{i}.mlp"] = off(added(stream, after), without_mean(update))
        x = x + update
    logits = integer.head.counts(entering(x)) * 2.0**-LOGIT_BITS
    errors["head"] = off(logits, model.lm_head(model.transformer["ln_f"](x)))
    bounds = {"embed": 0.014, "head": 0.02, "attn": 0.1, "mlp": 0.085}
    wrong = {n for n, error in errors.items() if error > bounds.get(n.split(".")[-1], 0.12)}
    assert not wrong, errors


def test_all_of_it_costs_little(nano: Pair) -> None:
    model, integer, ids = nano
    values = evaluate_integer(integer, model, None, ids)
    assert 0.97 < values["ppl_ratio_to_spiking"] < 1.03
    assert values["tokens"] == 256 and "ppl_dense" not in values
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].log_softmax(-1)
    loss = -logits.gather(-1, ids[:, 1:, None]).mean()
    assert values["ppl_spiking"] == pytest.approx(float(loss.exp()), rel=1e-4)


# --- LayerNorm ---


@given(st.sampled_from([3, 64, 200]), st.integers(2, 20), st.floats(0.1, 10), st.integers(0, 99))
def test_a_small_stream_is_held_down_by_epsilon(n: int, bits: int, size: float, seed: int) -> None:
    x = np.rint(np.random.default_rng(seed).standard_normal((9, n)) * 2.0**bits).astype(np.int64)
    # as long as both together have 24 bits; beyond, the sum saturates
    epsilon = min(int(size * n * 4.0**bits), LIMIT // 2)
    total, exponent = arithmetic.sum_of_squares(x)
    assume((total + (epsilon >> (2 * exponent)) <= LIMIT).all())
    length = np.sqrt((x.astype(float) ** 2).sum(-1, keepdims=True) + epsilon)
    exact = x / np.maximum(length, 1) * 2.0**arithmetic.NORM_BITS
    y = arithmetic.normed(x, epsilon)
    assert (np.abs(y - exact) <= 0.02 * np.abs(exact) + 8).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 23), st.sampled_from([1, 30, 1600]))
def test_squares_are_added_up_as_finely_as_24_bits_allow(seed: int, bits: int, n: int) -> None:
    x = np.random.default_rng(seed).integers(-(2**bits), 2**bits + 1, (5, n)).clip(-LIMIT, LIMIT)
    q, exponent = arithmetic.sum_of_squares(x)
    for row, total, shift in zip(x.tolist(), q[:, 0], exponent[:, 0], strict=True):
        sums = {s: sum(((v + (1 << s >> 1)) >> s) ** 2 for v in row) for s in NORM_SHIFTS}
        first = next(s for s in NORM_SHIFTS if sums[s] <= LIMIT)
        assert (total, shift) == (sums[first], first)


def test_encoders_of_a_stream_as_small_as_epsilon() -> None:
    torch.manual_seed(0)
    width, bits = 48, 14
    norm, neuron = nn.LayerNorm(width), CodingNeuron(width, 8, signed=True, analogue=True).eval()
    config = IntegerConfig(
        layers=1, width=width, heads=1, hidden=width, vocabulary=9, positions=9, timesteps=8,
        coding="rate", epsilon=1e-5, stream_bits=bits,
    )  # fmt: skip
    with torch.no_grad():
        neuron.threshold.fill_(3)
        tensors, value = quantise.quantise_neurons(norm, neuron, config)
        encoder = Encoder.of({f"n.{k}": x for k, x in tensors.items()}, "n", config.code)
        x = torch.randn(60, width) * torch.logspace(-2.7, -1.5, 60)[:, None]
        x = x - x.mean(-1, keepdim=True)
        theirs = (neuron(norm(x)) * neuron.spike_value).numpy()
    ours = encoder.counts(np.rint(x.numpy() * 2.0**bits).astype(np.int64)) * value
    error = np.abs(ours - theirs) / neuron.spike_value.detach().numpy()
    assert error.max() <= 1.1 and (error > 0.1).mean() < 0.06


# --- ranges ---


@pytest.mark.parametrize(("coding", "most", "hidden"), [("rate", 4, 8), ("phase", 15, 15)])
def test_every_range_by_hand(coding: str, most: int, hidden: int) -> None:
    """So that `most` thresholds, and half of one beside a membrane, have 24 bits."""
    found = layout(CONFIG.model_copy(update={"coding": coding}))
    ranges = {name: (entry.low, entry.high) for name, entry in found.items()}
    for name in [name for name in ranges if name.endswith(".weight")]:
        assert ranges.pop(name) == (-254, 254)
    projections = "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"
    for name in (*projections, "embed.table", "head.lm_head"):
        assert ranges.pop(f"{name}.bias") == (-(2**23) + 1, 2**23 - 1)
    accumulators = "embed.stream", "h.0.attn.residual", "h.0.mlp.residual", "head.logits"
    for name in (*accumulators, "h.0.mlp.hidden"):
        assert ranges.pop(f"{name}.mantissa") == (4, 7)
        assert ranges.pop(f"{name}.shift") == (-24, 62)
    for name, count in (("h.0.attn", most), ("h.0.mlp", most), ("head", FINAL_MOST)):
        assert ranges.pop(f"{name}.norm.epsilon") == (0, 2**23 - 1)
        assert ranges.pop(f"{name}.encode.theta") == (1, (2**23 - 1) // count)
        assert ranges.pop(f"{name}.encode.bias") == (-(2**21) + 1, 2**21 - 1)
    assert ranges == {
        "h.0.attn.qkv.theta": (1, (2**23 - 1) // 4),
        "h.0.attn.ssa.shift": (0, 24),
        "h.0.attn.ssa.present": (0, 255),
        "h.0.attn.merged.theta": (1, (2**23 - 1) // most),
        "h.0.attn.merged.bias": (-((2**23 - 1) // 3), (2**23 - 1) // 3),
        "h.0.mlp.hidden.center": (-(2**23) + 1, 2**23 - 1),
        "h.0.mlp.hidden.theta": (1, (2**23 - 1) // hidden),
        "h.0.mlp.hidden.table": (-(2**14), 2**14),
    }


# coding, T, spikes -> bits of what encode, qkv, ssa, merged and hidden neurons send, with sign
PAYLOADS: dict[tuple[Coding, int, Spikes], tuple[int, int, int, int, int]] = {
    ("rate", 8, "binary"): (2, 2, 13, 2, 2),  # +-1, and 0..2
    ("rate", 8, "graded"): (5, 5, 13, 5, 5),  # +-8, and 0..16
    ("phase", 5, "binary"): (2, 2, 13, 2, 1),
    ("phase", 5, "graded"): (6, 4, 13, 6, 5),  # +-31, +-5, and 0..31
}


@pytest.mark.parametrize("key", PAYLOADS)
def test_payloads_have_the_bits_that_they_need(key: tuple[Coding, int, Spikes]) -> None:
    coding, timesteps, spikes = key
    config = CONFIG.model_copy(update={"coding": coding, "timesteps": timesteps})
    nodes: dict[str, Any] = {
        n.name: n for network in networks(config, spikes, {}) for n in network.nodes
    }
    names = "encode", "qkv", "ssa", "merged", "hidden"
    inside: dict[str, Any] = {
        n.name: n for net in networks(config, spikes, {})[1:3] for n in net.nodes
    }
    assert tuple(inside[name].payload_bits for name in names) == PAYLOADS[key]
    assert nodes["encode"].payload_bits == 8  # of the head
    assert nodes["norm"].payload_bits == 16  # +-1.01 of 2^14
    assert inside["residual"].delay == {"binary": 3, "graded": 4}[spikes]


# a projection, the largest count that drives it, how many inputs spike, thresholds beside it
DRIVEN: dict[str, tuple[int, int | None, str | None]] = {
    "embed.table": (1, 2, None),
    "h.0.attn.c_attn": (4, None, "h.0.attn.qkv.theta"),
    "h.0.attn.c_proj": (4, None, None),
    "h.0.mlp.c_fc": (4, None, None),
    "h.0.mlp.c_proj": (8, None, None),
    "head.lm_head": (FINAL_MOST, None, None),
}


@pytest.mark.parametrize("name", DRIVEN)
def test_a_membrane_may_reach_24_bits_and_no_more(name: str) -> None:
    most, active, theta = DRIVEN[name]
    tensors = {
        n: np.full(entry.shape, max(entry.low, 1) if n.endswith("theta") else 0, entry.dtype)
        for n, entry in layout(CONFIG).items()
    }
    for n in tensors:
        if n.endswith("mantissa"):
            tensors[n] += 4

    def complain(complaint: str) -> None:
        raise UserError(complaint)

    weight = tensors[f"{name}.weight"]
    weight[0] = -254
    reach = most * 254 * (weight.shape[1] if active is None else active)
    if theta is not None:
        tensors[theta][0] = 1000
        reach += 1000
    tensors[f"{name}.bias"][0] = LIMIT - reach
    check(CONFIG, tensors, complain)
    tensors[f"{name}.bias"][0] += 1
    with pytest.raises(UserError, match=f"membranes of {name} can leave 24 bits"):
        check(CONFIG, tensors, complain)


# --- the model ---


@pytest.fixture(scope="module")
def tiny(tiny_run: Any) -> IntegerGPT2:
    return IntegerGPT2.from_spiking(load_run(tiny_run)[0])


def test_hot_draws_come_from_the_likeliest_and_cold_ones_are_greedy(tiny: IntegerGPT2) -> None:
    ids = torch.randint(4096, (1, 6), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    greedy = tiny.generate(ids, 4)
    assert torch.equal(tiny.generate(ids, 4, temperature=1e-4, top_k=40), greedy)
    hot = tiny.generate(ids, 12, temperature=50.0, top_k=3)[0]
    ranks = [
        int((tiny(hot[None, :end])[0, -1].argsort(descending=True) == hot[end]).nonzero())
        for end in range(6, 18)
    ]
    # beside equal logits, which argsort orders as it likes
    assert max(ranks) < 6 and any(rank > 0 for rank in ranks)


def test_positions_end_for_what_follows_a_state_too(tiny: IntegerGPT2) -> None:
    states = tiny.new_states()
    ids = torch.zeros(1, 62, dtype=torch.long)
    tiny(ids, states)
    tiny(ids[:, :2], states)
    with pytest.raises(UserError, match="65 tokens are more than the 64"):
        tiny(ids[:, :1], states)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.blocks[1].mlp.c_fc.bias.data.fill_(torch.inf), "NaN or infinite"),
        (lambda model: model.lm_head.weight.data.mul_(1e8), "residual stream"),
    ],
)
def test_weights_that_no_integers_hold(
    tiny_run: Any, spoil: Callable[[SpikingGPT2LMHeadModel], Any], message: str
) -> None:
    model = load_run(tiny_run)[0]
    spoil(model)
    with pytest.raises(UserError, match=message):
        IntegerGPT2.from_spiking(model)


@pytest.mark.parametrize("saturates", [False, True])
def test_rows_are_quantised_alike_a_few_at_a_time(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(37, 11)), rng.normal(size=37)
    reach = quantise.Saturating(rng.integers(0, 3, 11, np.int32), rng.uniform(1e3, 1e9, 37))
    saturating = reach if saturates else None
    whole = quantise.quantise_rows(
        weight, bias, 255, snap=quantise.snapped_scale, saturating=saturating
    )
    monkeypatch.setattr(quantise, "PART", 50)
    parts = quantise.quantise_apart(weight, bias, 255, saturating=saturating)
    for name in ("weight", "bias", "scale"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name
        assert getattr(parts, name).dtype == getattr(whole, name).dtype
