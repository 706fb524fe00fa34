"""scripts/peers_smollm2.py: SpikingJelly's recipes on a small random Llama."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_llama import WORDS, llama

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("requests")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("peers_smollm2")


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_is_a_qwen2(peers: ModuleType, tied: bool) -> None:
    dense = llama(tie_word_embeddings=tied)
    ids = torch.randint(WORDS, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(peers.as_qwen2(dense)(ids).logits, dense(ids).logits)


def test_a_llama_with_biases_is_none(peers: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"o_proj\.bias"):
        peers.as_qwen2(llama(attention_bias=True))


@pytest.mark.slow
def test_every_network_tends_to_the_dense_model(peers: ModuleType) -> None:
    """With a long code both conversions are the dense model, whether or not the first token is
    coded; sums over time are those of neurons that run step by step."""
    dense = llama()
    torch.manual_seed(1)
    tokens = torch.randint(1, WORDS, (4, 32))
    with torch.no_grad():
        text = peers.expected(dense, tokens[:1], 0)
        found = {
            rung.name: peers.measure(rung.build(), text)
            for in_time in (False, True)
            for rung in peers.Peers(dense, tokens, 0, (64,), in_time).rungs()
            if in_time == ("Qwen2SNNRecipe, T = 64, 64" in rung.name)
            or "T = 512" in rung.name
            or "rate_max" in rung.name
        }
        again = peers.Peers(dense, tokens, 0, (64,), False)
        sums = {r.name: peers.measure(r.build(), text) for r in again.rungs() if r.name in found}
    assert any("innate" in name for name in found)
    for name, values in found.items():
        assert values["tokens"] == 32 and values["spikes_per_token"] > 0
        assert values["cosine_similarity"] > 0.9, name
        # a spike more or less, where a sum falls between two counts
        assert values["cosine_similarity"] == pytest.approx(
            sums[name]["cosine_similarity"], abs=0.01
        )
