"""Few-shot accuracy of every form of the plastic transformer, and of its controls."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from neurtransformer.icl import plastic
from neurtransformer.icl.omniglot import Episodes, Indices, Inks
from neurtransformer.integer.arithmetic import LIMIT, Integers

FORMS = ("float", "quantised", "lava", "softmax", "linear_readout", "nearest_pixel")

BATCH = 100
"""Episodes at once: what they need then stays in a cache."""

READOUT_STEPS = 100
READOUT_RATE = 5.0


class Evaluation:
    """Drawings (n, side, side), encoded once by each network for all episodes of them.

    Encoders compute where they are; integers and pixels are compared on the CPU.
    ways: the most that an episode has.
    """

    def __init__(self, encoders: plastic.Encoders, ink: Inks, ways: int) -> None:
        self.float, self.softmax = encoders["float"], encoders["softmax"]
        self.keys = plastic.keys(self.float, ink)
        self.softmax_keys = plastic.keys(self.softmax, ink)
        self.model = plastic.quantised(encoders["float"], ways)
        self.ink = plastic.ink_counts(ink, self.model.config.timesteps)
        self.counts = plastic.key_counts(self.model, self.ink)
        self.pixels = torch.from_numpy(ink).flatten(1)

    def measure(self, episodes: Episodes) -> dict[str, Any]:
        """Accuracies and their 95 % intervals.

        Returns `ways`, `shots`, `episodes`, `accuracy` and `interval` (by form).
        """
        right = dict.fromkeys(FORMS, 0)
        for batch in episodes.batches(BATCH):
            for form, labels in self._labels(batch).items():
                right[form] += int((labels == batch.answer).sum())
        number = len(episodes.answer)
        return {
            "ways": episodes.ways,
            "shots": episodes.shots_each,
            "episodes": number,
            "accuracy": {form: count / number for form, count in right.items()},
            "interval": {form: interval(count, number) for form, count in right.items()},
        }

    def in_lava(self, episodes: Episodes, number: int) -> dict[str, int] | None:
        """The first episodes in Lava, all of the network, through a netlist that is thrown away.

        Returns `episodes`, and how many integers were `compared` and are `mismatches`; None for
        episodes that are too large to be compared. Raises UserError without Lava, LavaFailed.
        """
        from neurtransformer.janitor import temporary_folder
        from neurtransformer.loihi.episode import is_comparable, simulate_episode
        from neurtransformer.loihi.netlist import read_plastic, write

        total = {"episodes": number, "compared": 0, "mismatches": 0}
        drawings, labels = plastic.tokens(episodes)
        config = self.model.config
        if not is_comparable(config, drawings.shape[1], phase=config.timesteps):
            return None
        with temporary_folder() as folder:
            write(folder, self.model, None, "binary")
            netlist = read_plastic(folder)
            for shown, label in zip(drawings[:number], labels[:number], strict=True):
                found = simulate_episode(netlist, self.ink[shown], label, "lava")
                total["compared"] += found["compared"]
                total["mismatches"] += found["mismatches"]
        return total

    def _labels(self, episodes: Episodes) -> dict[str, Indices]:
        """What each of `FORMS` says the query is, (episodes,)."""
        return {
            "float": _best(plastic.float_reads(self.float, self.keys, episodes)),
            "quantised": _best(plastic.integer_reads(self.model, self.counts, episodes, LIMIT)),
            "lava": _best(plastic.integer_reads(self.model, self.counts, episodes)),
            "softmax": _best(plastic.float_reads(self.softmax, self.softmax_keys, episodes)),
            "linear_readout": _best(linear_readout(self.keys, episodes)),
            "nearest_pixel": nearest(self.pixels, episodes),
        }


def _best(logits: Tensor | Integers) -> Indices:
    return np.asarray(logits.cpu() if isinstance(logits, Tensor) else logits).argmax(-1)


def interval(right: int, number: int) -> list[float]:
    """Wilson's 95 % interval of a share, [low, high]."""
    z = 1.96
    share = right / number
    middle = share + z * z / (2 * number)
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return [(middle - half) / (1 + z * z / number), (middle + half) / (1 + z * z / number)]


def nearest(pixels: Tensor, episodes: Episodes) -> Indices:
    """The label of the shot with the least squared distance; pixels: (n, pixels)."""
    distance = torch.cdist(pixels[episodes.query][:, None], pixels[episodes.shots])[:, 0]
    index = distance.argmin(-1, keepdim=True).numpy()
    return np.take_along_axis(episodes.labels, index, axis=1)[:, 0]


def linear_readout(keys: Tensor, episodes: Episodes) -> Tensor:
    """Logits (episodes, ways) of a linear classifier trained on the shots of each episode alone.

    Gradient descent from zero weights on the cross-entropy, on keys (n, keys) of unit length.
    """
    keys = F.normalize(keys, dim=-1)
    context = keys[episodes.shots]
    labels = plastic.one_hot(episodes, keys.device)
    weight = keys.new_zeros(len(context), episodes.ways, keys.shape[1])
    for _ in range(READOUT_STEPS):
        error = (context @ weight.transpose(1, 2)).softmax(-1) - labels
        weight -= READOUT_RATE / context.shape[1] * error.transpose(1, 2) @ context
    return (weight @ keys[episodes.query][..., None])[..., 0]
