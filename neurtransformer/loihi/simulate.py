"""A prompt through a netlist, in Lava and in the integer model, compared integer for integer.

LayerNorm and the residual stream are on the host in this version, so the prompt goes through the
networks one after another: the whole prompt through the attention of block 0, the host adds and
normalises, the whole prompt through its feed-forward network, and so on to the logits.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.blocks import Trace
from neurtransformer.integer.model import NETWORKS, IntegerGPT2
from neurtransformer.loihi.graph import Network, phase_steps
from neurtransformer.loihi.netlist import Netlist

Backend = Literal["lava", "integer"]
SENT = "encode.spikes"
"""What the host sends into a network: given to both, so nothing to compare."""


@dataclass
class Tally:
    """What a comparison has found so far."""

    compared: int = 0
    mismatches: int = 0
    max_abs_difference: int = 0
    first_mismatch: str | None = None

    def add(self, name: str, ours: Integers, theirs: Integers) -> None:
        """Compare two arrays of one shape."""
        difference = np.abs(ours.astype(np.int64) - theirs)
        wrong = int(np.count_nonzero(difference))
        self.compared += difference.size
        self.mismatches += wrong
        self.max_abs_difference = max(self.max_abs_difference, int(difference.max()))
        if wrong and self.first_mismatch is None:
            self.first_mismatch = name


def prompt_ids(netlist: Netlist, prompt: str) -> list[int]:
    """The tokens of a prompt. Raises UserError if it is empty or too long for the model."""
    ids = list(netlist.tokenizer.encode(prompt))
    if not ids:
        raise UserError("the prompt is empty: give some text")
    netlist.model.embed(torch.tensor([ids]))
    return ids


def simulate(
    netlist: Netlist,
    ids: list[int],
    backend: Backend,
    *,
    on_network: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Run the tokens of a prompt and check each spike and state of every time step.

    backend: "lava" compares Lava with the integer model; "integer" the integer model's time steps
    with its counts. Returns `backend`, `steps`, `tokens`, `compared`, `mismatches`,
    `max_abs_difference`, `first_mismatch`, `text` (what comes after the prompt, one token, greedy,
    by the backend's own result) and `seconds`. on_network hears of each network that is done.
    """
    began = time.monotonic()
    model = netlist.model
    tally, steps = Tally(), 0
    graph = iter(netlist.manifest.networks)
    phase = phase_steps(netlist.manifest.config, netlist.manifest.spikes)
    with torch.no_grad():
        x = model.embed(torch.tensor([ids]))
        for block in range(model.config.layers):
            for name in NETWORKS:
                network = next(graph)
                encoded = model.encode(x, block, name)
                ours = _steps(model, network, encoded[0], phase)
                u = _counts(model, network, encoded)
                if backend == "lava":
                    from neurtransformer.loihi.runner import run_network

                    theirs, took = run_network(netlist, network, ours[SENT])
                    steps += took
                    for key, mine, lavas in _pairs(ours, theirs):
                        tally.add(f"{network.name}.{key}", mine, lavas)
                    membrane = theirs["readout.u"][None, :, -1]
                else:
                    steps += len(ids) * phase
                    membrane = ours["readout.u"][None, :, -1]
                tally.add(f"{network.name}.counts", u, membrane)
                x = x + model.residual(membrane, block, name)
                on_network(network.name)
        following = int(model.logits(x)[0, -1].argmax())
    return {
        "backend": backend,
        "steps": steps,
        "tokens": len(ids),
        "compared": tally.compared,
        "mismatches": tally.mismatches,
        "max_abs_difference": tally.max_abs_difference,
        "first_mismatch": tally.first_mismatch,
        "text": netlist.tokenizer.decode([following]),
        "seconds": time.monotonic() - began,
    }


def _steps(model: IntegerGPT2, network: Network, encoded: Integers, phase: int) -> Trace:
    if network.name.endswith("attn"):
        return model.attention[network.block].steps(encoded, phase)
    return model.feedforward[network.block].steps(encoded, phase)


def _counts(model: IntegerGPT2, network: Network, encoded: Integers) -> Integers:
    if network.name.endswith("attn"):
        attention = model.attention[network.block]
        return attention.counts(encoded, attention.new_state(1))[0]
    return model.feedforward[network.block].counts(encoded)


def _pairs(ours: Trace, theirs: Trace) -> Iterator[tuple[str, Integers, Integers]]:
    """The same quantities of both; our state of a token stands for each step of its phase."""
    if ours.keys() - {SENT} != theirs.keys():
        raise ValueError(f"different quantities: {sorted(ours.keys() ^ theirs.keys())}")
    for key in theirs:
        mine = ours[key]
        if key == "ssa.state":
            mine = np.broadcast_to(mine[:, None], theirs[key].shape)
        yield key, mine, theirs[key]
