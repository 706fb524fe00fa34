"""The spiking feed-forward block: code, synapses, GELU neuron, synapses."""

from torch import Tensor, nn

from neurtransformer.checkpoint import ACTIVATIONS
from neurtransformer.codes import HIDDEN_SPIKES
from neurtransformer.recipe import Coding
from neurtransformer.spiking.neuron import CodingNeuron, SpikeLinear


class SpikingFeedForward(nn.Module):
    """GPT-2's MLP with its two inputs rate or phase coded.

    The GELU is the firing curve of the hidden neurons: it acts once on the integrated membrane,
    before the firing phase. Hardly anything of a GELU is negative, so hidden channels spend
    their two neurons on a staggered pair, 0..2T above a rest level, where a signed pair would leave
    one of them silent: half the squared error at the same number of neurons and steps. `c_fc` and
    `c_proj` keep GPT-2's names and values (transposed). With phase coding they are single neurons.
    """

    def __init__(
        self, width: int, hidden: int, timesteps: int, activation: str, coding: Coding = "rate"
    ) -> None:
        super().__init__()
        self.encode = CodingNeuron(width, timesteps, signed=True, coding=coding, analogue=True)
        self.c_fc = SpikeLinear(width, hidden, self.encode.most, coding)
        # torch's own GELU; transformers' gelu_new is the same curve by way of slow powers
        gelu = nn.GELU(ACTIVATIONS[activation])
        self.hidden = CodingNeuron(
            hidden,
            timesteps,
            signed=False,
            per_step=HIDDEN_SPIKES[coding],
            coding=coding,
            activation=gelu,
        )
        self.c_proj = SpikeLinear(hidden, width, self.hidden.most, coding)

    def forward(self, x: Tensor, steps: bool = False) -> Tensor:
        """x: (batch, length, width), normalised. Returns what is added to the residual stream."""
        spikes = self.encode(x, steps)
        membrane = self.c_fc(spikes, self.encode.spike_value, steps)
        spikes = self.hidden(membrane, steps)
        return self.c_proj(spikes, self.hidden.spike_value, steps)
