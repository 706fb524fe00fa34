"""An estimate of energy per token: operation counts times published constants.

Nothing is measured on a chip. Each operation that `operations` counts is multiplied by what
Horowitz measured for it in 45 nm silicon, with spikes counted on text. Usual estimates of spiking
transformers count the synapses alone; here forgetting, neuron updates and normalisation are counted
too, and what both models do alike (LayerNorm, embeddings, GELU, LM head) stands in both.

The energy of arithmetic and that of memory traffic are two separate numbers: the first is what the
paper reports, the second is ten times larger and goes another way. `bill` adds up everything, at
the widths that numbers have.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from neurtransformer.measure.bill import bill
from neurtransformer.measure.counts import LayerSpikes, Ops, Shape, total
from neurtransformer.measure.operations import Forms, dense_attention, operations
from neurtransformer.measure.prices import DRAM_PJ
from neurtransformer.measure.quality import SpikeCounter, counting_spikes
from neurtransformer.spiking.model import SpikingLanguageModel

PAPER_REDUCTION_PERCENT = (64.71, 85.28)
"""The attention block of GPT-2 in NeurTransformer, arXiv 2510.00133: least and largest saving."""

SOURCE = "M. Horowitz, Computing's energy problem, ISSCC 2014, fig. 1.1.9 (45 nm, 0.9 V)"
SRAM_PJ = 100.0
"""One 64-bit access to a 1 MB SRAM; the same table has 10 for 8 kB and 20 for 32 kB."""
WORD_BITS = 32
"""Width of every weight, cache entry, state and membrane, in every form."""


# --- prices ---


@dataclass(frozen=True)
class Prices:
    """Energy of one operation, pJ. A MAC is a multiplication and an addition."""

    number_format: str
    mac_pj: float
    ac_pj: float


FLOAT = Prices("32-bit float", mac_pj=4.6, ac_pj=0.9)
"""What the paper uses: 3.7 for the product, 0.9 for the sum."""
ALTERNATIVES = (
    FLOAT,
    Prices("32-bit integer", mac_pj=3.2, ac_pj=0.1),
    Prices("8-bit weights, 32-bit sums", mac_pj=0.3, ac_pj=0.1),
)


def joules(ops: Ops, prices: Prices = FLOAT) -> float:
    """Energy of the arithmetic, J."""
    return (ops.mac * prices.mac_pj + ops.ac * prices.ac_pj) * 1e-12


def memory_joules(ops: Ops, access_pj: float = SRAM_PJ) -> float:
    """Energy of the memory traffic, J; access_pj is the price of 64 bits."""
    return ops.words * WORD_BITS / 64 * access_pj * 1e-12


def reduction_percent(dense: float, spiking: float) -> float:
    """How much less than dense, in percent; negative if it is more."""
    return 100 * (1 - spiking / dense)


# --- spikes ---


@torch.no_grad()
def measure_spikes(
    model: SpikingLanguageModel,
    blocks: Tensor,
    *,
    batch: int = 8,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> SpikeCounter:
    """Count every neuron's spikes on blocks (n, length) int64."""
    with counting_spikes(model) as counter:
        for chunk in blocks.split(batch):
            model(chunk, logits_to_keep=1)
            on_tokens(chunk.numel())
    return counter


def layer_spikes(
    model: SpikingLanguageModel, counter: SpikeCounter, sums: Mapping[str, Tensor]
) -> list[LayerSpikes]:
    """Per block and token what `counter` summed over tokens. sums: its `spikes` or `active`."""

    def per_token(name: str) -> Tensor:
        return sums[name] / counter.tokens[name]

    layers = []
    for i in range(len(model.blocks)):
        key = f"{i}.attn.key"
        events = {name: x / counter.tokens[key] for name, x in counter.events[i].items()}
        layers.append(
            LayerSpikes(
                encode=float(per_token(f"{i}.attn.encode").sum()),
                query=float(per_token(f"{i}.attn.query").sum()),
                key=float(per_token(key).sum()),
                value=float(per_token(f"{i}.attn.value").sum()),
                merged=float(per_token(f"{i}.attn.merged").sum()),
                mlp_encode=float(per_token(f"{i}.mlp.encode").sum()),
                hidden=float(per_token(f"{i}.mlp.hidden").sum()),
                events=events,
                left_out=model.blocks[i].attn.left_out,
            )
        )
    return layers


