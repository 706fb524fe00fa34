"""In-context regression: attention, integers and learning engine against gradient descent."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neurtransformer.errors import UserError
from neurtransformer.icl import regression, regression_engine, regression_learned
from neurtransformer.icl.regression import draw_tasks, hebbian_read, relative_error
from neurtransformer.icl.regression_engine import Engine
from neurtransformer.integer.arithmetic import LIMIT
from neurtransformer.loihi.learning import FORMS, WEIGHT_LIMITS, outer_products

SEEDS = st.integers(0, 2**32 - 1)
FEW = st.integers(1, 5)


# --- floats ---


@given(SEEDS, FEW, FEW, st.integers(1, 20), FEW)
def test_attention_is_gradient_descent(
    seed: int, dimension: int, outputs: int, examples: int, steps: int
) -> None:
    """From any W_0, layer after layer, against autograd."""
    rng = np.random.default_rng(seed)
    drawn = draw_tasks(rng, 3, dimension, examples, outputs=outputs, noise=0.3)
    x, y, query = (torch.from_numpy(a) for a in drawn.seen())
    w0 = torch.from_numpy(rng.standard_normal((outputs, dimension)))
    layers = [regression.gradient_layer(w0, 0.5, examples)] * steps
    ours = regression.attention_prediction(layers, w0, x, y, query)
    descended = regression.descended(w0, x, y, 0.5, steps)
    assert torch.allclose(ours, query @ descended.mT, atol=1e-10)
    # and it does learn
    error = ((x @ descended.mT - y) ** 2).sum()
    assert error <= ((x @ w0.T - y) ** 2).sum() + 1e-12


def test_the_float_error_is_within_the_contract() -> None:
    assert regression.float_max_error(5) <= 1e-6


# --- integers ---


@given(SEEDS, FEW, st.integers(1, 3), st.integers(1, 12), st.integers(2, 12), st.integers(0, 8))
def test_an_integer_step_is_exact_or_says_that_it_is_not(
    seed: int, dimension: int, outputs: int, examples: int, bits: int, shift: int
) -> None:
    """Against Python's integers, from any W_0, at any rate N / 2^shift."""
    rng = np.random.default_rng(seed)
    most = 2 ** (bits - 1) - 1
    x = rng.integers(-most, most + 1, (examples, dimension))
    w0 = rng.integers(-most, most + 1, (outputs, dimension))
    query = rng.integers(-most, most + 1, (4, dimension))
    y = rng.integers(-(most**2), most**2 + 1, (examples, outputs))
    state, states_met = regression.integer_step(x, y, w0, shift)
    read, reads_met = regression.integer_read(state, query)
    exact = regression.exact_predictions(x, y, w0, Fraction(examples, 2**shift), query)
    assert max(abs(state.min()), abs(state.max()), abs(read).max()) <= LIMIT
    if not states_met and not reads_met:
        assert [[Fraction(r, 2**shift) for r in row] for row in read.tolist()] == exact
    beyond = any(abs(value) * 2**shift > LIMIT for row in exact for value in row)
    assert states_met or reads_met or not beyond


@given(SEEDS, st.integers(1, 6))
def test_states_saturate_as_the_exact_ones_would(seed: int, examples: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-(2**12), 2**12 + 1, (2, examples, 1))
    state, met = regression.integer_step(x, y, np.zeros((1, 1), dtype=np.int64), 0)
    clipped = exact = 0
    for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True):
        exact += a * b
        clipped = min(max(clipped + a * b, -LIMIT), LIMIT)
    assert int(state[0, 0]) == clipped
    assert met or clipped == exact


def test_a_state_at_its_limit_is_told() -> None:
    full = np.full((3, 1), 2**11)
    state, met = regression.integer_step(full, full, np.zeros((1, 1), dtype=np.int64), 0)
    assert met and int(state[0, 0]) == LIMIT
    assert regression.integer_read(state, np.array([[-2]]))[1]
    silent = np.zeros((3, 1), dtype=np.int64)
    for start, expected in ((2**13, (LIMIT, True)), (2**12, (2**22, False))):
        state, met = regression.integer_step(silent, silent, np.array([[start]]), 10)
        assert (int(state[0, 0]), met) == expected


