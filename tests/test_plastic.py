"""What the plastic transformer's forms and controls say, against the same written out."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from neurtransformer.icl import evaluate, plastic
from neurtransformer.icl.omniglot import Episodes, draw_episodes
from neurtransformer.integer.plastic import WEIGHT_MOST
from neurtransformer.loihi import episode


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
    right = {name: (labels == drawn.answer).mean() for name, labels in found.items()}
    assert evaluation.measure(drawn)["accuracy"] == pytest.approx(right)
    assert min(right.values()) > 0 and max(right.values()) < 1


def test_what_is_too_large_for_lava_is_not_begun(
    encoders: plastic.Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plastic weights of 3 tokens, 8 steps each, are the most."""
    drawn = draw_episodes(3, 2, 2, 1, 5, 0)
    evaluation = evaluate.Evaluation(encoders, np.zeros((6, 28, 28), np.float32), drawn.ways)
    config = evaluation.model.config
    begun = {"compared": 7, "mismatches": 1}
    monkeypatch.setattr(episode, "simulate_episode", lambda *_: begun)
    weights = 3 * 8 * config.ways * config.keys
    for most, expected in (
        (weights, {"episodes": 2, "compared": 14, "mismatches": 2}),
        (weights - 1, None),
    ):
        monkeypatch.setattr(episode, "MOST_WEIGHTS", most)
        assert evaluation.in_lava(drawn, 2) == expected


def test_a_folded_convolution_is_the_one_with_its_normalisation() -> None:
    """On channels that hardly vary too, where what is added to their variance counts."""
    torch.manual_seed(0)
    encoder: Any = plastic.Encoder("float").eval()
    for norm in encoder.norms:
        for x in norm.state_dict().values():
            if x.is_floating_point():
                x.uniform_(-1, 1)
        norm.running_var.uniform_(-7, 0)
        norm.running_var.copy_(10**norm.running_var)
    folded = encoder.folded()
    for synapses, norm, (weight, bias) in zip(
        encoder.double().convolutions, encoder.norms, folded, strict=True
    ):
        x = torch.rand(2, synapses.in_channels, 9, 9, dtype=torch.float64)
        ours = F.conv2d(x, weight, bias, synapses.stride, synapses.padding)
        assert torch.allclose(ours, norm(synapses(x)), rtol=1e-9)


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


def test_the_linear_readout_learns_its_shots_by_heart() -> None:
    """By gradient descent as autograd has it; sums over the shots of a label do not."""
    torch.manual_seed(0)
    keys = torch.randn(12, 16)
    labels = np.tile(np.arange(3), 4)
    shots = np.tile(np.arange(12), (12, 1))
    drawn = Episodes(shots, np.tile(labels, (12, 1)), np.arange(12), labels, 3)
    logits = evaluate.linear_readout(keys, drawn)
    assert np.array_equal(logits.argmax(-1).numpy(), labels)
    unit, told = F.normalize(keys, dim=-1), torch.from_numpy(labels)
    sums = F.one_hot(told).float().T @ unit
    assert not np.array_equal((unit @ sums.T).argmax(-1).numpy(), labels)
    weight = torch.zeros(3, 16, requires_grad=True)
    for _ in range(100):
        (slope,) = torch.autograd.grad(F.cross_entropy(unit @ weight.T, told), weight)
        weight = (weight - 5 * slope).detach().requires_grad_()
    assert torch.allclose(logits, unit @ weight.T, atol=1e-3)


def test_interval() -> None:
    low, high = evaluate.interval(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-3) and high == pytest.approx(0.5962, abs=1e-3)
    assert evaluate.interval(10, 10)[1] == pytest.approx(1)
