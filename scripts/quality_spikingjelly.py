"""What SpikingJelly 2.0's own ann2snn recipes make of GPT-2's feed-forward blocks.

Its `ann2snn` imports `requests`, which nothing else here needs: `pip install requests` first.

No recipe converts the stock MLP: they refuse the `size()[:-1]` in its `Conv1D` and the `torch.pow`
in its GELU. Below, the same values stand in `nn.Linear` and `nn.GELU`. What then runs, attention
staying dense:

- `rate_max`, `rate_robust`: `RateCodingRecipe`, thresholds per channel at the largest and at the
  99.9 % value, membranes starting at half a threshold. It turns ReLUs into soft-reset IF neurons
  and refuses a GELU; a ReLU in place of the GELU costs gpt2-nano a factor of 1.6 before any spike.
  So values go as x = relu(x) - relu(-x), before `c_fc` and after a GELU of the decoded rates: the
  two places where our own network spikes. These are the recipe's better settings: with one
  threshold a layer perplexity at T = 8 is about 75 times (largest value, the default) or 2.4 times
  (99.9 %) the dense one.
- `threshold_balancing`: `LocalThresholdBalancingRecipe` on the same network.
- `sta`: `STATransformerRecipe`, mode `spiking_encoder`, on LayerNorm, Linear, GELU and Linear. Its
  spikes are graded, without a bound and all in step one, where all input arrives: T divides the
  quantiser's step and takes no time. At T = 8 a neuron before the first `c_fc` sends 16 units in
  the mean and up to 76, where T binary steps hold 8: compare spikes, not steps.

What does not:

- `STATransformerRecipe`, mode `spiking_affine`: refused by its own `validate` in 2.0.
- `STATransformerRecipe` on attention: would take an `nn.MultiheadAttention` with a causal
  `attn_mask` of one fixed length; softmax, query, key and value stay floats, the output alone is
  coded.
- `TransformerTDEquivalentRecipe`, and STA's mode `equivalent`: convert, but emit no spikes.
- `SpikeZIPTFQANNRecipe`: wants quantisers already trained into the network (without them it makes
  no neurons), and leaves a GELU to act on the spikes of each step alone.
- `Qwen2SNNRecipe`: refuses all models but Qwen2; scripts/peers_smollm2.py gives it a Llama.

As T grows the ratio to the dense perplexity tends to 1 for `rate_max` and `sta`. `rate_robust` and
`threshold_balancing` stay above it, for their thresholds clip: the latter's start at zero, and each
batch raises them by twice the mean overflow. On text foreign to the model ratios can fall below 1:
noise softens predictions that are too sure. Text that the dense model wrote shows the error itself.
"""

import copy
from typing import cast

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.ann2snn import (
    ConversionRecipe,
    FXConverter,
    LocalThresholdBalancingRecipe,
    RateCodingRecipe,
    STATransformerRecipe,
)
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from neurtransformer.families.base import tapped

RECIPES = ("rate_max", "rate_robust", "threshold_balancing", "sta")
BALANCING_BATCH = 32
"""Tokens in a step of threshold balancing: many steps count, not their size."""


@torch.no_grad()
def converted(
    dense: GPT2LMHeadModel, tokens: Tensor, recipe: str, timesteps: int
) -> GPT2LMHeadModel:
    """A copy of `dense`, its feed-forward blocks converted by `recipe`, one of RECIPES.

    tokens: (batch, length) int64, to calibrate on. Nothing of one call is left for the next.
    """
    with tapped(dense) as taps:
        states = dense.transformer(tokens, output_hidden_states=True).hidden_states
    model = copy.deepcopy(dense)
    for block, tap, state in zip(
        cast("list[GPT2Block]", model.transformer.h), taps, states[:-1], strict=True
    ):
        fc, proj = _linear(block.mlp.c_fc), _linear(block.mlp.c_proj)
        gelu = nn.GELU("none" if dense.config.activation_function == "gelu" else "tanh")
        if recipe == "sta":
            # its encoders follow LayerNorms: without ln_2 the input of c_fc would stay float
            sta = STATransformerRecipe(
                [state + tap["attn_out"]], time_steps=timesteps, mode="spiking_encoder"
            )
            network = FXConverter(sta).convert(nn.Sequential(block.ln_2, fc, gelu, proj))
            block.ln_2, block.mlp = nn.Identity(), OverTime(network, timesteps, constant=False)
        else:
            block.mlp = nn.Sequential(
                rate_coded(fc, tap["mlp_in"], recipe, timesteps),
                gelu,
                rate_coded(proj, tap["hidden"], recipe, timesteps),
            )
    return model


class OverTime(nn.Module):
    """A converted network in `timesteps` steps. Input and output: (batch, length, channels).

    constant: the input is there in every step and the output is a mean, as rate codes want it; else
    it is there in the first step only and the output is a sum, as in SpikingJelly's STA example.
    """

    def __init__(self, network: nn.Module, timesteps: int, constant: bool) -> None:
        super().__init__()
        # steps one by one need a T-th of the memory of whole sequences
        functional.set_step_mode(network, "s")
        self.network, self.timesteps, self.constant = network, timesteps, constant

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.network)
        total = self.network(x)
        later = x if self.constant else torch.zeros_like(x)
        for _ in range(1, self.timesteps):
            total = total + self.network(later)
        return total / self.timesteps if self.constant else total


class SignedReLU(nn.Module):
    """x of any shape as two values that ReLUs let through: what becomes a pair of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.positive(x) - self.negative(-x)


def rate_coded(layer: nn.Module, x: Tensor, recipe: str, timesteps: int) -> OverTime:
    """A linear layer with its input rate coded, calibrated on x (batch, length, channels)."""
    rate: ConversionRecipe
    if recipe == "threshold_balancing":
        batches = x.flatten(0, 1).split(BALANCING_BATCH)
        rate = LocalThresholdBalancingRecipe(batches, channel_dim=-1)
    else:
        mode = {"rate_max": "max", "rate_robust": "99.9%"}[recipe]
        rate = RateCodingRecipe(
            [x], mode=mode, channel_wise=True, channel_dim=-1, half_threshold=True
        )
    network = FXConverter(rate).convert(nn.Sequential(SignedReLU(), layer))
    return OverTime(network, timesteps, constant=True)


def _linear(layer: Conv1D) -> nn.Linear:
    """GPT-2's Conv1D, weight (in, out), as the nn.Linear, weight (out, in), that is traced."""
    linear = nn.Linear(*layer.weight.shape)
    linear.load_state_dict({"weight": layer.weight.T, "bias": layer.bias})
    return linear