@pytest.mark.parametrize("bits", [regression.INTEGER_BITS, 8])
def test_the_integer_error_is_nothing(bits: int) -> None:
    """The tasks that met a limit are counted, and with the default's bits none can."""
    found = regression.integer_errors(bits)
    assert found["max_error"] == 0
    assert (found["reads_at_limit"] > 0) == (bits > regression.INTEGER_BITS)


# --- the learning engine ---


@given(SEEDS, FEW, st.integers(1, 2), st.integers(1, 12), st.integers(2, 7))
@example(0, 2, 1, 200, 7)  # so many that the rule's constant would be below 2^-7
def test_a_fitted_engine_holds_the_gradient(
    seed: int, dimension: int, outputs: int, examples: int, bits: int
) -> None:
    """Exactly where no limit holds; without saturation on the tasks that it was fitted to."""
    rng = np.random.default_rng(seed)
    seen = draw_tasks(rng, 4, dimension, examples, outputs=outputs).seen()
    engine = Engine.fitted(seen, bits)
    assert (engine.exponent < -7) == (examples == 200) and engine.rule_exponent >= -7
    assert relative_error(engine.predict(seen, FORMS["float"]), hebbian_read(*seen)) < 1e-9
    x, y, query = engine.inputs(seen)
    assert max(abs(trace).max() for trace in (x, y, query)) < 2**7
    assert not (x % 2 ** (7 - bits)).any() and not (query % 2 ** (7 - bits)).any()
    if bits == 7:
        # coarser traces may be rounded up beyond what was fitted
        unlimited, limited = (engine.predict(seen, FORMS[name]) for name in ("traces", "range"))
        assert relative_error(limited, unlimited) < 0.02


def test_an_engine_holds_weights_that_later_examples_take_away() -> None:
    """Eight examples for, seven against: 127 x 127 / 8 a time, and eight of them are the most."""
    y = np.array([1.0] * 8 + [-1.0] * 7)[None, :, None]
    engine = Engine.fitted((np.ones_like(y), y, np.ones((1, 1, 1))))
    assert 8 * 127**2 / 8 * 2.0**engine.exponent <= WEIGHT_LIMITS[1]
    assert 8 * 127**2 / 8 * 2.0 ** (engine.exponent + 1) > WEIGHT_LIMITS[1]


def test_sweeps_change_one_setting_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression_engine, "engine_errors", lambda **setting: setting)
    assert regression_engine.sweeps() == {
        "bits": [{"bits": n} for n in (2, 3, 4, 5, 6, 7)],
        "dimension": [{"dimension": n} for n in (2, 4, 8, 16, 32, 64)],
        "examples": [{"examples": n} for n in (8, 16, 32, 64, 128, 256, 512)],
    }


def test_traces_of_few_bits_are_the_upper_ones() -> None:
    ones = tuple(np.array([[[0.0, 0.5, -1.0]]]) for _ in range(3))
    for bits, expected in (
        (7, [0, 64, -127]),
        (3, [0, 4 << 4, -7 << 4]),
        (2, [0, 2 << 5, -3 << 5]),
    ):
        for traces in Engine((1.0, 1.0, 1.0), 0, bits).inputs(ones):
            assert traces.ravel().tolist() == expected


def test_the_engine_is_better_with_more_bits_and_worse_with_more_examples() -> None:
    coarse, fine = (regression_engine.engine_errors(bits=bits) for bits in (3, 7))
    few, many = (regression_engine.engine_errors(examples=examples) for examples in (8, 256))
    assert fine["traces"] < coarse["traces"] / 8 and fine["lava"] < coarse["lava"] / 2
    assert few["stochastic"] < many["stochastic"] / 2
    assert fine["float"] < 1e-12 and fine["lava"] < 0.1


