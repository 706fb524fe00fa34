"""The energy estimate against counts made by hand, and the laws it must obey."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from neurtransformer.measure.counts import LayerSpikes, Ops, Shape, total
from neurtransformer.measure.energy import (
    ALTERNATIVES,
    FLOAT,
    Prices,
    compare,
    estimate,
    joules,
    layer_spikes,
    measure_spikes,
    memory_joules,
    reduction_percent,
)
from neurtransformer.measure.operations import (
    dense_attention,
    dense_feed_forward,
    graded,
    operations,
    shared,
    spiking_attention,
    spiking_feed_forward,
)
from neurtransformer.recipe import Code

# 2 heads of 4, contexts of 1 to 5 tokens: 3 on average
SMALL = Shape(
    width=8,
    heads=2,
    kv_width=8,
    hidden=32,
    layers=1,
    vocab=100,
    context=5,
    code=Code(4, "rate"),
    attention=Code(4, "rate"),
    hidden_code=Code(4, "rate"),
    kind="linear",
    gated=False,
    rotary=False,
)
RACE = replace(SMALL, kind="ttfs", attention=Code(4, "phase"))
SPIKES = LayerSpikes(
    encode=10,
    query=6,
    key=5,
    value=7,
    merged=9,
    mlp_encode=11,
    hidden=20,
    # of the linear kind; of the race, whose token neurons were counted on text of 3 tokens on
    # average, as many as `SMALL` has
    events={"written": 4, "present": 3}
    | {"seen": 6, "race": 5, "steps": 30, "compared": 90, "fine": 21, "heard": 65},
)
POPULATIONS = [field.name for field in fields(LayerSpikes)][:7]
SILENT = LayerSpikes(0, 0, 0, 0, 0, 0, 0, events={"seen": 6.0})

RACING = ("race", "steps", "compared", "fine", "heard")

counts = st.floats(0, 1e6)
layers = st.builds(
    LayerSpikes,
    *[counts] * 7,
    st.fixed_dictionaries(
        dict.fromkeys(("written", "present", *RACING), counts) | {"seen": st.just(6.0)}
    ),
)
ops = st.builds(Ops, counts, counts, counts, counts)
shapes = st.builds(
    lambda heads, head_dim, hidden, context, timesteps, coding, kind: Shape(
        width=heads * head_dim,
        heads=heads,
        kv_width=heads * head_dim,
        hidden=hidden,
        layers=1,
        vocab=50,
        context=context,
        code=Code(timesteps, coding),
        attention=Code(timesteps, coding),
        hidden_code=Code(timesteps, coding),
        kind=kind,
        gated=False,
        rotary=False,
    ),
    *[st.integers(1, 16), st.integers(1, 64), st.integers(1, 256), st.integers(1, 1024)],
    st.integers(1, 64),
    st.sampled_from(["rate", "phase"]),
    st.sampled_from(["linear", "ttfs"]),
)


def test_dense_operations_by_hand() -> None:
    attention = dense_attention(SMALL)
    assert {name: ops.mac for name, ops in attention.items()} == {
        "c_attn": 8 * 24,
        "cache": 0,
        "q k": 3 * 8,
        "softmax": 2 * 2 * 3,
        "a v": 3 * 8,
        "c_proj": 8 * 8,
    }
    # the new key and value are written, three of each are read
    assert total([attention]).words == 8 * 24 + 8 * 8 + 2 * 8 + 3 * 2 * 8
    assert total([dense_feed_forward(SMALL)]) == Ops(mac=2 * 8 * 32 + 4 * 32, weights=2 * 8 * 32)
    assert shared(SMALL)["lm_head"].mac == 800
    # heads that share keys and values read them once
    fewer = dense_attention(replace(SMALL, kv_width=4))
    assert astuple(fewer["q k"])[:3] == (3 * 8, 0, 3 * 4)
    assert fewer["q k"] == fewer["a v"]


def counted(part: Mapping[str, Ops]) -> dict[str, tuple[float, ...]]:
    """MACs, ACs, words of weights and of states of each operation."""
    return {name: astuple(ops)[:4] for name, ops in part.items()}


def test_spiking_attention_by_hand() -> None:
    """Left out forgetting or neuron updates, and this fails."""
    assert counted(spiking_attention(SMALL, SPIKES)) == {
        # 16 queries, 16 keys, 8 values; a column is 4 values and the witness
        "c_attn": (0, 10 * 40, 10 * 40, 0),
        "write": (4 * 1 + 4 * 5, 5 + 7, 0, 2 * 4 * 5),
        "present": (3 * 5, 0, 0, 2 * 3 * 5),
        "forget": (0, 2 * 5 * 8, 0, 2 * 2 * 5 * 8),
        "read": (6 * 5 + 6, 6 * 5 + 6 + 2, 0, 6 * 5),
        "normalise": (8, 2 * 8 + 3 * 2, 2, 0),
        "c_proj": (0, 9 * 8, 9 * 8, 0),
        # integrating: 2 populations of 8 get a value once, 40 and the stream's 8 spikes in 4 steps;
        # firing: 3 signed populations of 8 compare twice a step, 2 unsigned of 16 once, and a reset
        # per spike. A step reads and writes the membrane, and one of firing reads the threshold
        "neurons": (
            0,
            2 * 8 + 4 * (40 + 8) + 4 * (3 * 8 * 2 + 2 * 16) + 10 + 6 + 5 + 7 + 9,
            0,
            2 * (2 * 8 + 4 * (40 + 8)) + 3 * 4 * (3 * 8 + 2 * 16),
        ),
    }


def test_phase_coding_by_hand() -> None:
    """What hears phase-coded spikes doubles its membrane, one AC a step but the first; hidden
    neurons are single.

    Graded spikes carry a count, so nothing doubles then, and a phase is one step.
    """
    code = Code(4, "phase")
    phase = replace(SMALL, code=code, attention=code, hidden_code=code)
    rate, found = (spiking_attention(s, SPIKES)["neurons"] for s in (SMALL, phase))
    assert found == replace(rate, ac=rate.ac + 3 * (40 + 8))
    hidden = spiking_feed_forward(phase, SPIKES)["neurons"]
    assert hidden.ac == 8 + (4 + 3) * (32 + 8) + 4 * (8 * 2 + 32) + 11 + 20
    active = LayerSpikes(1, 2, 3, 6, 7, 8, 9, {"written": 4, "present": 5, "seen": 6})
    parts = operations(phase, [SPIKES], [active])
    attention, mlp = (parts[name]["graded"] for name in ("attention", "feed_forward"))
    assert astuple(attention["c_attn"])[:3] == (1 * 40, 0, 1 * 40)
    assert astuple(attention["c_proj"])[:3] == (7 * 8, 0, 7 * 8)
    resets = 1 + 2 + 3 + 6 + 7
    assert attention["neurons"].ac == 2 * 8 + 40 + 8 + 3 * 8 * 2 + 2 * 16 + resets
    assert astuple(mlp["c_fc"])[:3] == (8 * 32, 0, 8 * 32)
    # one step of rate coding: the hidden channels are pairs again
    assert mlp["neurons"].ac == 8 + 32 + 8 + 2 * (8 + 32) + 8 + 9


def test_what_both_models_share_by_hand() -> None:
    assert counted(shared(replace(SMALL, layers=3))) == {
        "embeddings": (0, 8, 2 * 8, 0),
        # mean, variance, scaling, and gain with bias, which are read
        "layer norms": (7 * 4 * 8, 0, 7 * 2 * 8, 0),
        "residuals": (0, 2 * 3 * 8, 0, 0),
        "lm_head": (800, 0, 800, 0),
    }


def test_sizes_come_from_the_config() -> None:
    from neurtransformer.spiking.config import SpikingGPT2Config

    sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 100, "n_positions": 5}
    config = SpikingGPT2Config(**sizes, timesteps=4)
    assert Shape.of(config) == SMALL
    config = SpikingGPT2Config(**sizes, timesteps=3, n_inner=7, coding="phase")
    assert Shape.of(config) == replace(
        SMALL,
        hidden=7,
        code=Code(3, "phase"),
        attention=Code(3, "phase"),
        hidden_code=Code(3, "phase"),
    )


def test_race_by_hand() -> None:
    """Left out the race or the doubling of membranes, and this fails."""
    assert {name: (ops.mac, ops.ac) for name, ops in spiking_attention(RACE, SPIKES).items()} == {
        "c_attn": (0, 10 * 24),
        "write": (8, 6 + 5 + 7),
        # a query spike reaches 3 token neurons; 2 heads of 3 are doubled in 3 of 4 steps
        "scores": (0, 6 * 3 + 3 * 6),
        # 90 comparisons; 30 steps in which a threshold falls; in the fine race 4 values and the
        # witness take 65 operations each
        "race": (0, 90 + 30 + 65 * 5),
        "values": (0, 5 * 5),
        "normalise": (8, 2 * 8 + 3 * 2),
        "c_proj": (0, 9 * 8),
        # 2 populations of 8 get a value once, 3 and the stream spikes in 4 steps, doubled in 3; 5
        # that are signed compare twice a step, and a reset per spike
        "neurons": (0, 2 * 8 + (4 + 3) * 4 * 8 + 4 * 5 * 8 * 2 + 10 + 6 + 5 + 7 + 9),
    }


def test_the_race_is_scaled_to_the_whole_context() -> None:
    """Counted on short text, token neurons and their spikes are those of the mean position."""
    longer = spiking_attention(replace(RACE, context=11), SPIKES)
    short = spiking_attention(RACE, SPIKES)
    assert longer["values"].ac == 2 * short["values"].ac
    assert longer["scores"].ac == 2 * short["scores"].ac
    assert longer["race"].ac == short["race"].ac + 90


def test_spiking_feed_forward_by_hand() -> None:
    # 8 get a value once, 32 hidden ones and the stream spikes; both populations are pairs
    integrated, fired = 8 + 4 * (32 + 8), 4 * (8 + 32)
    assert spiking_feed_forward(SMALL, SPIKES) == {
        "c_fc": Ops(ac=11 * 32, weights=11 * 32, events=11 * 32),
        "gelu": Ops(mac=4 * 32),
        "c_proj": Ops(ac=20 * 8, weights=20 * 8, events=20 * 8),
        "neurons": Ops(
            ac=integrated + 2 * fired + 11 + 20,
            states=2 * integrated + 3 * fired,
            updates=integrated + fired,
        ),
    }


def test_even_a_silent_network_forgets_and_updates() -> None:
    attention = spiking_attention(SMALL, SILENT)
    assert {name for name, ops in attention.items() if ops.ac} == {
        "forget",
        "read",
        "normalise",
        "neurons",
    }
    assert joules(total([attention])) > 0


@given(shapes, layers)
def test_twice_the_spikes_are_twice_the_work(s: Shape, n: LayerSpikes) -> None:
    fixed = n.events["seen"]
    events = {**{name: 2 * x for name, x in n.events.items()}, "seen": fixed}
    double = replace(n, **{name: 2 * getattr(n, name) for name in POPULATIONS}, events=events)
    for count in (spiking_attention, spiking_feed_forward):
        # what does not depend on spikes is what a silent network costs
        still, once, twice = (total([count(s, spikes)]) for spikes in (SILENT, n, double))
        assert twice.ac - still.ac == pytest.approx(2 * (once.ac - still.ac), rel=1e-6)
        assert twice.mac - still.mac == pytest.approx(2 * (once.mac - still.mac), rel=1e-6)


EVENTS = {"linear": ["written", "present"], "ttfs": list(RACING)}


@given(shapes, layers, st.data())
def test_every_population_costs(s: Shape, n: LayerSpikes, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(POPULATIONS + EVENTS[s.kind]))
    if name in POPULATIONS:
        more = replace(n, **{name: getattr(n, name) + 1000})
    else:
        more = replace(n, events={**n.events, name: n.events[name] + 1000})
    parts = operations(s, [n], [n]), operations(s, [more], [more])
    before, after = (total(forms["spiking"] for forms in part.values()) for part in parts)
    done, did = (ops.ac + ops.mac + ops.updates for ops in (after, before))
    assert done > did
    assert after.words >= before.words


@given(shapes, layers)
def test_graded_spikes_multiply_and_cost_no_more_than_their_products(
    s: Shape, n: LayerSpikes
) -> None:
    part = spiking_attention(s, n)
    turned = graded(part)
    assert total([turned]).mac + total([turned]).ac == pytest.approx(
        total([part]).mac + total([part]).ac
    )
    assert turned["c_attn"].ac == 0
    own = "forget" if s.kind == "linear" else "race"
    assert turned[own] == part[own]


@given(ops, ops, st.floats(0, 10), st.floats(0, 10), st.floats(0, 100))
def test_joules_are_linear(a: Ops, b: Ops, mac_pj: float, ac_pj: float, factor: float) -> None:
    prices = Prices("", mac_pj, ac_pj)
    scaled = Prices("", mac_pj * factor, ac_pj * factor)
    assert joules(a, prices) == pytest.approx((a.mac * mac_pj + a.ac * ac_pj) * 1e-12)
    assert joules(a, scaled) == pytest.approx(factor * joules(a, prices))
    assert joules(a + b, prices) == pytest.approx(joules(a, prices) + joules(b, prices))
    assert memory_joules(a, 100) == pytest.approx(a.words / 2 * 100e-12)


def test_reduction() -> None:
    assert reduction_percent(4.0, 1.0) == 75
    assert reduction_percent(1.0, 1.0) == 0
    assert reduction_percent(1.0, 1.5) == -50
    one = compare({"dense": Ops(1, 0, 1), "spiking": Ops(0, 1, 1, 1), "graded": Ops(1, 0, 1)})
    assert one["reduction_percent"] == pytest.approx(100 * (1 - 0.9 / 4.6))
    assert one["memory_reduction_percent"] == -100
    assert one["memory_dense_dram_j"] == pytest.approx(32 / 64 * 1300e-12)
    assert one["memory_spiking_j"] == pytest.approx(2 * 32 / 64 * 100e-12)
    assert [(p.mac_pj, p.ac_pj) for p in ALTERNATIVES] == [(4.6, 0.9), (3.2, 0.1), (0.3, 0.1)]


def test_the_parts_of_two_blocks_add_up() -> None:
    other = replace(SPIKES, encode=30)
    two = operations(replace(SMALL, layers=2), [SPIKES, other], [SPIKES, SPIKES])
    assert two["attention"]["spiking"]["c_attn"].ac == 40 * 40
    assert two["attention"]["dense"]["c_attn"].mac == 2 * 8 * 24
    assert counted(two["shared"]["dense"]) == counted(two["shared"]["spiking"])
    # a graded spike of each neuron goes to every token of the vocabulary
    assert two["shared"]["spiking"]["lm_head"].events == 800


# --- on a real run ---


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> Any:
    from neurtransformer.spiking.load import load_run

    return load_run(tiny_run)[0]


def test_measured_spikes_are_the_neurons_own(loaded: Any) -> None:
    """Counted by hand on one block of text, batches and the head that sees itself included."""
    import torch

    tokens = torch.randint(100, (3, 10), generator=torch.Generator().manual_seed(1))
    attention = loaded.blocks[0].attn
    kept = attention.present.clone()
    attention.present.copy_(torch.tensor([0.0, 1.0]))
    try:
        counter = measure_spikes(loaded, tokens, batch=2)
        (first, _) = layer_spikes(loaded, counter, counter.spikes)
        (active, _) = layer_spikes(loaded, counter, counter.active)
    finally:
        attention.present.copy_(kept)
    with torch.no_grad():
        embedded = loaded.transformer["wte"](tokens) + loaded.transformer["wpe"](torch.arange(10))
        query, key, value = attention.code(loaded.blocks[0].ln_1(embedded))
    assert first.query == pytest.approx(float(query.sum()) / 30)
    assert first.value == pytest.approx(float(value.abs().sum()) / 30)
    assert first.key == pytest.approx(float(key.sum()) / 30)
    assert first.events["written"] == pytest.approx(float((key > 0).sum()) / 30)
    assert active.key == pytest.approx(first.events["written"]) and active.events == first.events
    assert first.events["present"] == pytest.approx(float((key[:, 1] > 0).sum()) / 30)
    assert all(a <= b for a, b in zip(astuple(active)[:7], astuple(first)[:7], strict=True))
    for name, layer in {
        "encode": "attn.encode",
        "merged": "attn.merged",
        "mlp_encode": "mlp.encode",
        "hidden": "mlp.hidden",
    }.items():
        for found, sums in ((first, counter.spikes), (active, counter.active)):
            assert getattr(found, name) == pytest.approx(float(sums[f"0.{layer}"].sum()) / 30)
    totals = list(counter.spikes.values())
    assert len({float(x.sum()) for x in totals}) == len(totals)  # so that none passes for another


def test_the_estimate_is_the_sum_of_its_breakdown(loaded: Any) -> None:
    import torch

    counter = measure_spikes(loaded, torch.arange(64).view(2, 32))
    values = estimate(loaded, counter)
    for form in ("dense", "spiking"):
        rows = [row for part in values["operations"].values() for row in part.values()]
        macs, acs = (sum(row[f"{form}_{unit}"] for row in rows) for unit in ("macs", "acs"))
        assert values["model"][f"{form}_j"] == pytest.approx((4.6 * macs + 0.9 * acs) * 1e-12)
    assert values["context"] == 64
    assert values["alternatives"][0]["attention_reduction_percent"] == pytest.approx(
        values["attention"]["reduction_percent"]
    )
    assert values["constants"] | asdict(FLOAT) == values["constants"]
    memory = {"sram_pj_per_64_bits": 100, "dram_pj_per_64_bits": 1300, "word_bits": 32}
    assert values["constants"] | memory == values["constants"]
    for name, count in counter.mean_counts().items():
        assert values["spike_rate_by_layer"][name] == pytest.approx(count / 4)
    # graded: as many spikes as neurons that send any
    sent = sum(float(counter.active[f"{i}.attn.encode"].sum()) / 64 for i in (0, 1))
    macs = values["operations"]["attention"]["c_attn"]["graded_macs"]
    assert macs == pytest.approx(sent * 5 * 64)
    saved = values["model"]["memory_spiking_j"] / values["model"]["memory_dense_j"]
    assert values["model"]["memory_reduction_percent"] == pytest.approx(100 * (1 - saved))


def test_the_command(either_run: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    from neurtx.main import neurtx

    run = copy_of(either_run)
    text = tmp_path / "text.txt"
    text.write_text("A line of text that is long enough. " * 20)
    words = ["energy", str(run), "--text", str(text), "--limit", "100"]
    done = CliRunner().invoke(neurtx, [*words, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.output.splitlines()[-1])
    for part in ("attention", "model"):
        assert {"dense_j", "spiking_j", "reduction_percent"} <= set(values[part])
    assert values["paper_reduction_percent"] == [64.71, 85.28]
    assert values["tokens"] == 64
    assert values["timesteps"] == 4
    report = json.loads((run / "report.json").read_text())
    kept = {key: value for key, value in report["energy"].items() if key != "provenance"}
    assert kept == {key: value for key, value in values.items() if key != "run"}
    assert "recipe" in report
    done = CliRunner().invoke(neurtx, words)
    assert "ESTIMATED" in done.stdout
    assert "64.71 to 85.28" in done.stdout


def test_what_thinning_saves_is_no_merit_of_spikes(tiny_race_run: Path) -> None:
    """Beside a dense model that does without the same channels the saving is smaller."""
    import torch

    from neurtransformer.spiking.load import load_run

    model, _ = load_run(tiny_race_run)
    blocks = torch.randint(0, 4096, (1, 16), generator=torch.Generator().manual_seed(0))
    assert estimate(model, measure_spikes(model, blocks))["thinned"] is None
    for attention in (block.attn for block in model.blocks):
        channels = torch.arange(attention.rows[1]) % 2 == 0
        attention.leave_out_keys(channels)
        attention.leave_out_values(channels)
    found = estimate(model, measure_spikes(model, blocks))
    thinned = found["thinned"]
    assert thinned["left_out_percent"] == 50
    s = Shape.of(model.config)
    half = 2 * (s.width * s.width) + s.width * s.seen  # of the projections, and of both products
    dense = s.layers * (half + 2 * s.heads * s.seen) * 4.6e-12
    assert thinned["attention_dense_j"] == pytest.approx(dense)
    for part in ("attention", "model"):
        spiking = found[part]["spiking_j"]
        saved = 100 * (1 - spiking / thinned[f"{part}_dense_j"])
        assert thinned[f"{part}_reduction_percent"] == pytest.approx(saved)
        assert saved < found[part]["reduction_percent"]
