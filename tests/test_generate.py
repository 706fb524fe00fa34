"""How `neurtx generate` draws its tokens, and where prompts come from."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import words

from neurtransformer.generate import Sampling, generate
from neurtransformer.integer.model import IntegerGPT2
from neurtransformer.spiking.load import load_run

PROMPT = "The quick"


@pytest.fixture(params=["torch", "integer"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_greedy_takes_the_likeliest(tiny_race_run: Path, backend: str) -> None:
    model, tokenizer = load_run(tiny_race_run)
    options: dict[str, Any] = {"backend": backend, "sampling": Sampling(greedy=True)}
    texts = {generate(model, tokenizer, PROMPT, 6, seed=seed, **options) for seed in range(3)}
    assert len(texts) == 1
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    network = IntegerGPT2.from_spiking(model) if backend == "integer" else None
    for _ in range(6):
        logits = network(ids) if network is not None else model(ids).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert texts == {tokenizer.decode(ids[0], skip_special_tokens=True)}


@pytest.mark.parametrize(
    ("near_greedy", "is_greedy"),
    [
        (Sampling(top_p=1e-6, temperature=3.0, top_k=0), True),
        (Sampling(temperature=1e-4), True),
        (Sampling(top_k=1, temperature=3.0), True),
        (Sampling(temperature=3.0, top_k=0), False),
    ],
)
def test_every_setting_does_something(
    tiny_race_run: Path, backend: str, near_greedy: Sampling, is_greedy: bool
) -> None:
    model, tokenizer = load_run(tiny_race_run)

    def text(sampling: Sampling) -> str:
        return generate(model, tokenizer, PROMPT, 8, backend=backend, seed=1, sampling=sampling)

    assert (text(near_greedy) == text(Sampling(greedy=True))) is is_greedy


def test_top_p_keeps_what_has_that_chance(tiny_race_run: Path) -> None:
    """Of the integer network, whose sampling is our own: the smallest set with that chance."""
    network = IntegerGPT2.from_spiking(load_run(tiny_race_run)[0])
    ids = words(1, 3)
    chances, order = network(ids)[0, -1].softmax(-1).sort(descending=True)
    some = 5
    share = float(chances[:some].sum()) - 1e-4
    drawn = set()
    for seed in range(60):
        torch.manual_seed(seed)
        drawn.add(int(network.generate(ids, 1, top_k=0, top_p=share)[0, -1]))
    assert len(drawn) > 1 and drawn <= set(order[:some].tolist())


# --- the command ---


def test_a_prompt_from_a_file(
    neurtx: Any, tiny_run: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n")
    run = copy_of(tiny_run)  # notes what was generated
    command = ("generate", str(run), "--tokens", "4", "--greedy")
    told = json.loads(neurtx(*command, "--prompt-file", "prompt.txt", "--json").stdout)
    assert told["prompt"] == PROMPT and told["text"].startswith(PROMPT)
    assert told["run"] == str(run)
    assert neurtx(*command, "--prompt", PROMPT).stdout == told["text"] + "\n"


def test_a_prompt_from_standard_input(
    neurtx: Any, tiny_run: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(given: bytes) -> Any:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        command = ("generate", str(run), "--tokens", "4", "--greedy", "--prompt-file", "-")
        return neurtx(*command, "--json")

    run = copy_of(tiny_run)
    assert json.loads(told(f"{PROMPT}\n".encode()).stdout)["prompt"] == PROMPT
    assert "the prompt is empty" in told(b"").mistake()
    assert "standard input is not UTF-8" in told(b"\xff").mistake()
    assert "standard input is longer" in told(b"x" * (2**20 + 1)).mistake()


def test_a_file_that_is_no_prompt(neurtx: Any, tiny_run: Path, tmp_path: Path) -> None:
    def complaint(name: str) -> str:
        line: str = neurtx("generate", str(tiny_run), "--prompt-file", name).mistake()
        return line

    (tmp_path / "bytes").write_bytes(bytes(range(128, 256)))
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "huge").write_text("x" * (2**20 + 1))
    (tmp_path / "loop").symlink_to("loop")
    assert "does not exist" in complaint("nowhere")
    assert "no ordinary file" in complaint(".")
    assert "no ordinary file" in complaint("/dev/zero")
    assert "not UTF-8" in complaint("bytes")
    assert "empty" in complaint("empty")
    assert "1,048,576 bytes" in complaint("huge")
    assert "loop" in complaint("loop")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", "--prompt TEXT or --prompt-file FILE"),
        ("--prompt a --prompt-file b", "--prompt TEXT or --prompt-file FILE"),
        ("--prompt a --greedy --top-k 5", "--top-k has no effect with --greedy: leave one out"),
        ("--prompt a --greedy --seed 5", "--seed has no effect with --greedy: leave one out"),
        ("--prompt a --backend integer --dtype float16", "--dtype has no effect"),
        ("--prompt a --temperature 0", "--temperature"),
        ("--prompt a --top-p 1.5", "--top-p"),
        ("--prompt a --top-k -1", "--top-k"),
        ("--prompt a --device tpu", "--device must be cpu, cuda or cuda:N, not 'tpu'"),
        ("--prompt a --device cuda:77", "there is no cuda:77 device here"),
        ("--prompt a --dtype float8", "--dtype"),
    ],
)
def test_options_that_do_not_fit(neurtx: Any, tiny_run: Path, options: str, line: str) -> None:
    assert line in neurtx("generate", str(tiny_run), *options.split()).mistake()
