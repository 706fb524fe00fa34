"""A prompt through a netlist: how long it may be, and what is said of one that goes another way."""

from typing import Any

import pytest
import torch

from neurtransformer.errors import UserError
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.loihi import netlist
from neurtransformer.loihi import simulate as simulation
from neurtransformer.loihi.simulate import prompt_ids


def test_a_prompt_may_fill_all_positions(original: netlist.TextNetlist) -> None:
    """Sixteen: the last token that is written is not read."""
    assert len(prompt_ids(original, "x" * 15, 2)) == len(prompt_ids(original, "x" * 16, 1)) - 1
    for prompt, tokens in (("x" * 15, 3), ("x" * 17, 1)):
        with pytest.raises(UserError, match="16 positions"):
            prompt_ids(original, prompt, tokens)


def test_steps_that_are_not_the_counts_are_told(
    original: netlist.TextNetlist, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = simulation._counts
    assert simulation.simulate(original, [1, 2], "integer")["mismatches"] == 0

    def other(model: IntegerGPT2, name: str, x: Any) -> Any:
        counts = whole(model, name, x)
        counts[-1, 0] += name == "h.0.attn"
        return counts

    monkeypatch.setattr(simulation, "_counts", other)
    found = simulation.simulate(original, [1, 2], "integer")
    assert (found["mismatches"], found["first_mismatch"]) == (1, "h.0.attn.counts")


def test_a_continuation_that_is_not_the_networks_own_is_told(
    original: netlist.TextNetlist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of the text is the network's greedy choice behind each token, not what was
    written before it ran."""
    ids = [1, 2]
    whole = original.model.generate(torch.tensor([ids]), 3)[0].tolist()
    found = simulation.simulate(original, ids, "integer", tokens=3)
    assert found["text"] == original.tokenizer.decode(whole[2:]) and found["same_text"]
    other = [*ids, whole[2], (whole[3] + 1) % 260, whole[4]]
    monkeypatch.setattr(IntegerGPT2, "generate", lambda *_: torch.tensor([other]))
    found = simulation.simulate(original, ids, "integer", tokens=3)
    best = original.model(torch.tensor([other]))[0, 1:4].argmax(-1)
    assert best[:2].tolist() == whole[2:4]
    assert found["text"] == original.tokenizer.decode(best) and not found["same_text"]
    assert found["mismatches"] == 0
