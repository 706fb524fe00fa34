"""A decoder-only transformer whose attention is a plastic connection, and the forms it takes.

After Finkbeiner & Neftci (arXiv 2410.08711): attention without softmax is a matrix of synapses that
the context writes. A sequence is drawings with their labels and at last one without. Token i has
the counts k_i of a convolutional encoder and, as value, its label: v_i, one of `ways` neurons at
full scale, none of them for the query. One attention layer of one head reads before it writes,

    o = W k_i^2,    W <- W + v_i (k_i^2)^T,

and o are the logits of a label: a token is judged by what stood before it alone. One population
sends both queries and keys, as on the chip (loihi/plasticity.py). Counts act squared, as in the SSA
(spiking/attention.py), because the n-th spike weighs 2n - 1; so that products are linear in what
drives the neurons z, the n-th spike here also takes 2n from the membrane instead of 1: the count is
``floor(T sqrt(z) + 1/2)``. The SSA's witness writes one row more, which labels do not need.

Nothing else changes at test time. The forms: "float", "counts" (spiking neurons), "softmax" (the
control, ``log sum_j softmax_j(k_i.k_j) v_j``) are three `Encoder`, trained alike; `IntegerEncoder`
has the weights of "counts" in 8 bits, and its counts go to the 24-bit SSA (`integer_reads`), to the
learning engine in NumPy (`engine_reads`) or to Lava's own (`lava_reads`).
"""

import math
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from neurtransformer.icl.omniglot import SIDE, Episodes, Inks
from neurtransformer.integer import arithmetic
from neurtransformer.integer.arithmetic import NORM_BITS, WEIGHT_LIMIT, Integers
from neurtransformer.loihi import learning
from neurtransformer.loihi.learning import FORMS, PlasticHeads
from neurtransformer.runs import BUNDLED
from neurtransformer.spiking.attention import NO_FORGETTING
from neurtransformer.spiking.coding import counts_from_total, surrogate_counts

Name = Literal["float", "counts", "softmax"]
NAMES: tuple[Name, ...] = get_args(Name)
WEIGHTS = BUNDLED / "omniglot-plastic" / "model.safetensors"

TIMESTEPS = 8
CONVOLUTIONS = ((1, 32, 5), (32, 64, 3), (64, 64, 3), (64, 64, 3))
"""Channels in and out and the side of the kernel; each halves the sides of its picture."""

KEYS = CONVOLUTIONS[-1][1] * math.ceil(SIDE / 2 ** len(CONVOLUTIONS)) ** 2

DRAWN = 0.5
"""The share of ink in a field from which it counts as full."""

BATCH = 500
EPSILON = 1e-5

KEY_SHIFT = 4
"""Bits by which normalised membranes shift left, so that thresholds are precise."""


