"""Other people's simulators beside ours, on the same work, for `bench.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_timing import Work
from torch import Tensor, nn

from neurtransformer import api
from neurtransformer.loihi.netlist import read_text
from neurtransformer.loihi.simulate import prompt_ids, simulate

PROMPT = "The brain of a fruit fly has about a hundred thousand neurons, and"


def feedforward(network: Any, timesteps: int, tokens: int) -> Work:
    """The first feed-forward block of a spiking network, in counts and in time steps, beside
    SpikingJelly's multi-step simulation of a block of the same sizes and as many time steps.

    SpikingJelly's is what its own users would write: pairs of IF neurons that turn values into
    spikes, synapses, IF neurons (a ReLU, where ours have a GELU), synapses.
    """
    from spikingjelly.activation_based import functional, layer
    from spikingjelly.activation_based.neuron import IFNode

    block = network.blocks[0].mlp
    hidden, width = block.c_fc.weight.shape
    x = torch.randn(1, tokens, width)
    code = IFNode(v_reset=None, step_mode="m")
    rest = nn.Sequential(
        layer.Linear(width, hidden, step_mode="m"),
        IFNode(v_reset=None, step_mode="m"),
        layer.Linear(hidden, width, step_mode="m"),
    )

    @torch.inference_mode()
    def theirs() -> Tensor:
        functional.reset_net(code)
        functional.reset_net(rest)
        pairs = torch.cat([x, -x]).expand(timesteps, -1, -1, -1)
        positive, negative = code(pairs).chunk(2, dim=1)
        return rest(positive - negative).mean(0)

    def ours(steps: bool) -> Callable[[], Tensor]:
        return torch.inference_mode()(lambda: block(x, steps))

    calls = {"SpikingJelly": theirs, "steps": ours(True), "counts": ours(False)}
    name = f"feed-forward block {width} - {hidden}, T = {timesteps}, {tokens} tokens"
    return Work(name, tokens, calls, "SpikingJelly")


def lava(model: str, folder: Path) -> dict[str, Any]:
    """A row: the integer model beside Lava, on one netlist and prompt, in seconds of a clock.

    Lava runs in processes of its own, so their processor time is not known. folder: where the run
    and the netlist are written, or are already.
    """
    run, target = folder / "run", folder / "netlist"
    if not run.exists():
        api.convert(model, run)
    if not target.exists():
        api.export(run, target)
    netlist = read_text(target)
    ids = prompt_ids(netlist, PROMPT, 1)
    simulate(netlist, ids, "integer")  # to warm up
    found = simulate(netlist, ids, "lava")
    ratio = found["backend_seconds"] / found["integer_seconds"]
    return {
        "work": f"{model}, netlist, {found['tokens']} tokens, {found['mismatches']} mismatches",
        "network": "integer",
        "reference": "Lava",
        "tokens_per_second": found["tokens"] / found["integer_seconds"],
        "ratio": ratio,
        "least": ratio,
        "largest": ratio,
        "peak_mib": None,
        "kept_bytes_a_token": None,
        "seconds": [found["integer_seconds"]],
    }
