"""The report page: whole from any report.json, safe, and in need of nothing else."""

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner

from neurtransformer.measure.report import page, pictures, render, steps
from neurtransformer.measure.summary import summary_rows
from neurtransformer.runs import read_json, update_report

EVAL = {
    "ppl_dense": 30.0,
    "ppl_spiking": 33.0,
    "ppl_ratio": 1.1,
    "cosine_similarity": 0.95,
    "token_agreement": 0.8,
    "timesteps": 4,
    "spikes_per_token": 1234.5,
    "mean_spike_count": 1.2,
    "tokens": 4096,
    "spike_rate_by_layer": {"0.attn.encode": 0.3, "1.mlp.hidden": 0.1},
    "loss_by_position": [
        {"position": 31.5, "dense": 4.0, "spiking": 4.2},
        {"position": 95.0, "dense": 6.0, "spiking": None},
    ],
}
FINETUNE = {
    "steps": 4,
    "tokens": 1000,
    "train": "ssa",
    "seed": 0,
    "seconds": 12.0,
    "curve": [[1, "match", 1.0], [2, "match", 0.5], [3, "distil", None], [4, "distil", 0.2]],
}
SIMULATE = {"backend": "lava", "steps": 80, "tokens": 5, "mismatches": 0, "max_abs_difference": 0}
ASKS = {"src", "href", "srcset", "data", "poster", "action"}


