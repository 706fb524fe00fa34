"""A raster that a person can read: the spikes of some neurons of some layers on one sentence.

Counts are noted, and time steps follow from them: a neuron that has integrated fires by itself. One
that is rate coded fires until its count is spent, one that is phase coded sends the digits of its
count, the highest first. Neurons are taken at even distances, not by how much they fire.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from neurtransformer.measure.sentence import sentence
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron

LAYERS = 4
NEURONS = 3
"""How many layers are shown at most, and neurons of each population in each of them."""

POPULATIONS = (
    "attn.encode",
    "attn.query",
    "attn.key",
    "attn.value",
    "attn.merged",
    "mlp.encode",
    "mlp.hidden",
)


@torch.no_grad()
def raster(
    model: SpikingLanguageModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """Counts on the sentence, token by token.

    Returns `tokens` (text of each) and `rows`, of each population of each layer that is shown:
    `layer`, `population`, `coding`, `digits`, `timesteps`, `per_step` (spikes of a neuron in a step
    at most), `neurons` (their numbers) and `counts` (of each neuron, a text of whole numbers, one a
    token). None for a model that the sentence does not fit.
    """
    read = sentence(model, tokenizer)
    if read is None:
        return None
    rows: list[dict[str, Any]] = []

    def hear(layer: int, name: str) -> Callable[..., None]:
        def listen(module: CodingNeuron, args: Any, output: Tensor) -> None:
            chosen = spread(output.shape[-1], NEURONS + 2)[1:-1]
            columns = output[0, :, chosen].T.int().tolist()
            rows.append(
                {
                    "layer": layer,
                    "population": name,
                    "coding": module.coding,
                    "digits": module.digits,
                    "timesteps": module.timesteps,
                    "per_step": module.per_step,
                    "neurons": chosen,
                    # one line of JSON for each, not one for each number
                    "counts": [" ".join(map(str, counts)) for counts in columns],
                }
            )

        return listen

    hooks = [
        model.blocks[layer].get_submodule(name).register_forward_hook(hear(layer, name))
        for layer in spread(len(model.blocks), LAYERS)
        for name in POPULATIONS
    ]
    try:
        model(read.ids, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return {"tokens": read.tokens[-read.ids.shape[1] :], "rows": rows}


def spread(size: int, most: int) -> list[int]:
    """At most `most` of the numbers below `size`, at even distances, the first and the last among
    them."""
    return sorted({round(i * (size - 1) / (most - 1)) for i in range(most)})


def spike_train(count: int, row: Mapping[str, Any]) -> list[int]:
    """The spikes that send a count of the neurons of a row, step by step; negative are those of the
    neuron of the other sign, and digits of the other sign."""
    sign, left = (-1, -count) if count < 0 else (1, count)
    timesteps, per_step = row["timesteps"], row["per_step"]
    if row["coding"] == "phase" and row["digits"] == "signed":
        spikes = []
        for weight in (1 << step for step in reversed(range(timesteps))):
            # see `coding.signed_digit`
            digit = (3 * left > 2 * weight) - (3 * left < -2 * weight)
            spikes.append(sign * digit)
            left -= digit * weight
        return spikes
    if row["coding"] == "phase":
        return [sign * (left >> step & 1) for step in reversed(range(timesteps))]
    return [sign * min(max(left - per_step * step, 0), per_step) for step in range(timesteps)]
