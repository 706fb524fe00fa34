"""What attention layers that are trained on linear regression predict with.

Small models learn to predict y of a query from random tasks, and are compared on fresh tasks with
algorithms: gradient descent and GD++ (von Oswald et al., arXiv 2212.07677), ridge regression and
least squares (Akyurek et al., arXiv 2211.15661), each at its best parameters. Two numbers for
each pair: the mean squared error of either, and the mean squared difference of their predictions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurtransformer.icl.regression import (
    INTEGER_BITS,
    LinearAttention,
    Seen,
    Tasks,
    attention_prediction,
    draw_tasks,
    fixed_point,
    full_scales,
    integer_read,
    integer_step,
)
from neurtransformer.icl.regression_engine import CALIBRATION_TASKS, Engine
from neurtransformer.loihi.learning import FORMS

DIMENSION, EXAMPLES = 5, 10
NOISES = 0.0, 0.5
"""Standard deviations of the noise on y of the examples; a target has none."""

MODELS = {
    # layers, whether they have a softmax, and the steps of training that they need
    "linear": (1, False, 1000),
    "softmax": (1, True, 1500),
    "linear, 2 layers": (2, False, 2500),
}
BATCH, LEARNING_RATE = 256, 5e-2
INITIAL = 0.2
"""Standard deviation of the weights before training."""

FRESH = 4096
RIDGES = tuple(2.0**i for i in range(-20, 7))

Algorithm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""x (tasks, N, d), y (tasks, N, 1), queries (tasks, Q, d) and parameters -> (tasks, Q, 1)."""


def descend(x: Tensor, y: Tensor, query: Tensor, rates: Tensor) -> Tensor:
    """Steps of gradient descent from 0. rates: one for each step."""
    return _descend(x, y, query, rates, torch.zeros_like(rates))


def descend_curved(x: Tensor, y: Tensor, query: Tensor, parameters: Tensor) -> Tensor:
    """GD++: each step also takes x to ``(1 - c X^T X / N) x``. parameters: rates, then the c's."""
    return _descend(x, y, query, *parameters.chunk(2))


def _descend(x: Tensor, y: Tensor, query: Tensor, rates: Tensor, curvatures: Tensor) -> Tensor:
    predicted = torch.zeros_like(query[..., :1])
    for rate, curvature in zip(rates, curvatures, strict=True):
        step = rate / x.shape[1] * x.mT @ y
        y, predicted = y - x @ step, predicted + query @ step
        bend = curvature / x.shape[1] * x.mT @ x
        x, query = x - x @ bend, query - query @ bend
    return predicted


def ridge(x: Tensor, y: Tensor, query: Tensor, strength: Tensor) -> Tensor:
    """Least squares with ``strength |w|^2`` added to the sum of squares."""
    gram = x.mT @ x + strength * torch.eye(x.shape[-1], dtype=x.dtype)
    return query @ torch.linalg.solve(gram, x.mT @ y)


