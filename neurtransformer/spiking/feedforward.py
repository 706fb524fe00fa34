"""The rate-coded feed-forward block: code, synapses, GELU neuron, synapses."""

from torch import Tensor, nn

from neurtransformer.spiking.neuron import RateNeuron, SpikeLinear

HIDDEN_SPIKES = 2
"""Most spikes of a hidden channel in a step: it is a staggered pair of neurons."""


class SpikingFeedForward(nn.Module):
    """GPT-2's MLP with its two inputs rate coded.

    The GELU is the firing curve of the hidden neurons: it acts once on the integrated membrane,
    before the firing phase. Hardly anything of a GELU is negative, so hidden channels spend
    their two neurons on a staggered pair, 0..2T above a rest level, where a signed pair would leave
    one of them silent: half the squared error at the same number of neurons and steps. `c_fc` and
    `c_proj` keep GPT-2's names and values (transposed).
    """

    def __init__(self, width: int, hidden: int, timesteps: int, activation: str) -> None:
        super().__init__()
        self.encode = RateNeuron(width, timesteps, signed=True, analogue=True)
        self.c_fc = SpikeLinear(width, hidden, timesteps)
        # torch's own GELU; transformers' gelu_new is the same curve by way of slow powers
        gelu = nn.GELU("none" if activation == "gelu" else "tanh")
        self.hidden = RateNeuron(
            hidden, timesteps, signed=False, per_step=HIDDEN_SPIKES, activation=gelu
        )
        self.c_proj = SpikeLinear(hidden, width, self.hidden.most)

    def forward(self, x: Tensor, steps: bool = False) -> Tensor:
        """x: (batch, length, width), normalised. Returns what is added to the residual stream."""
        spikes = self.encode(x, steps)
        membrane = self.c_fc(spikes, self.encode.spike_value, steps)
        spikes = self.hidden(membrane, steps)
        return self.c_proj(spikes, self.hidden.spike_value, steps)
