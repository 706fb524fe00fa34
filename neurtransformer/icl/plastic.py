"""A decoder-only transformer whose attention is a plastic connection, and the forms it takes.

After Finkbeiner & Neftci (arXiv 2410.08711): attention without softmax is a matrix of synapses that
the context writes. A sequence is drawings with their labels and at last one without. Token i has
the keys k_i of a convolutional encoder and, as value, its label: v_i, one of `ways` neurons at full
scale, none of them for the query. One attention layer of one head reads before it writes,

    o = W k_i,    W <- W + v_i k_i^T,

and o are the logits of a label: a token is judged by what stood before it alone. One population
sends both queries and keys, as on the chip.

Nothing else changes at test time. "float" and "softmax" (the control,
``log sum_j softmax_j(k_i.k_j) v_j``) are two `Encoder`, trained alike. `quantised` makes
of "float", without more training, a spiking network of integers (integer/plastic.py); its keys go
to a state of 24 bits or to the learning engine's synapses of 8, which is what a netlist holds.
"""

import math
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from neurtransformer.errors import UserError, shortened
from neurtransformer.icl.omniglot import SIDE, Episodes, Inks
from neurtransformer.integer.arithmetic import LIMIT, NORM_BITS, WEIGHT_LIMIT, Integers
from neurtransformer.integer.plastic import (
    KEY_CENTER_LIMIT,
    KEY_MOST,
    KEY_SHIFT,
    STRIDE,
    WEIGHT_MOST,
    ConvolutionSizes,
    IntegerPlasticTransformer,
    PlasticConfig,
    check,
)
from neurtransformer.runs import BUNDLED, PLASTIC, read_json, write_json
from neurtransformer.spiking.coding import counts_from_total

Name = Literal["float", "softmax"]
NAMES: tuple[Name, ...] = get_args(Name)
SHIPPED = BUNDLED / "omniglot-plastic"

CONFIG = PlasticConfig(
    side=SIDE,
    ways=20,
    convolutions=tuple(
        ConvolutionSizes(inputs=i, outputs=o, kernel=k)
        for i, o, k in ((1, 32, 5), (32, 64, 3), (64, 64, 3), (64, 64, 3))
    ),
)

DRAWN = 0.5
"""The share of ink in a field from which it counts as full."""

BATCH = 500
EPSILON = 1e-5

INT32 = 2**31 - 1
LEAST_SCALE = 0.01
"""Of a key in integers, so that the thresholds of 10 keys and more have 24 bits."""


