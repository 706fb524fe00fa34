"""One sequence of drawings and labels through the netlist of a plastic transformer, in Lava.

All of it is one Lava run: the convolutions, the keys, the plastic synapses that the labels teach.
"""

import time
from typing import Any

import numpy as np

from neurtransformer.errors import UserError
from neurtransformer.integer.arithmetic import Integers
from neurtransformer.integer.plastic import PlasticConfig
from neurtransformer.loihi.netlist import PlasticNetlist
from neurtransformer.loihi.simulate import Backend, Tally, pairs

MOST_WEIGHTS = 2**26
"""Plastic weights of all time steps that are kept to be compared: half a gigabyte."""


def is_comparable(config: PlasticConfig, tokens: int, phase: int) -> bool:
    """Whether an episode is small enough for `simulate_episode`."""
    return tokens * phase * config.ways * config.keys <= MOST_WEIGHTS


def simulate_episode(
    netlist: PlasticNetlist, ink: Integers, labels: Integers, backend: Backend
) -> dict[str, Any]:
    """Run a context and a query behind it, and check each spike, state and weight of every step.

    ink: counts of drawings (tokens, side, side), 0..T. labels: (tokens,), -1 for the query's.
    backend: "lava" compares Lava with the integer model; "integer" the integer model's time steps
    with its counts.
    Returns `backend`, `steps`, `tokens`, `compared`, `mismatches`, `max_abs_difference`,
    `first_mismatch`, `text` (the label that the backend gives the query), `seconds` and
    `integer_seconds` (all of it, and what the integer model's counts took). Raises LavaFailed, and
    UserError if the plastic weights of all steps are more than `MOST_WEIGHTS`.
    """
    began = time.monotonic()
    model = netlist.model
    (network,) = netlist.manifest.networks
    if not is_comparable(model.config, len(ink), network.phase):
        raise UserError(
            f"{len(ink)} drawings of {model.config.ways} labels are too many to compare in steps"
        )
    counts = model.reads(model.keys(ink), labels)[0]
    integer_seconds = time.monotonic() - began
    ours = model.steps(ink, labels, network.phase)
    tally = Tally()
    if backend == "lava":
        from neurtransformer.loihi.runner import run_network

        theirs, steps = run_network(netlist, network, ours)
        for key, mine, lavas in pairs(network, ours, theirs):
            tally.add(f"{network.name}.{key}", mine, lavas)
    else:
        theirs, steps = ours, len(ink) * network.phase
    logits = theirs[network.result][:, -1].astype(np.int64)
    tally.add(f"{network.name}.counts", counts, logits)
    return {
        "backend": backend,
        "steps": steps,
        "tokens": len(ink),
        "compared": tally.compared,
        "mismatches": tally.mismatches,
        "max_abs_difference": tally.max_abs_difference,
        "first_mismatch": tally.first_mismatch,
        "text": str(logits[-1].argmax()),
        "seconds": time.monotonic() - began,
        "integer_seconds": integer_seconds,
    }