class Encoder(nn.Module):
    """Drawings to squared keys: convolutions, each with a batch normalisation that folds into
    weights and bias, then a layer norm without mean (RMSNorm), so that no key outweighs another by
    its length.

    A neuron's value is ``clip(z, 0, 1)``, of which "counts" has T + 1 levels. In "softmax" hidden
    neurons are rectified and keys are z itself, not squared.
    """

    def __init__(self, name: Name) -> None:
        super().__init__()
        self.name = name
        self.convolutions = nn.ModuleList(
            nn.Conv2d(ins, outs, side, stride=2, padding=side // 2, bias=False)
            for ins, outs, side in CONVOLUTIONS
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outs) for _, outs, _ in CONVOLUTIONS)
        self.scale = nn.Parameter(torch.full((KEYS,), 1.0 if name == "softmax" else 0.35))
        self.center = nn.Parameter(torch.zeros(KEYS))
        # of the logits; sharpens the loss and changes no order of "float" and "counts"
        self.gain = nn.Parameter(torch.tensor(0.0 if name == "softmax" else math.log(2)))
        if name != "softmax":
            for norm in self.norms:
                nn.init.constant_(cast(Tensor, norm.weight), 0.5)

    def forward(self, ink: Tensor) -> Tensor:
        """ink: (n, 28, 28). Returns (n, KEYS), 0..1; for "softmax" any numbers."""
        x = self.levels((ink / DRAWN).clamp(max=1)).unsqueeze(1)
        z = x
        for synapses, norm in zip(self.convolutions, self.norms, strict=True):
            z = norm(synapses(x))
            x = z.relu() if self.name == "softmax" else self.levels(z)
        z = z.flatten(1)
        z = z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPSILON)
        z = z * self.scale.abs() + self.center
        if self.name == "softmax":
            return z
        squared = z.clamp(0, 1)
        if self.name == "counts":
            rounded = self.levels(squared.sqrt()).square()
            # the gradient of a root has no end
            squared = squared + (rounded - squared).detach()
        return squared

    def levels(self, z: Tensor) -> Tensor:
        """What neurons driven by z send, 0..1."""
        if self.name != "counts":
            return z.clamp(0, 1)
        total = z * TIMESTEPS
        code = surrogate_counts if self.training else counts_from_total
        return code(total, TIMESTEPS, False) / TIMESTEPS

    def logits(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query: (episodes, queries, KEYS). key: (episodes, tokens, KEYS). value: labels one-hot,
        (episodes, tokens, ways). Returns (episodes, queries, ways)."""
        if self.name == "softmax":
            scores = query @ key.transpose(1, 2) / KEYS**0.5 * self.gain.exp()
            return (scores.softmax(-1) @ value).clamp_min(1e-9).log()
        matrix = value.transpose(1, 2) @ key
        read = query @ matrix.transpose(1, 2)
        shots = len(value[0]) / value.shape[-1]
        return read * self.gain.exp() / shots

    @torch.no_grad()
    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each convolution with its batch normalisation in them, float64."""
        layers = []
        for synapses, norm in zip(self.convolutions, self.norms, strict=True):
            tensors = synapses.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
            weight, gain, bias, mean, variance = (cast(Tensor, x).double() for x in tensors)
            scale = gain / (variance + cast(float, norm.eps)).sqrt()
            layers.append((weight * scale[:, None, None, None], bias - mean * scale))
        return layers


def load(path: Path = WEIGHTS) -> dict[Name, Encoder]:
    """The trained encoders; safetensors in float16, names such as `counts.norms.0.weight`."""
    tensors = load_file(path)
    encoders = {}
    for name in NAMES:
        encoder = Encoder(name).eval()
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        encoder.load_state_dict(own)
        encoders[name] = encoder.requires_grad_(False)
    return encoders


@torch.no_grad()
def keys(encoder: Encoder, ink: Inks) -> Tensor:
    """What the encoder makes of drawings (n, 28, 28): (n, KEYS)."""
    return torch.cat([encoder(batch) for batch in torch.from_numpy(ink).split(BATCH)])


class IntegerEncoder:
    """An encoder of "counts" in integers: even 8-bit weights, spike counts, membranes of 24 bits.

    layers: weight (out, in, side, side) and bias (out,) of each convolution. thresholds: of the
    neurons behind all but the last; then those of the keys (KEYS,), and `center`, what they get
    beside the normalised membrane. All int64.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.layers: list[tuple[Integers, Integers]] = []
        self.thresholds: list[Integers] = []
        layers = encoder.folded()
        for i, (weight, bias) in enumerate(layers):
            last = i == len(layers) - 1
            rows = weight.abs().amax((1, 2, 3)).clamp_min(1e-9)
            # channels that are normalised together need one unit
            unit = (rows.max().expand_as(rows) if last else rows) / WEIGHT_LIMIT
            whole = 2 * (weight / unit[:, None, None, None] / 2).round()
            # inputs are counts, so membranes are T times z
            self.layers.append((_whole(whole), _whole(bias * TIMESTEPS / unit)))
            if not last:
                self.thresholds.append(_whole((1 / unit).clamp_min(1)))
        length = 2 ** (NORM_BITS + KEY_SHIFT) / KEYS**0.5
        scale = encoder.scale.detach().abs().clamp_min(1e-3)
        self.thresholds.append(_whole(length / TIMESTEPS**2 / scale))
        self.center = _whole(length * encoder.center.detach() / scale)
        self.epsilon = round(EPSILON * KEYS * (TIMESTEPS / float(unit[0])) ** 2)

    def __call__(self, ink: Inks) -> Integers:
        """Key counts 0..T of drawings (n, 28, 28): (n, KEYS)."""
        batches = torch.from_numpy(ink).split(BATCH)
        return np.concatenate([self._counts(batch) for batch in batches])

    def _counts(self, ink: Tensor) -> Integers:
        x = counts_from_total(ink / DRAWN * TIMESTEPS, TIMESTEPS, False).unsqueeze(1).numpy()
        membrane = np.zeros(0, dtype=np.int64)
        for i, (weight, bias) in enumerate(self.layers):
            if i > 0:
                theta = self.thresholds[i - 1][:, None, None]
                x = arithmetic.fire_counts(membrane, theta, TIMESTEPS, False)
            # sums of at most 2^21 are exact in float32
            spikes, synapses = (torch.from_numpy(y.astype(np.float32)) for y in (x, weight))
            u = F.conv2d(spikes, synapses, stride=2, padding=weight.shape[-1] // 2)
            membrane = arithmetic.saturate(u.long().numpy() + bias[:, None, None])
        z = arithmetic.normed(membrane.reshape(len(membrane), -1), self.epsilon) << KEY_SHIFT
        return fire_roots(z + self.center, self.thresholds[-1])


def fire_roots(z: Integers, theta: Integers) -> Integers:
    """Counts ``clip(floor(sqrt(z / theta) + 1/2), 0, T)``: the n-th spike is fired if the membrane
    reaches (n - 1/2)^2 theta. z: (..., n). theta: (n,).
    """
    steps = (2 * np.arange(TIMESTEPS) + 1) ** 2
    return (4 * z[..., None] >= steps * theta[:, None]).sum(-1)


def _whole(x: Tensor) -> Integers:
    return x.round().long().numpy()


# --- attention in its forms: key counts of an episode -> logits ---


def float_reads(encoder: Encoder, keys: Tensor, episodes: Episodes) -> Tensor:
    """Logits (episodes, ways) from `keys` of all drawings (n, KEYS)."""
    value = F.one_hot(torch.from_numpy(episodes.labels), episodes.ways).float()
    query, context = keys[episodes.query][:, None], keys[episodes.shots]
    return encoder.logits(query, context, value)[:, 0]


def sequences(counts: Integers, episodes: Episodes) -> tuple[Integers, Integers]:
    """Key and value counts of all tokens, (episodes, tokens, 1, KEYS) and (..., 1, ways).

    counts: of all drawings, (n, KEYS). The last token is the query; its value neurons are silent.
    """
    tokens = np.concatenate([episodes.shots, episodes.query[:, None]], axis=1)
    value = np.zeros((*tokens.shape, episodes.ways), dtype=np.int64)
    np.put_along_axis(value[:, :-1], episodes.labels[..., None], TIMESTEPS, axis=-1)
    return counts[tokens][:, :, None], value[:, :, None]


def forgetting() -> tuple[Integers, Integers]:
    """Shift and present weight of the one head: it never forgets, and sees just the past."""
    return np.array([NO_FORGETTING]), np.array([0])


def exponent(shots: int) -> Integers:
    """Of the weights in the learning engine, for the one head: they fill their range.

    A product of full scale is 2^(9 + exponent) and a weight gets `shots` of them; it saturates
    where nearly all of them are of full scale. Up to 7 shots every product is a whole number, so
    that nothing is rounded; see loihi/learning.py.
    """
    return np.array([-1 - (shots.bit_length() - 1)])


def integer_reads(counts: Integers, episodes: Episodes) -> Integers:
    """What the query reads from the 24-bit SSA, (episodes, ways)."""
    key, value = (x.swapaxes(1, 2) for x in sequences(counts, episodes))
    state = np.zeros((len(key), 1, episodes.ways + 1, KEYS), dtype=np.int64)
    reads, _ = arithmetic.ssa_recurrent(key, key, value, forgetting(), TIMESTEPS, state)
    return reads[:, 0, -1, :-1]


def engine_reads(counts: Integers, episodes: Episodes) -> Integers:
    """What the query reads from the learning engine in NumPy, (episodes, ways)."""
    key, value = (x.swapaxes(0, 1) for x in sequences(counts, episodes))
    setting = forgetting(), exponent(episodes.shots_each), TIMESTEPS
    heads = PlasticHeads(*setting, FORMS["lava"])
    read = np.zeros(0)
    for k, v, draw in zip(key, value, learning.lava_draws(len(key)), strict=True):
        read, _ = heads.token(k, k, v, draw)
    return read[:, 0, :-1].astype(np.int64)


def lava_mismatches(counts: Integers, episodes: Episodes, number: int) -> tuple[int, int]:
    """The first episodes in Lava itself, against the learning engine in NumPy.

    Returns how many integers were compared, reads and weights after every token, and how many
    differ. Raises UserError without Lava, LavaFailed.
    """
    from neurtransformer.loihi.plasticity import run_plastic_ssa

    setting = forgetting(), exponent(episodes.shots_each), TIMESTEPS
    compared = differ = 0
    for key, value in zip(*(x[:number] for x in sequences(counts, episodes)), strict=True):
        theirs = run_plastic_ssa(key, key, value, *setting)
        ours = learning.plastic_ssa(key, key, value, *setting, FORMS["lava"])
        for mine, other in zip(ours, theirs, strict=True):
            compared += other.size
            differ += int(np.count_nonzero(mine != other))
    return compared, differ