@pytest.fixture(scope="module")
def engine(lava: None) -> Any:
    """Lava's own."""
    from neurtransformer.loihi import plasticity

    return plasticity


@settings(max_examples=3)
@given(SEEDS, FEW, FEW, st.integers(1, 8), st.integers(-7, 1))
def test_lava_is_numpy_integer_for_integer(
    engine: Any, seed: int, dimension: int, outputs: int, examples: int, exponent: int
) -> None:
    """Rounding at random and saturation included."""
    rng = np.random.default_rng(seed)
    pre, post, query = (
        rng.integers(-127, 128, shape)
        for shape in ((examples, dimension), (examples, outputs), (3, dimension))
    )
    reads, weights = engine.run_outer_products(pre, post, query, exponent)
    ours = outer_products(pre, post, exponent, FORMS["lava"])
    assert (weights == ours).all()
    assert (reads == regression_engine.pairs_read(ours, query)).all()
    assert ours.min() >= WEIGHT_LIMITS[0] and ours.max() <= WEIGHT_LIMITS[1]


@pytest.mark.usefixtures("lava")
def test_tasks_side_by_side_in_lava_are_those_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression_engine, "LAVA_TASKS", 2)
    error, mismatches = regression_engine.lava_error()
    fitted, drawn = regression_engine._engine_and_tasks(8, 32, 7)
    two = tuple(a[:2] for a in drawn)
    alone = fitted.predict(two, FORMS["lava"])
    assert mismatches == 0
    assert error == pytest.approx(relative_error(alone, hebbian_read(*two)))


@pytest.mark.usefixtures("lava")
def test_every_read_and_weight_that_differs_from_lavas_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from neurtransformer.loihi import plasticity

    def wrong(pre: Any, post: Any, queries: Any, exponent: int) -> tuple[Any, Any]:
        weights = outer_products(pre, post, exponent, FORMS["lava"])
        reads = regression_engine.pairs_read(weights, queries)
        weights[0, :3] += 1
        reads[1, 0] -= 5
        return reads, weights

    monkeypatch.setattr(plasticity, "run_outer_products", wrong)
    assert regression_engine.lava_error()[1] == 3 + 1


# --- trained models ---


def test_algorithms_are_what_they_are_called() -> None:
    drawn = draw_tasks(np.random.default_rng(0), 500, 5, 10, queries=1, noise=0.5)
    x, y, query, target = regression_learned.tensors(drawn)
    w0 = torch.zeros(1, 5, dtype=x.dtype)
    for steps in (1, 3):
        ours = regression_learned.descend(x, y, query, torch.full((steps,), 0.7))
        theirs = query @ regression.descended(w0, x, y, 0.7, steps).mT
        assert torch.allclose(ours, theirs)
    least = regression_learned.least_squares(x, y, query)
    assert torch.allclose(least, query @ torch.linalg.lstsq(x, y).solution)
    many = regression_learned.descend(x, y, query, torch.full((3000,), 1.0))
    assert relative_error(many.numpy(), least.numpy()) < 0.05
    known = regression_learned.algorithms(drawn)
    # the strength that is right for weights of variance 1 is the variance of the noise
    assert known["ridge"][1] in (0.125, 0.25, 0.5)
    errors = {
        name: regression_learned.mean_square(algorithm(x, y, query, best) - target)
        for name, (algorithm, best) in known.items()
    }
    assert errors["ridge"] < errors["GD++, 2 steps"] < errors["2 gradient steps"]
    assert errors["2 gradient steps"] < errors["gradient step"]