# --- the estimate ---


def estimate(model: SpikingLanguageModel, counter: SpikeCounter) -> dict[str, Any]:
    """The answer of `neurtx energy`: joules per token, all blocks together."""
    shape = Shape.of(model.config)
    spikes = layer_spikes(model, counter, counter.spikes)
    active = layer_spikes(model, counter, counter.active)
    parts = operations(shape, spikes, active)
    sums = {name: {form: total([p]) for form, p in forms.items()} for name, forms in parts.items()}
    sums["model"] = {
        form: total(forms[form] for forms in parts.values())
        for form in ("dense", "spiking", "graded")
    }
    del sums["shared"]
    return {
        "timesteps": shape.code.timesteps,
        "context": shape.context,
        **{name: compare(forms) for name, forms in sums.items()},
        "thinned": _thinned(shape, spikes, sums),
        "paper_reduction_percent": list(PAPER_REDUCTION_PERCENT),
        "constants": {
            **asdict(FLOAT),
            "sram_pj_per_64_bits": SRAM_PJ,
            "dram_pj_per_64_bits": DRAM_PJ,
            "word_bits": WORD_BITS,
            "source": SOURCE,
        },
        "alternatives": [_alternative(prices, sums) for prices in ALTERNATIVES],
        "operations": {name: _breakdown(forms) for name, forms in parts.items()},
        "spike_rate_by_layer": counter.mean_rates(),
        "bill": bill(
            shape, spikes, active, {"spiking": counter.mean_rate(), "graded": counter.mean_active()}
        ),
    }


def compare(forms: Mapping[str, Ops]) -> dict[str, float]:
    """Joules per token of the dense, spiking and graded form, and what the spiking one saves."""
    values = {f"{form}_j": joules(ops) for form, ops in forms.items()}
    values["reduction_percent"] = reduction_percent(values["dense_j"], values["spiking_j"])
    for form, ops in forms.items():
        values[f"memory_{form}_j"] = memory_joules(ops)
        values[f"memory_{form}_dram_j"] = memory_joules(ops, DRAM_PJ)
    values["memory_reduction_percent"] = reduction_percent(
        values["memory_dense_j"], values["memory_spiking_j"]
    )
    return values


def _thinned(
    s: Shape, spikes: list[LayerSpikes], sums: Mapping[str, Mapping[str, Ops]]
) -> dict[str, float] | None:
    """What is saved beside a dense model whose attention has as few channels, None if none was left
    out: that part of the saving is no merit of spikes."""
    channels = 2 * (s.width + s.kv_width)
    share = sum(sum(n.left_out) for n in spikes) / (channels * len(spikes))
    if not share:
        return None
    dense = total([dense_attention(s, n.left_out) for n in spikes])
    less = joules(sums["attention"]["dense"]) - joules(dense)
    found = {"left_out_percent": 100 * share}
    for name in ("attention", "model"):
        needs = joules(sums[name]["dense"]) - less
        saved = reduction_percent(needs, joules(sums[name]["spiking"]))
        found |= {f"{name}_dense_j": needs, f"{name}_reduction_percent": saved}
    return found


def _alternative(prices: Prices, sums: Mapping[str, Mapping[str, Ops]]) -> dict[str, Any]:
    saved = {
        f"{name}_reduction_percent": reduction_percent(
            joules(forms["dense"], prices), joules(forms["spiking"], prices)
        )
        for name, forms in sums.items()
    }
    return {**asdict(prices), **saved}


def _breakdown(forms: Forms) -> dict[str, dict[str, float]]:
    """For each operation its MACs, ACs and words per token; 0 where a form has no such one."""
    names = {name: None for part in forms.values() for name in part}
    return {
        name: {
            f"{form}_{unit}": getattr(part.get(name, Ops()), field)
            for form, part in forms.items()
            for unit, field in (("macs", "mac"), ("acs", "ac"), ("words", "words"))
        }
        for name in names
    }
