"""Operations of the race of token neurons."""

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from neurtransformer.codes import COARSE, EVEN, REACH
from neurtransformer.measure.counts import LayerSpikes, Ops, Part, Shape
from neurtransformer.spiking.attention.race import levels_of
from neurtransformer.spiking.attention.ttfs import RaceAttention, TokenNeurons


def listen(attention: RaceAttention, events: dict[str, float]) -> list[RemovableHandle]:
    """Add up, over heads and tokens that ask: token neurons that they see (`seen`), that fire
    (`race`), steps until the race is over (`steps`), those steps times the neurons seen
    (`compared`), the steps of the fine race (`fine`), and what a listener does in them
    (`heard`)."""

    def hear(module: TokenNeurons, args: tuple[Any, ...], output: Any) -> None:
        score, width, there = args[:3]
        there = there.expand_as(score)
        top = levels_of(score, width).masked_fill(~there, -REACH).amax(-1)
        coarse = ((REACH - top) / COARSE).ceil()
        if isinstance(output, tuple):
            spikes, running = output
            fired, fine = spikes.sum((0, -1)), running.sum(0).squeeze(-1)
        else:
            fired = (output > 0).sum(-1)
            # what the first to fire counts has doubled in each octave since; the race is over in
            # an odd level if nothing of the even one counts
            first = REACH - coarse * COARSE + COARSE - 1 - top
            octaves = torch.floor((output.amax(-1).clamp_min(EVEN) / EVEN).log2())
            ends_odd = ~(output == EVEN).any(-1) & (output.sum(-1) > 0)
            fine = first + 1 + top % 2 + 2 * octaves - ends_odd.to(top.dtype)
        steps = coarse + fine
        seen = there.sum(-1)
        for name, x in (
            ("seen", seen),
            ("race", fired),
            ("steps", steps),
            ("compared", steps * seen),
            ("fine", fine),
            # an odd level comes first, and takes two operations more than an even one
            ("heard", 3 * fine + fine % 2),
        ):
            events[name] = events.get(name, 0.0) + float(x.sum(dtype=torch.float64))

    return [attention.neurons.register_forward_hook(hear)]


def core(s: Shape, n: LayerSpikes) -> Part:
    """The race of one block, at the mean of all positions of the context.

    What was measured on shorter text is scaled to the token neurons that a full context has.
    write: counting the spikes of query, key and value costs one AC each; a key count is multiplied
    by its gain, and keys and values are written. scores: a query spike adds the synapses of its
    channel to the membranes of all token neurons, one AC each; membranes that phase-coded spikes
    drive are doubled, a shift in each step but the first. race: in every step the threshold falls
    once for the head, and each token neuron compares its membrane with it. In the fine race the
    listeners double, take three times what they hear and add it, four ACs, in one of two steps, and
    in the other add twice what they hear, two ACs. values: the spike of a token neuron adds its
    value and the witness to what the listeners hear. normalise: as in the linear kind.
    """
    _, keys, values = n.qkv(s)
    merged = s.width - n.left_out.merged
    column = merged / s.heads + 1  # of a head, on average
    pairs = s.heads * s.seen
    measured = n.events.get("seen", 0.0)
    longer = pairs / measured if measured else 0.0
    steps, compared = n.events.get("steps", 0.0), n.events.get("compared", 0.0) * longer
    listening, heard = n.events.get("fine", 0.0) * column, n.events.get("heard", 0.0) * column
    fired = n.events.get("race", 0.0) * longer * column
    scored = n.query * s.seen
    counted = n.query + n.key + n.value
    timesteps = s.attention.timesteps
    doublings = (timesteps - 1) * pairs if s.attention.coding == "phase" else 0.0
    return {
        "write": Ops(
            mac=keys,
            ac=counted,
            weights=keys + values,
            events=counted,
            writes=keys + values,
        ),
        "scores": Ops(
            ac=scored + doublings,
            weights=scored,
            states=2 * timesteps * pairs,
            events=scored,
            updates=timesteps * pairs,
        ),
        "race": Ops(
            ac=compared + steps + heard,
            states=compared + 2 * listening,
            updates=compared + listening,
        ),
        "values": Ops(ac=fired, weights=fired, events=fired),
        "normalise": Ops(mac=merged, ac=2 * merged + 3 * s.heads, weights=s.heads),
    }