def test_a_trained_linear_layer_does_a_gradient_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights every time; as a fast-weight matrix it predicts the same."""
    monkeypatch.setattr(regression_learned, "MODELS", {"linear": (1, False, 400)})
    monkeypatch.setattr(regression_learned, "FRESH", 1000)
    notes: list[str] = []
    first = regression_learned.compare(0.0, notes.append)
    assert len(notes) == 1
    assert first["difference"]["linear"]["gradient step"] < 0.01
    assert first["difference"]["linear"]["2 gradient steps"] > 0.1
    assert first["mse"]["linear"] == pytest.approx(first["mse"]["gradient step"], rel=0.05)
    # least squares know the target where there is no noise
    known = {name: found["least squares"] for name, found in first["difference"].items()}
    assert known == pytest.approx({name: first["mse"][name] for name in known})
    # in units of what it is to say nothing
    drawn = draw_tasks(np.random.default_rng(5), 2000, 5, 10, queries=1)
    algorithm, best = regression_learned.algorithms(drawn)["gradient step"]
    x, y, query, target = regression_learned.tensors(drawn)
    error = algorithm(x, y, query, best) - target
    share = float((error**2).mean() / (target**2).mean())
    assert first["mse"]["gradient step"] == pytest.approx(share, rel=0.15)
    assert first["mse"]["linear, engine, lava"] < 1.2 * first["mse"]["linear"]
    assert first["mse"]["linear, integer"] < 1.2 * first["mse"]["linear"]
    (layer,) = regression_learned.train(1, False, 5, 0.0)
    (again,) = regression_learned.train(1, False, 5, 0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters(), strict=True)
    )
    (noisy,) = regression_learned.train(1, False, 5, 0.5)
    assert not torch.equal(noisy.value, layer.value)
    monkeypatch.setattr(regression_learned, "MODELS", {})
    strengths = [
        regression_learned.compare(noise, notes.append)["parameters"]["ridge"]
        for noise in (0.0, 0.5)
    ]
    assert strengths[0][0] < 1e-3 and strengths[1][0] in (0.125, 0.25, 0.5)
    drawn = draw_tasks(np.random.default_rng(1), 20, 5, 10)
    written = hebbian_read(*regression_learned.fast_weights(layer, drawn))
    assert np.allclose(written, regression_learned.predict([layer], drawn))


# --- by command ---


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "TASKS", 8)
    monkeypatch.setattr(regression_engine, "TASKS", 8)
    monkeypatch.setattr(regression_engine, "CALIBRATION_TASKS", 16)
    monkeypatch.setattr(regression_learned, "CALIBRATION_TASKS", 16)
    monkeypatch.setattr(regression_engine, "CONTEXTS", (4, 8))
    monkeypatch.setattr(regression_learned, "FRESH", 200)
    few = {name: (*kind[:2], 3) for name, kind in regression_learned.MODELS.items()}
    monkeypatch.setattr(regression_learned, "MODELS", few)


def test_by_command_without_lava(
    small: None,
    neurtx: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def missing() -> None:
        raise UserError("Lava is not installed: type `neurtx install lava`")

    monkeypatch.setattr(regression_engine, "lava_error", missing)
    picture = tmp_path / "regression.svg"
    done = neurtx("icl", "regression", "--json", "--picture", str(picture))
    assert done.returncode == 0
    values = json.loads(done.stdout)
    assert values["float_max_error"] <= 1e-6
    assert values["integer_max_error"] == 0
    assert values["lava_relative_error"] is None
    assert values["lava_missing"].startswith("Lava is not installed")
    assert [row["examples"] for row in values["sweeps"]["examples"]] == [4, 8]
    assert set(values["trained"][0]["difference"]["softmax"]) <= set(values["trained"][0]["mse"])
    assert picture.read_text().lstrip().startswith("<?xml")
    assert "exists already" in neurtx("icl", "regression", "--picture", str(picture)).mistake()


def test_by_command_with_lava(
    small: None, neurtx: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression_engine, "lava_error", lambda: (0.05, 0))
    done = neurtx("icl", "regression")
    assert done.returncode == 0 and "lava_relative_error: 0.05" in done.stdout
    assert "GD++" in done.stdout and "stochastic" in done.stdout
    # each sweep is a table of its own, and a legend says what the columns are
    assert done.stdout.count("error in the learning engine by") == 3
    assert "as Lava does" in done.stdout
