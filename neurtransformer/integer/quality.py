"""What the integers cost: the integer network beside the spiking and the dense one."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loss import perplexity
from neurtransformer.memory import is_large
from neurtransformer.spiking.innate import dense_output
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import snapping_anew


@torch.no_grad()
def evaluate_integer(
    model: IntegerGPT2, spiking: SpikingLanguageModel, dense: PreTrainedModel | None, ids: Tensor
) -> dict[str, Any]:
    """Perplexities on the same tokens, ids (n, length) int64 on the CPU, block by block. Each
    network of torch computes where it is.

    Returns `ppl_integer`, `ppl_spiking`, `ppl_ratio_to_spiking`, `tokens`, and where there is a
    dense model `ppl_dense` and `ppl_ratio`, integer to dense.
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "integer": model,
        "spiking": lambda x: spiking(x.to(spiking.device)).logits.cpu(),
    }
    first = spiking.config.first_token
    if dense is not None:
        forms["dense"] = lambda x: dense_output(dense, x.to(dense.device), first)[0].cpu()
    # beside the integers; of smaller networks the copy is not worth the time
    with snapping_anew(spiking) if is_large(spiking) else nullcontext():
        ppl = {name: perplexity(form, ids) for name, form in forms.items()}
    values = {f"ppl_{name}": value for name, value in ppl.items()}
    values["ppl_ratio_to_spiking"] = ppl["integer"] / ppl["spiking"]
    if dense is not None:
        values["ppl_ratio"] = ppl["integer"] / ppl["dense"]
    return {**values, "tokens": ids.numel()}
