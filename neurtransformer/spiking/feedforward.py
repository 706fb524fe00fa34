"""The spiking feed-forward block: code, synapses, hidden neurons, synapses."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from neurtransformer.codes import HIDDEN_SPIKES
from neurtransformer.families.gpt2 import ACTIVATIONS
from neurtransformer.recipe import Code
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear


def swiglu(membrane: Tensor) -> Tensor:
    """Gates and inputs (..., 2 hidden) to ``silu(gate) * input``, (..., hidden)."""
    gate, x = membrane.chunk(2, dim=-1)
    return F.silu(gate) * x


class SpikingFeedForward(nn.Module):
    """The dense model's feed-forward block with its two inputs rate or phase coded.

    The activation is the firing curve of the hidden neurons: it acts once on the integrated
    membrane, before the firing phase. `c_fc` and `c_proj` keep GPT-2's names and the dense values.

    A GELU: hardly anything of it is negative, so rate-coded hidden channels spend their two neurons
    on a staggered pair, 0..2T above a rest level, where a signed pair would leave one of them
    silent: half the squared error at the same number of neurons and steps. With phase coding they
    are single neurons.

    gated (SwiGLU): a hidden neuron integrates two membranes and fires for their product, which has
    both signs: `c_fc` has the rows of all gates, then those of all inputs. Such products have heavy
    tails: `limited`, the time steps and most spikes of neurons that stop (see `coding`), is a code
    with range for them.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        code: Code,
        activation: str,
        *,
        gated: bool = False,
        limited: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        timesteps, coding, digits = code
        self.encode = CodingNeuron(
            width, timesteps, signed=True, coding=coding, digits=digits, analogue=True
        )
        self.c_fc = SpikeLinear(width, (1 + gated) * hidden, self.encode.most, coding)
        # torch's own GELU; transformers' gelu_new is the same curve by way of slow powers
        own_timesteps, limit = limited or (timesteps, None)
        curve: Callable[[Tensor], Tensor] = swiglu if gated else nn.GELU(ACTIVATIONS[activation])
        self.hidden = CodingNeuron(
            hidden,
            own_timesteps,
            signed=gated,
            per_step=1 if gated else HIDDEN_SPIKES[coding],
            coding=coding,
            limit=limit,
            digits=digits if limit is None else "binary",
            activation=curve,
        )
        self.c_proj = SpikeLinear(hidden, width, self.hidden.most, coding)

    def forward(self, x: Tensor, steps: bool = False) -> Tensor:
        """x: (batch, length, width), normalised. Returns what is added to the residual stream."""
        spikes = self.encode(x, steps)
        membrane = self.c_fc(spikes, self.encode.spike_value, steps)
        spikes = self.hidden(membrane, steps)
        return self.c_proj(spikes, self.hidden.spike_value, steps)
