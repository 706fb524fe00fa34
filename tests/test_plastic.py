"""What the plastic transformer's forms and controls say, against the same written out."""

import copy

import numpy as np
import pytest
import torch

from neurtransformer.icl import evaluate, plastic
from neurtransformer.icl.omniglot import Episodes, draw_episodes
from neurtransformer.integer.plastic import WEIGHT_MOST


@pytest.fixture(scope="module")
def encoders() -> plastic.Encoders:
    return plastic.load()[0]


def test_each_form_is_read_from_its_own_keys(
    encoders: plastic.Encoders,
) -> None:
    """On drawings of noise, where forms differ; shown so often that plastic weights saturate."""
    ink = np.random.default_rng(0).random((12, 28, 28)).astype(np.float32)
    evaluation = evaluate.Evaluation(encoders, ink, 5)
    rng = np.random.default_rng(1)
    shots, labels = rng.integers(0, 12, (300, 60)), rng.integers(0, 5, (300, 60))
    drawn = Episodes(shots, labels, rng.integers(0, 12, 300), np.zeros(300, dtype=int), 5)
    keys, counts = plastic.keys(encoders["float"], ink), evaluation.counts
    reads = {
        "float": plastic.float_reads(encoders["float"], keys, drawn).numpy(),
        "softmax": plastic.float_reads(
            encoders["softmax"], plastic.keys(encoders["softmax"], ink), drawn
        ).numpy(),
        "linear_readout": evaluate.linear_readout(keys, drawn).numpy(),
    }
    # weights of a label, written out
    weights = np.zeros((300, 5, counts.shape[1]), dtype=np.int64)
    for i, (seen, told) in enumerate(zip(shots, labels, strict=True)):
        np.add.at(weights[i], told, counts[seen])
    query = 2 * counts[drawn.query][:, :, None]
    reads["quantised"] = (weights @ query)[..., 0]
    reads["lava"] = (np.minimum(weights, WEIGHT_MOST) @ query)[..., 0]
    found = evaluation._labels(drawn)
    for name, read in reads.items():
        assert (found[name] == read.argmax(-1)).mean() > 0.99, name
    answers = {name: tuple(x) for name, x in found.items()}
    assert len(set(answers.values())) == len(evaluate.FORMS)


def test_half_a_field_of_ink_is_as_good_as_all_of_it(encoders: plastic.Encoders) -> None:
    shares = np.array([0, 0.125, 0.25, 0.5, 0.75, 1], np.float32)
    assert plastic.ink_counts(shares, 8).tolist() == [0, 2, 4, 8, 8, 8]
    ink = torch.rand(3, 28, 28).round()
    for encoder in encoders.values():
        assert torch.equal(encoder(ink), encoder(ink / 2))


def test_the_sign_of_a_scale_says_nothing(encoders: plastic.Encoders) -> None:
    turned, ink = copy.deepcopy(encoders["float"]), torch.rand(3, 28, 28)
    turned.scale.data[::2].neg_()
    assert torch.equal(turned(ink), encoders["float"](ink))
    ours, theirs = (plastic.quantised(e).tensors for e in (turned, encoders["float"]))
    assert all(np.array_equal(ours[name], x) for name, x in theirs.items())


def test_controls() -> None:
    drawn = draw_episodes(3, 2, 3, 1, 20, 0)
    pixels = torch.eye(3).repeat_interleave(2, 0) + 0.1 * torch.rand(6, 3)
    assert np.array_equal(evaluate.nearest(pixels, drawn), drawn.answer)
    logits = evaluate.linear_readout(pixels, drawn).numpy()
    assert np.array_equal(logits.argmax(-1), drawn.answer)


def test_interval() -> None:
    low, high = evaluate.interval(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-3) and high == pytest.approx(0.5962, abs=1e-3)
    assert evaluate.interval(10, 10)[1] == pytest.approx(1)
