"""In-context linear regression as gradient descent, on a plastic synapse.

One linear self-attention layer can do one step of gradient descent on the examples in its context
(von Oswald et al., arXiv 2212.07677):

    e_j <- e_j + P W_V sum_i e_i (W_K e_i)^T W_Q e_j        tokens e = (x, y), i over the context

With W_K = W_Q = [[I, 0], [0, 0]], W_V = [[0, 0], [W_0, -I]] and P = eta / N every y becomes
y - dW x, where W_0 + dW is one step with rate eta on 1/(2N) sum \\|W x_i - y_i\\|^2 from W_0. So
the same layer again does the next step. A query enters as (x, -W_0 x) and ends as minus its
prediction.

The sum does not depend on the query: it is a fast-weight matrix, written with the outer product
``v k^T`` of each example and read with q. Here it is in floats (`LinearAttention`) and in integers
(`integer_step`); regression_engine.py has it in Loihi 2's learning engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.loihi.learning import Floats

DIMENSION, EXAMPLES = 8, 32
"""d and N where nothing else is said."""

INTEGER_BITS = 6
"""Sign included. With +-31 the reads of 32 examples of 8 dimensions, at most 8 * 32 * 31^3, stay
below 2^23."""

TASKS, QUERIES = 64, 16
INTEGER_WIDTHS = range(4, 13, 2)

Seen = tuple[Floats, ...]
"""x (tasks, N, d), y (tasks, N, m) and queries (tasks, Q, d)."""


@dataclass(frozen=True)
class Tasks:
    """Linear functions seen through examples. x: (tasks, N, d). y: (tasks, N, m). query: (tasks,
    Q, d). target: (tasks, Q, m), without noise."""

    x: Floats
    y: Floats
    query: Floats
    target: Floats

    def seen(self) -> Seen:
        """All but the target."""
        return self.x, self.y, self.query


def draw_tasks(
    rng: np.random.Generator,
    tasks: int,
    dimension: int,
    examples: int,
    *,
    queries: int = QUERIES,
    outputs: int = 1,
    noise: float = 0.0,
) -> Tasks:
    """Tasks as von Oswald et al. draw them: x uniform in -1..1, y = W x with W standard normal.

    noise: standard deviation of what is added to y.
    """
    w = rng.standard_normal((tasks, outputs, dimension))
    x = rng.uniform(-1, 1, (tasks, examples, dimension))
    query = rng.uniform(-1, 1, (tasks, queries, dimension))
    w_t = w.swapaxes(1, 2)
    y = x @ w_t + noise * rng.standard_normal((tasks, examples, outputs))
    return Tasks(x, y, query, query @ w_t)


def hebbian_read(x: Floats, y: Floats, query: Floats) -> Floats:
    """``sum_i y_i x_i^T q`` (tasks, Q, m), N / eta times what one gradient step from 0 predicts."""
    return query @ (x.swapaxes(1, 2) @ y)


def full_scales(seen: Seen) -> tuple[float, ...]:
    """The largest magnitudes of x, y and queries."""
    return tuple(float(np.abs(a).max()) for a in seen)


def relative_error(ours: NDArray, exact: NDArray) -> float:
    """Root of the summed squared differences over that of the squares."""
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


# --- floats ---


class LinearAttention(nn.Module):
    """One self-attention layer without softmax (or with it, as a control) on tokens (x, y).

    width: of a token. All tokens attend to those of the context.
    """

    def __init__(self, width: int, *, softmax: bool = False) -> None:
        super().__init__()
        self.softmax = softmax
        self.query, self.key, self.value, self.out = (
            nn.Parameter(torch.zeros(width, width)) for _ in range(4)
        )

    def forward(self, context: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Both (tasks, N or Q, width), and so is what returns."""
        tokens = torch.cat([context, query], dim=1)
        weights = tokens @ self.query.T @ (context @ self.key.T).mT
        if self.softmax:
            weights = torch.softmax(weights / tokens.shape[-1] ** 0.5, dim=-1)
        tokens = tokens + weights @ (context @ self.value.T @ self.out.T)
        return tokens[:, : context.shape[1]], tokens[:, context.shape[1] :]


def gradient_layer(w0: Tensor, rate: float, examples: int) -> LinearAttention:
    """The layer that does one step of gradient descent. w0: (m, d)."""
    outputs, dimension = w0.shape
    layer = LinearAttention(dimension + outputs).to(w0.dtype)
    with torch.no_grad():
        for matrix in (layer.query, layer.key):
            matrix[:dimension, :dimension] = torch.eye(dimension)
        layer.value[dimension:, :dimension] = w0
        layer.value[dimension:, dimension:] = -torch.eye(outputs)
        layer.out.copy_(torch.eye(dimension + outputs, dtype=w0.dtype) * (rate / examples))
    return layer


def attention_prediction(
    layers: Sequence[LinearAttention], w0: Tensor, x: Tensor, y: Tensor, query: Tensor
) -> Tensor:
    """What stacked layers predict for queries (tasks, Q, d): (tasks, Q, m)."""
    context = torch.cat([x, y], dim=-1)
    tokens = torch.cat([query, -query @ w0.T], dim=-1)
    for layer in layers:
        context, tokens = layer(context, tokens)
    return -tokens[..., x.shape[-1] :]