class Encoder(nn.Module):
    """Drawings to keys: convolutions, each with a batch normalisation that folds into weights and
    bias, then a layer norm without mean (RMSNorm), so that no key outweighs another by its length.

    A neuron's value is ``clip(z, 0, 1)``. In "softmax" hidden neurons are rectified and keys are z
    itself.
    """

    def __init__(self, name: Name, config: PlasticConfig = CONFIG) -> None:
        super().__init__()
        self.name, self.config = name, config
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c.inputs, c.outputs, c.kernel, STRIDE, c.padding, bias=False)
            for c in config.convolutions
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.outputs) for c in config.convolutions)
        self.scale = nn.Parameter(torch.full((config.keys,), 1.0 if name == "softmax" else 0.35))
        self.center = nn.Parameter(torch.zeros(config.keys))
        # of the logits; sharpens the loss and changes no order of "float"
        self.gain = nn.Parameter(torch.tensor(0.0 if name == "softmax" else math.log(2)))
        if name != "softmax":
            for norm in self.norms:
                nn.init.constant_(cast(Tensor, norm.weight), 0.5)

    def forward(self, ink: Tensor) -> Tensor:
        """ink: (n, side, side). Returns (n, keys), 0..1; for "softmax" any numbers."""
        x = (ink / DRAWN).clamp(max=1).unsqueeze(1)
        z = x
        for synapses, norm in zip(self.convolutions, self.norms, strict=True):
            z = norm(synapses(x))
            x = z.relu() if self.name == "softmax" else z.clamp(0, 1)
        z = z.flatten(1)
        z = z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPSILON)
        z = z * self.scale.abs() + self.center
        return z if self.name == "softmax" else z.clamp(0, 1)

    def logits(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query: (episodes, queries, keys). key: (episodes, tokens, keys). value: labels one-hot,
        (episodes, tokens, ways). Returns (episodes, queries, ways)."""
        if self.name == "softmax":
            scores = query @ key.transpose(1, 2) / self.config.keys**0.5 * self.gain.exp()
            return (scores.softmax(-1) @ value).clamp_min(1e-9).log()
        matrix = value.transpose(1, 2) @ key
        read = query @ matrix.transpose(1, 2)
        shots = len(value[0]) / value.shape[-1]
        return read * self.gain.exp() / shots

    @torch.no_grad()
    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each convolution with its batch normalisation in them, float64, on the
        CPU."""
        layers = []
        for synapses, norm in zip(self.convolutions, self.norms, strict=True):
            tensors = synapses.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
            weight, gain, bias, mean, variance = (cast(Tensor, x).cpu().double() for x in tensors)
            scale = gain / (variance + cast(float, norm.eps)).sqrt()
            layers.append((weight * scale[:, None, None, None], bias - mean * scale))
        return layers


Encoders = dict[Name, Encoder]


def save(folder: Path, encoders: Encoders, trained_on: tuple[str, ...]) -> None:
    """Write config.json and model.safetensors, in float16. trained_on: names of alphabets."""
    tensors = {
        f"{name}.{key}": tensor.half().contiguous()
        for name, encoder in encoders.items()
        for key, tensor in encoder.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(tensors, folder / "model.safetensors")
    # safetensors makes files that only their owner may read
    (folder / "model.safetensors").chmod(0o644)
    sizes = encoders["float"].config.model_dump()
    write_json(folder / "config.json", {"model_type": PLASTIC, "trained_on": trained_on, **sizes})


def load(folder: Path = SHIPPED) -> tuple[Encoders, tuple[str, ...]]:
    """The trained encoders of a run, and the names of the alphabets that they were trained on.

    Raises UserError if the folder holds no whole, finite ones.
    """
    values = read_json(folder / "config.json")
    if values.pop("model_type", None) != PLASTIC:
        raise UserError(
            f"{folder} holds no plastic transformer: name a folder that "
            "scripts/train_omniglot.py wrote, or omniglot-plastic"
        )
    if not (folder / "model.safetensors").is_file():  # whoever opens a pipe waits
        raise UserError(f"{folder}/model.safetensors is missing: train the network again")
    trained_on = values.pop("trained_on", None)
    if not isinstance(trained_on, list) or not all(isinstance(x, str) for x in trained_on):
        raise UserError(f"{folder}/config.json: trained_on must be names of alphabets")
    try:
        config = PlasticConfig.model_validate(values)
        if config.side != SIDE:
            raise UserError(f"{folder}/config.json: drawings have sides of {SIDE}")
        tensors = load_file(folder / "model.safetensors")
        encoders = {name: _encoder(name, config, tensors) for name in NAMES}
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{folder}/config.json: {why}") from None
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}/model.safetensors: {shortened(error)}") from None
    return encoders, tuple(trained_on)


def _encoder(name: Name, config: PlasticConfig, tensors: dict[str, Tensor]) -> Encoder:
    for i, c in enumerate(config.convolutions):
        # before any memory is taken for sizes that are not there
        key = f"{name}.convolutions.{i}.weight"
        if tensors[key].shape != (c.outputs, c.inputs, c.kernel, c.kernel):
            raise ValueError(f"{key} does not fit config.json")
    encoder = Encoder(name, config).eval()
    prefix = f"{name}."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    encoder.load_state_dict(own)
    for key, tensor in encoder.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{prefix}{key} holds NaN or infinite values")
    return encoder.requires_grad_(False)


@torch.no_grad()
def keys(encoder: Encoder, ink: Inks) -> Tensor:
    """What the encoder makes of drawings (n, side, side): (n, keys), on the encoder's device."""
    batches = torch.from_numpy(ink).split(BATCH)
    return torch.cat([encoder(batch.to(encoder.scale.device)) for batch in batches])


# --- in integers ---


def quantised(encoder: Encoder, ways: int = 1) -> IntegerPlasticTransformer:
    """The integer network of a trained "float": even 8-bit weights, membranes of 24 bits. Wherever
    the encoder is, the integers are computed on the CPU, and are the same.

    ways: how many labels it must have at least. Raises UserError for weights that integers cannot
    have.
    """
    most = max(ways, encoder.config.ways)
    config = encoder.config.model_copy(update={"ways": most})
    tensors: dict[str, Tensor] = {}
    layers = encoder.folded()
    for i, (weight, bias) in enumerate(layers):
        last = i == len(layers) - 1
        rows = weight.abs().amax((1, 2, 3)).clamp_min(1e-9)
        # channels that are normalised together need one unit
        unit = (rows.max().expand_as(rows) if last else rows) / WEIGHT_LIMIT
        tensors[f"conv{i}.weight"] = 2 * (weight / unit[:, None, None, None] / 2).round()
        # inputs are counts, so membranes are the largest of them times z
        scale = config.most_in(i) / unit
        tensors[f"conv{i}.bias"] = bias * scale
        if not last:
            tensors[f"neurons{i}.theta"] = (scale / config.hidden_most).clamp_min(1)
    tensors["norm.epsilon"] = (EPSILON * config.keys * scale[:1] ** 2).clamp_max(LIMIT)
    length = 2 ** (NORM_BITS + KEY_SHIFT) / config.keys**0.5
    # from (channel, row, column) to Lava's line of neurons
    shape = -1, config.sides[-1], config.sides[-1]
    key_scale, center = (
        x.detach().cpu().double().view(shape).permute(2, 1, 0).flatten()
        for x in (encoder.scale, encoder.center)
    )
    key_scale = key_scale.abs().clamp_min(LEAST_SCALE)
    tensors["keys.theta"] = length / KEY_MOST / key_scale
    tensors["keys.bias"] = (length * center / key_scale).clamp(-KEY_CENTER_LIMIT, KEY_CENTER_LIMIT)
    for name in ("membranes", "logits"):
        # as they are: times 4, and shifted by 2
        tensors |= {f"{name}.mantissa": torch.tensor([4]), f"{name}.shift": torch.tensor([2])}
    tensors["logits.bias"] = torch.tensor([0])
    integers: dict[str, NDArray] = {
        # what is out of range is told below
        f"decoder.{name}": x.double().round().clamp(-INT32, INT32).numpy().astype(_dtype(name))
        for name, x in tensors.items()
    }

    def complain(complaint: str) -> NoReturn:
        raise UserError(f"these weights do not become integers ({complaint}): train them again")

    check(config, integers, complain)
    return IntegerPlasticTransformer(config, integers)


def _dtype(name: str) -> str:
    return "int16" if name.endswith("weight") else "int32"


def ink_counts(ink: Inks, timesteps: int) -> Integers:
    """Drawings (n, side, side) as the spike counts in which they are sent."""
    total = torch.from_numpy(ink) / DRAWN * timesteps
    return counts_from_total(total, timesteps, False).long().numpy()


def key_counts(model: IntegerPlasticTransformer, ink: Integers) -> Integers:
    """Of drawings in counts (n, side, side): (n, keys), 0..64."""
    return np.concatenate([model.keys(ink[i : i + BATCH]) for i in range(0, len(ink), BATCH)])


# --- attention in its forms: key counts of an episode -> logits ---


def float_reads(encoder: Encoder, keys: Tensor, episodes: Episodes) -> Tensor:
    """Logits (episodes, ways) from `keys` of all drawings (n, keys)."""
    value = one_hot(episodes, keys.device)
    query, context = keys[episodes.query][:, None], keys[episodes.shots]
    return encoder.logits(query, context, value)[:, 0]


def one_hot(episodes: Episodes, device: torch.device) -> Tensor:
    """Labels of the shots, (episodes, shots, ways) float32 on a device."""
    return F.one_hot(torch.from_numpy(episodes.labels), episodes.ways).float().to(device)


def tokens(episodes: Episodes) -> tuple[Integers, Integers]:
    """Indices of the drawings of all tokens and their labels, (episodes, tokens): the context, and
    then the query, whose label is -1."""
    drawings = np.concatenate([episodes.shots, episodes.query[:, None]], axis=1)
    labels = np.pad(episodes.labels, ((0, 0), (0, 1)), constant_values=-1)
    return drawings, labels


def integer_reads(
    model: IntegerPlasticTransformer,
    counts: Integers,
    episodes: Episodes,
    weight_most: int = WEIGHT_MOST,
) -> Integers:
    """What the query reads, (episodes, ways), from the learning engine's synapses.

    counts: of the keys of all drawings, (n, keys). weight_most: `LIMIT` for a state of 24 bits in
    the place of those synapses.
    """
    drawings, labels = tokens(episodes)
    return model.query_reads(counts[drawings], labels, weight_most)[:, : episodes.ways]
