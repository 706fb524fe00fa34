"""A prompt through a netlist, in Lava and in the integer model, compared integer for integer.

Each network is a Lava run of its own, of all tokens: what leaves one, the residual stream, is
handed to the next as it is, number by number. Nothing is computed in between.

The text that follows the prompt is written by the integer model first. A network in which no token
sees a later one then needs one run over prompt and continuation to show that it would have written
the same: its greedy choice behind each token has to be the next one.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from neurtransformer import text
from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.attention import IntegerAttention
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.integer.parts import Trace
from neurtransformer.loihi.netlist import TextNetlist
from neurtransformer.loihi.network import Network

Backend = Literal["lava", "integer"]


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


def prompt_ids(netlist: TextNetlist, prompt: str, tokens: int) -> list[int]:
    """The tokens of a prompt. Raises UserError if it is empty, or too long for the model with
    `tokens` more."""
    ids = text.prompt_ids(netlist.tokenizer, prompt)
    positions, sent = netlist.model.config.context, len(_sent(netlist.model, ids))
    if not sent:
        raise UserError("the prompt is the token that every text begins with: give some text too")
    if sent + tokens - 1 > positions:
        raise UserError(
            f"{sent} tokens of prompt and {tokens} to write are more than the {positions} "
            "positions of this model: shorten the prompt or give a smaller --tokens"
        )
    return ids


def _sent(model: IntegerGPT2, ids: list[int]) -> list[int]:
    """Those tokens of a text that are sent: an innate first token is not."""
    return ids[int(model.begins(np.array([ids]))[0]) :]


def simulate(
    netlist: TextNetlist,
    ids: list[int],
    backend: Backend,
    *,
    tokens: int = 1,
    on_network: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Run a prompt and its continuation, and check each spike and state of every time step.

    backend: "lava" compares Lava with the integer model; "integer" the integer model's time steps
    with its counts. tokens: how many follow the prompt. on_network hears of each network that is
    done.
    Returns `backend`, `steps`, `tokens` (all that went through), `compared`, `mismatches`,
    `max_abs_difference`, `first_mismatch`, `text` and `same_text` (what the backend puts after the
    prompt, greedy, and whether the integer model's counts do), `seconds`, `backend_seconds` and
    `integer_seconds` (all of it, what Lava took, and what the integer model's counts took). A
    prompt that begins with the innate token is sent without it.
    """
    began = time.monotonic()
    model = netlist.model
    continued = model.generate(torch.tensor([ids]), tokens)[0].numpy()
    sent = _sent(model, ids)
    ids_in, continuation = continued[len(ids) - len(sent) : -1], continued[len(ids) :]
    integer_seconds = time.monotonic() - began
    tally, steps, backend_seconds = Tally(), 0, 0.0
    x: Integers = ids_in
    for network in netlist.manifest.networks:
        ours = model.networks[network.name].steps(x, network.phase, network.slots)
        counts = _counts(model, network.name, x)
        if backend == "lava":
            from neurtransformer.loihi.runner import run_network

            started = time.monotonic()
            theirs, took = run_network(netlist, network, ours)
            backend_seconds += time.monotonic() - started
            steps += took
            for key, mine, lavas in pairs(network, ours, theirs):
                tally.add(f"{network.name}.{key}", mine, lavas)
        else:
            theirs = ours
            steps += len(ids_in) * network.phase
        x = theirs[network.result][:, -1].astype(np.int64)
        tally.add(f"{network.name}.counts", counts, x)
        on_network(network.name)
    chosen = x[len(sent) - 1 :].argmax(-1)
    return {
        "backend": backend,
        "steps": steps,
        "tokens": len(ids_in),
        "compared": tally.compared,
        "mismatches": tally.mismatches,
        "max_abs_difference": tally.max_abs_difference,
        "first_mismatch": tally.first_mismatch,
        "text": netlist.tokenizer.decode(chosen.tolist()),
        "same_text": chosen.tolist() == continuation.tolist(),
        "seconds": time.monotonic() - began,
        "backend_seconds": backend_seconds,
        "integer_seconds": integer_seconds,
    }


def _counts(model: IntegerGPT2, name: str, x: Integers) -> Integers:
    """What leaves the network, by counts."""
    network = model.networks[name]
    if isinstance(network, IntegerAttention):
        return network.counts(x[None], network.new_state(1))[0][0]
    return network.counts(x)


def pairs(network: Network, ours: Trace, theirs: Trace) -> Iterator[tuple[str, Integers, Integers]]:
    """The same quantities of both; our state of a token stands for each step of its phase.

    What the source sends is given to both, so there is nothing to compare.
    """
    if ours.keys() - {f"{name}.spikes" for name in network.sources} != theirs.keys():
        raise ValueError(f"different quantities: {sorted(ours.keys() ^ theirs.keys())}")
    for key in theirs:
        mine = ours[key]
        if mine.ndim < theirs[key].ndim:
            mine = np.broadcast_to(mine[:, None], theirs[key].shape)
        yield key, mine, theirs[key]