class Page(HTMLParser):
    """What a browser would fetch, and the tags that are open at the end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [value or "" for name, value in attrs if name in ASKS]
        assert tag not in ("script", "link", "iframe", "object", "embed")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full(tiny_run: Path) -> dict[str, Any]:
    """A report.json in which every section is filled."""
    from neurtransformer.measure.energy import estimate, measure_spikes
    from neurtransformer.spiking.load import load_run

    model, _ = load_run(tiny_run)
    counter = measure_spikes(model, torch.arange(64).view(2, 32))
    return {
        **read_json(tiny_run / "report.json"),
        "eval": EVAL,
        "finetune": FINETUNE,
        "energy": {"text": None, "tokens": 64, **estimate(model, counter)},
        "integer": {"ppl_ratio": 1.15, "ppl_ratio_to_spiking": 1.045, "tokens": 512},
        "simulate": SIMULATE,
        "generate": {
            "prompt": "Once <b>upon",
            "text": "Once <b>upon a <script>time</script>",
            "dense_text": "Once <b>upon the <i>hill",
        },
    }


def check_self_contained(html: str) -> None:
    parsed = Page(html)
    assert parsed.open == []
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parsed.asked)
    assert "@import" not in html
    assert "url(" not in html
    for address in parsed.asked:
        svg = base64.b64decode(address.partition(",")[2]).decode()
        ElementTree.fromstring(svg)
        # names of namespaces are no addresses; what is drawn refers to the picture alone
        assert re.findall(r'(?:href|src)="(?!#|data:)[^"]*"', svg) == []
        assert re.findall(r"url\((?!#)", svg) == []


def test_a_fresh_run(tiny_run: Path) -> None:
    html = page(tiny_run)
    check_self_contained(html)
    assert html.count("not measured yet") == 3
    assert "neurtx finetune" in html
    assert "<code>neurtx energy</code>" in html
    assert html.count("<img") == 1  # forgetting is known as soon as a run is calibrated


def test_the_race_that_is_drawn_is_the_one_that_is_run(
    tiny_race_run: Path, nano_tokenizer: Any, full: dict[str, Any]
) -> None:
    """Its steps and shares are those of the membranes, simulated step by step."""
    from neurtransformer.measure.race import one_race
    from neurtransformer.measure.sentence import SENTENCE
    from neurtransformer.spiking.attention.race import listen
    from neurtransformer.spiking.load import load_run, load_teacher
    from neurtransformer.text import prompt_ids

    model, _ = load_run(tiny_race_run)
    found = one_race(model, load_teacher(model), nano_tokenizer)
    assert found is not None
    ids = prompt_ids(nano_tokenizer, SENTENCE)
    assert "".join(found["tokens"]) == SENTENCE
    raced: list[Any] = []
    hook = model.blocks[found["layer"]].attn.neurons.register_forward_hook(
        lambda module, args, output: raced.append(output)
    )
    model.steps = True
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    ((spikes, running),) = raced
    fired = spikes[:, found["head"], -1]
    first = int(fired.any(-1).nonzero()[0])
    times = [x.nonzero().flatten().tolist() for x in fired.T]
    assert found["step"] == [time[0] - first if time else None for time in times]
    one_hot = torch.eye(len(ids)).expand(2, -1, -1)
    *weights, number = listen(spikes, running, one_hot)[found["head"], -1].tolist()
    assert found["share"] == pytest.approx([weight / number for weight in weights])

    config = read_json(tiny_race_run / "config.json")
    assert page(tiny_race_run).count("<img") == 0  # nothing forgets
    html = render({**full, "eval": {**EVAL, "race": found}}, config, "tiny")
    check_self_contained(html)
    assert "A race" in html and html.count("<img") == 6


def test_everything_measured(tiny_run: Path, full: dict[str, Any]) -> None:
    config = read_json(tiny_run / "config.json")
    html = render(full, config, "tiny", (torch.full((2, 2), 3), torch.ones(2, 2)))
    check_self_contained(html)
    assert "not measured yet" not in html
    assert html.count("<img") == 6
    for said in (
        "1.100",
        "1.045",
        "0.950",
        "80.0%",
        "64.71 to 85.28%",
        "estimate",
        "Horowitz",
        "4.6 pJ",
    ):
        assert said in html


def test_what_people_write_is_text(tiny_run: Path, full: dict[str, Any]) -> None:
    html = render(full, read_json(tiny_run / "config.json"), "<i>name</i>")
    assert "<script" not in html
    assert "<i>name" not in html
    assert "<b>Once &lt;b&gt;upon</b> a &lt;script&gt;time" in html
    assert "<b>Once &lt;b&gt;upon</b> the &lt;i&gt;hill" in html


def test_spiking_text_stands_alone_without_a_teacher(full: dict[str, Any]) -> None:
    def forms(generated: dict[str, Any]) -> list[str]:
        return re.findall("<figcaption>(spiking|dense)<", render({"generate": generated}, {}, "x"))

    assert forms(full["generate"]) == ["spiking", "dense"]
    assert forms({**full["generate"], "dense_text": None}) == ["spiking"]
    assert forms({"text": "of an older run"}) == ["spiking"]


@pytest.mark.parametrize("name", ["eval", "finetune", "energy"])
def test_a_picture_may_be_missing(tiny_run: Path, full: dict[str, Any], name: str) -> None:
    html = render({**full, name: None}, read_json(tiny_run / "config.json"), "x")
    check_self_contained(html)
    # the energy section knows spike rates too
    assert html.count("<img") == {"eval": 4, "finetune": 4, "energy": 3}[name]


@pytest.mark.parametrize("name", ["convert", "recipe", "eval", "integer", "simulate", "generate"])
@pytest.mark.parametrize("value", [None, {}, [1]])
def test_any_section_may_be_missing_or_empty(
    tiny_run: Path, full: dict[str, Any], name: str, value: Any
) -> None:
    undrawn = {**full, "finetune": {}, "energy": {}, "eval": {"ppl_ratio": 1.1}, name: value}
    check_self_contained(render(undrawn, read_json(tiny_run / "config.json"), "x"))
    summary_rows(undrawn)


def test_of_nothing_comes_a_page() -> None:
    check_self_contained(render({}, {}, "nothing"))
    assert summary_rows({}) == []


def test_damaged_weights_cost_one_picture(tiny_run: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(tiny_run)
    (run / "model.safetensors").write_bytes(b"no")
    assert "<img" not in page(run)


def test_the_summary_says_what_it_knows(full: dict[str, Any]) -> None:
    rows = {what: (number, meaning) for what, number, meaning in summary_rows(full)}
    assert rows["perplexity ratio"][0] == "1.100"
    assert rows["spikes per token"][0] == "1,234"
    assert rows["mismatches on Loihi 2's stack"][0] == "0"
    assert rows["attention energy saved"][0].endswith("%")
    assert "ESTIMATE" in rows["attention energy saved"][1]
    bill = full["energy"]["bill"]
    over = bill["spiking"]["total_j"] / bill["dense"]["int8, on-chip"]["total_j"]
    assert rows["energy over an int8 dense model's"][0] == f"{over:.2f}"
    # a NaN is null in report.json and makes no row
    assert summary_rows({"eval": {"ppl_ratio": None}}) == []


def test_a_loss_of_similarity_is_not_hidden(full: dict[str, Any]) -> None:
    worse = {"reduction_percent": -12.34, "memory_reduction_percent": -80.0}
    rows = {row[0]: row for row in summary_rows({"energy": {"attention": worse, "model": worse}})}
    assert rows["whole-model energy saved"][1] == "-12.3%"
    assert "80.0% more" in rows["whole-model energy saved"][2]
    mismatched = steps({"simulate": {**SIMULATE, "mismatches": 3}})[-1]
    assert "mismatches 3" in (mismatched.result or "")


def test_the_same_numbers_draw_the_same_pictures(full: dict[str, Any]) -> None:
    heads = torch.full((2, 2), 3), torch.ones(2, 2)
    once, again = (pictures(full, {"n_positions": 64}, heads) for _ in range(2))
    assert once == again


def test_the_command(tiny_run: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    from neurtransformer.errors import UserError
    from neurtx.main import neurtx

    def report(*words: str) -> Any:
        return CliRunner().invoke(neurtx, ["report", str(run), *words])

    run = copy_of(tiny_run)
    update_report(run, "generate", {"prompt": "a", "text": "a b"})
    own = run / "report.html"
    for _ in range(2):  # the run's own page is replaced without a word
        assert report().stdout.splitlines()[-1] == str(own)
    out = tmp_path / "page.html"
    assert report("--out", str(out)).exit_code == 0
    assert out.read_text() == own.read_text()
    out.write_text("mine")
    for words in (["--out", str(out)], ["--out", str(run)], ["--out", "/no/such/place.html"]):
        assert isinstance(report(*words).exception, UserError)
    assert out.read_text() == "mine"
    assert report("--out", str(out), "--force").exit_code == 0
    assert out.read_text() != "mine"
    assert json.loads((run / "report.json").read_text())["generate"]["text"] == "a b"
