"""The rate-coded feed-forward block: code, synapses, GELU neuron, synapses."""

from torch import Tensor, nn

from neurtransformer.spiking.neuron import RateNeuron, SpikeLinear


class SpikingFeedForward(nn.Module):
    """GPT-2's MLP with its two inputs rate coded by signed populations.

    The GELU is the firing curve of the hidden neurons: it acts once on the integrated membrane,
    before the firing phase. `c_fc` and `c_proj` keep GPT-2's names and values (transposed).
    """

    def __init__(self, width: int, hidden: int, timesteps: int, activation: str) -> None:
        super().__init__()
        self.encode = RateNeuron(width, timesteps, signed=True, analogue=True)
        self.c_fc = SpikeLinear(width, hidden, timesteps)
        # torch's own GELU; transformers' gelu_new is the same curve by way of slow powers
        gelu = nn.GELU("none" if activation == "gelu" else "tanh")
        self.hidden = RateNeuron(hidden, timesteps, signed=True, activation=gelu)
        self.c_proj = SpikeLinear(hidden, width, timesteps)

    def forward(self, x: Tensor, steps: bool = False) -> Tensor:
        """x: (batch, length, width), normalised. Returns what is added to the residual stream."""
        spikes = self.encode(x, steps)
        membrane = self.c_fc(spikes, self.encode.spike_value, steps)
        spikes = self.hidden(membrane, steps)
        return self.c_proj(spikes, self.hidden.spike_value, steps)