def descended(w0: Tensor, x: Tensor, y: Tensor, rate: float, steps: int) -> Tensor:
    """W after gradient descent from w0 by autograd, the witness: (tasks, m, d)."""
    w = w0.expand(len(x), *w0.shape).clone().requires_grad_()
    for _ in range(steps):
        loss = ((x @ w.mT - y) ** 2).sum() / (2 * x.shape[1])
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - rate * gradient).detach().requires_grad_()
    return w.detach()


def float_max_error(settings: int = 50) -> float:
    """Largest difference between layers and gradient descent, over random sizes, W_0 and rates."""
    rng = np.random.default_rng(0)
    largest = 0.0
    for _ in range(settings):
        dimension, outputs, steps = (int(n) for n in rng.integers(1, (17, 4, 6)))
        examples, rate = int(rng.integers(1, 65)), float(rng.uniform(0.1, 1))
        drawn = draw_tasks(rng, 20, dimension, examples, outputs=outputs, noise=0.1)
        x, y, query = (torch.from_numpy(a) for a in (drawn.x, drawn.y, drawn.query))
        w0 = torch.from_numpy(rng.standard_normal((outputs, dimension)))
        layers = [gradient_layer(w0, rate, examples)] * steps
        with torch.no_grad():
            ours = attention_prediction(layers, w0, x, y, query)
        theirs = query @ descended(w0, x, y, rate, steps).mT
        largest = max(largest, float((ours - theirs).abs().max()))
    return largest


# --- integers ---


def fixed_point(x: Floats, full: float, most: int) -> Integers:
    """Numbers of +-full as integers of +-most, clipped."""
    return np.rint(np.clip(x / full, -1, 1) * most).astype(np.int64)


def integer_step(x: Integers, y: Integers, w0: Integers, shift: int) -> tuple[Integers, bool]:
    """2^shift W in states of 24 bits after one step of rate N / 2^shift, example after example.

    x: (N, d). y: (N, m), in the unit of w0 x. w0: (m, d). Also returns whether any state met its
    limit on the way.
    """
    exact = w0 << shift
    state = arithmetic.saturate(exact)
    met = bool((state != exact).any())
    for x_i, residual in zip(x, y - x @ w0.T, strict=True):
        exact = state + residual[:, None] * x_i
        state = arithmetic.saturate(exact)
        met |= bool((state != exact).any())
    return state, met


def integer_read(state: Integers, query: Integers) -> tuple[Integers, bool]:
    """What queries (Q, d) read from a state (m, d) in 24 bits, (Q, m); whether one was cut."""
    exact = query @ state.T
    read = arithmetic.saturate(exact)
    return read, bool((read != exact).any())


def exact_predictions(
    x: Integers, y: Integers, w0: Integers, rate: Fraction, query: Integers
) -> list[list[Fraction]]:
    """Predictions (Q, m) after one gradient step, in Python's integers and fractions."""
    examples = range(len(x))
    xs, ys, starts, queries = x.tolist(), y.tolist(), w0.tolist(), query.tolist()
    rows = []
    for output, start in enumerate(starts):
        residuals = [_dot(start, xs[i]) - ys[i][output] for i in examples]
        gradients = (_dot(residuals, column) for column in zip(*xs, strict=True))
        step = zip(start, gradients, strict=True)
        rows.append([w - rate * Fraction(g, len(x)) for w, g in step])
    return [[Fraction(_dot(row, q)) for row in rows] for q in queries]


def _dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return sum(p * q for p, q in zip(a, b, strict=True))


def integer_errors(bits: int) -> dict[str, float | int]:
    """Integer steps of random tasks, `bits` bits a number, against the exact ones, from W_0 = 0.

    Returns the largest error of a prediction over the tasks that met no limit, in units of its last
    bit; the shares of tasks that met that of a state or a read; and the error relative to the step
    on the real numbers, limits and rounding included.
    """
    drawn = draw_tasks(np.random.default_rng(0), TASKS, DIMENSION, EXAMPLES)
    full, most = full_scales(drawn.seen()), 2 ** (bits - 1) - 1
    x, y, query = (fixed_point(a, f, most) for a, f in zip(drawn.seen(), full, strict=True))
    w0 = np.zeros((1, DIMENSION), dtype=np.int64)
    largest, states, reads = Fraction(0), [], []
    predicted = np.zeros(drawn.target.shape)
    for task in range(TASKS):
        state, met = integer_step(x[task], y[task], w0, 0)
        read, too = integer_read(state, query[task])
        predicted[task] = read
        states.append(met)
        reads.append(too)
        if not (met or too):
            exact = exact_predictions(x[task], y[task], w0, Fraction(EXAMPLES), query[task])
            exact_flat = (p for row in exact for p in row)
            both = zip(read.ravel().tolist(), exact_flat, strict=True)
            largest = max(largest, *(abs(ours - theirs) for ours, theirs in both))
    unit = float(np.prod(full)) / most**3
    return {
        "bits": bits,
        "max_error": float(largest),
        "states_at_limit": float(np.mean(states)),
        "reads_at_limit": float(np.mean(reads)),
        "relative_error": relative_error(predicted * unit, hebbian_read(*drawn.seen())),
    }