def least_squares(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """By the pseudoinverse."""
    return query @ (torch.linalg.pinv(x) @ y)


def tensors(drawn: Tasks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, queries and targets of tasks."""
    x, y, query = (torch.from_numpy(a) for a in drawn.seen())
    return x, y, query, torch.from_numpy(drawn.target)


def mean_square(x: Tensor) -> float:
    """Of all entries."""
    return float((x**2).mean())


def fitted(algorithm: Algorithm, start: Sequence[float], drawn: Tasks) -> Tensor:
    """Parameters with the least squared error on some tasks."""
    x, y, query, target = tensors(drawn)
    parameters = torch.tensor(start, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        error = ((algorithm(x, y, query, parameters) - target) ** 2).mean()
        error.backward()
        return error

    optimiser.step(loss)
    return parameters.detach()


def algorithms(drawn: Tasks) -> dict[str, tuple[Algorithm, Tensor]]:
    """The algorithms with their best parameters on some tasks."""
    found: dict[str, tuple[Algorithm, Tensor]] = {}
    for name, algorithm, start in (
        ("gradient step", descend, [1.0]),
        ("2 gradient steps", descend, [1.0, 1.0]),
        # what the last step bends is not read any more
        ("GD++, 2 steps", descend_curved, [1.0, 1.0, 0.1, 0.0]),
    ):
        found[name] = algorithm, fitted(algorithm, start, drawn)
    x, y, query, target = tensors(drawn)
    strengths = [torch.tensor(s, dtype=target.dtype) for s in RIDGES]
    best = min(strengths, key=lambda s: mean_square(ridge(x, y, query, s) - target))
    found["ridge"] = ridge, best
    found["least squares"] = lambda x, y, query, _: least_squares(x, y, query), torch.zeros(0)
    return found


# --- models ---


def train(layers: int, softmax: bool, steps: int, noise: float) -> list[LinearAttention]:
    """Layers trained with Adam on the squared error of fresh tasks, in float64 when returned."""
    generator = torch.Generator().manual_seed(0)
    stack = [LinearAttention(DIMENSION + 1, softmax=softmax) for _ in range(layers)]
    weights = [weight for layer in stack for weight in layer.parameters()]
    for weight in weights:
        torch.nn.init.normal_(weight, std=INITIAL, generator=generator)
    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start = torch.zeros(1, DIMENSION)
    for _ in range(steps):
        w = torch.randn(BATCH, DIMENSION, 1, generator=generator)
        x = 2 * torch.rand(BATCH, EXAMPLES + 1, DIMENSION, generator=generator) - 1
        y = x @ w
        seen = y[:, :-1] + noise * torch.randn(BATCH, EXAMPLES, 1, generator=generator)
        predicted = attention_prediction(stack, start, x[:, :-1], seen, x[:, -1:])
        loss = ((predicted - y[:, -1:]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
    return [layer.double().requires_grad_(False) for layer in stack]


def predict(stack: Sequence[LinearAttention], drawn: Tasks) -> Tensor:
    """What trained layers predict, (tasks, Q, 1)."""
    x, y, query, _ = tensors(drawn)
    return attention_prediction(stack, torch.zeros(1, DIMENSION, dtype=x.dtype), x, y, query)


def fast_weights(layer: LinearAttention, drawn: Tasks) -> Seen:
    """A trained linear layer as a fast-weight matrix: keys (tasks, N, d + 1), values (tasks, N, 1)
    and queries (tasks, Q, d + 1), whose `hebbian_read` is what it predicts."""
    x, y, query, _ = tensors(drawn)
    context = torch.cat([x, y], dim=-1)
    tokens = torch.cat([query, torch.zeros_like(query[..., :1])], dim=-1)
    value = -(context @ layer.value.T @ layer.out.T)[..., -1:]
    return (context @ layer.key.T).numpy(), value.numpy(), (tokens @ layer.query.T).numpy()


def in_integers(layer: LinearAttention, calibration: Tasks, drawn: Tasks) -> dict[str, Tensor]:
    """What a trained linear layer predicts as an integer fast-weight matrix of `INTEGER_BITS` and
    in the learning engine. calibration: tasks that the scales are fitted to."""
    seen, fit = fast_weights(layer, drawn), fast_weights(layer, calibration)
    full, most = full_scales(fit), 2 ** (INTEGER_BITS - 1) - 1
    key, value, query = (fixed_point(a, f, most) for a, f in zip(seen, full, strict=True))
    start = np.zeros((1, key.shape[-1]), dtype=np.int64)
    read = [
        integer_read(integer_step(k, v, start, 0)[0], q)[0]
        for k, v, q in zip(key, value, query, strict=True)
    ]
    found = {"integer": np.stack(read) * (float(np.prod(full)) / most**3)}
    engine = Engine.fitted(fit)
    for name in ("stochastic", "lava"):
        found[f"engine, {name}"] = engine.predict(seen, FORMS[name])
    return {name: torch.from_numpy(predicted) for name, predicted in found.items()}


def compare(noise: float, note: Callable[[str], None]) -> dict[str, Any]:
    """Trained models and algorithms on the same fresh tasks.

    noise: one of `NOISES`. note: told what is being trained. Returns `mse` by name, `difference` of
    each model to each algorithm, both in units of the mean squared target, and `parameters`, the
    best ones of each algorithm.
    """
    rng = np.random.default_rng(0)

    def draw(tasks: int) -> Tasks:
        return draw_tasks(rng, tasks, DIMENSION, EXAMPLES, queries=1, noise=noise)

    calibration, fresh = draw(FRESH), draw(FRESH)
    x, y, query, target = tensors(fresh)
    known = algorithms(calibration)
    theirs = {name: algorithm(x, y, query, best) for name, (algorithm, best) in known.items()}
    ours = {}
    for name, (layers, softmax, steps) in MODELS.items():
        note(f"training {name} attention, noise {noise:g}")
        stack = train(layers, softmax, steps, noise)
        ours[name] = predict(stack, fresh)
        if name == "linear":
            limited = in_integers(stack[0], draw(CALIBRATION_TASKS), fresh)
            ours |= {f"linear, {form}": predicted for form, predicted in limited.items()}
    unit = mean_square(target)
    return {
        "noise": noise,
        "mse": {n: mean_square(p - target) / unit for n, p in (theirs | ours).items()},
        "difference": {
            model: {name: mean_square(p - q) / unit for name, q in theirs.items()}
            for model, p in ours.items()
        },
        "parameters": {name: best.reshape(-1).tolist() for name, (_, best) in known.items()},
    }
