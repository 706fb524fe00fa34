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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fuzzing import alter
from neurtransformer.measure.charts import charts
from neurtransformer.measure.forms import forms
from neurtransformer.measure.report import page, render
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
PLACE = {
    "chip": "Loihi 2",
    "cores": 1089,
    "chips": 10,
    "fits": {"one chip": False, "Kapoho Point": True},
    "bottleneck": "synaptic memory",
    "utilisation": {"synaptic_memory": 0.565},
}
STAMP = {
    "date": "2026-01-31T12:34:56+00:00",
    "command": "neurtx eval <run> --limit 4096",
    "versions": {"neurtx": "0.1.0", "torch": "2.13.0"},
    "weights_sha256": "a" * 64,
    "teacher_sha256": "b" * 64,
    "text_sha256": "c" * 64,
}
ASKS = {"src", "href", "srcset", "data", "poster", "action"}
MOST_BYTES = 3_000_000


class Page(HTMLParser):
    """What a browser would fetch, the tags that are open at the end, and what the tags say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.asked += [value or "" for name, value in attrs if name in ASKS]
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


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
        "place": PLACE,
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
    check_readable(html, parsed)
    for address in parsed.asked:
        svg = base64.b64decode(address.partition(",")[2]).decode()
        ElementTree.fromstring(svg)
        # names of namespaces are no addresses; what is drawn refers to the picture alone
        assert re.findall(r'(?:href|src)="(?!#|data:)[^"]*"', svg) == []
        assert re.findall(r"url\((?!#)", svg) == []


def check_readable(html: str, parsed: Page) -> None:
    """By eyes that need the dark, by screen readers, on a phone, and in an e-mail."""
    assert len(html.encode()) < MOST_BYTES
    assert all(head.get("scope") in ("row", "col") for head in parsed.all("th"))
    # whatever is wide scrolls in a box of its own, which the keyboard reaches
    assert html.count('<div class="wide" tabindex="0"><table') == len(parsed.all("table"))
    pictures, sources = parsed.all("img"), parsed.all("source")
    assert len(pictures) == len(sources)
    for picture, source in zip(pictures, sources, strict=True):
        title, _, values = picture["alt"].partition(": ")
        assert title and re.search(r"\d", values), picture["alt"]
        assert source["media"] == "(prefers-color-scheme: dark)"
        light, dark = (drawn(address) for address in (picture["src"], source["srcset"]))
        assert "#ffffff" in light and "#ffffff" not in dark
        assert "#16191c" in dark and "#1c1e21" in light and "#1c1e21" not in dark


def drawn(address: str) -> str:
    return base64.b64decode(address.partition(",")[2]).decode()


def test_a_fresh_run(tiny_run: Path) -> None:
    html = page(tiny_run)
    check_self_contained(html)
    for command in (
        "neurtx eval",
        "neurtx export --target loihi2",
        "neurtx simulate --prompt TEXT",
        "neurtx energy",
        "neurtx export --target loihi2, then neurtx place",
        "neurtx generate --prompt TEXT",
        "neurtx finetune",
    ):
        assert f"<code>{command}</code>" in html
    assert html.count("not measured yet:") == 4
    assert html.count("<img") == 1  # forgetting is known as soon as a run is calibrated
    assert "A race" not in html  # linear attention has none


def test_everything_measured(tiny_run: Path, full: dict[str, Any]) -> None:
    config = read_json(tiny_run / "config.json")
    html = render(full, config, "tiny", (torch.full((2, 2), 3), torch.ones(2, 2)))
    check_self_contained(html)
    assert "not measured yet:" not in html
    assert html.count("<img") == 6
    for said in (
        "1,089",
        "fits Kapoho Point",
        "56.5%",
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


def test_channels_that_were_left_out_are_said(tiny_run: Path, full: dict[str, Any]) -> None:
    thinned = {"left_out_percent": 38.6, "attention_dense_j": 4.5e-6, "model_dense_j": 19e-6}
    thinned |= {"attention_reduction_percent": 70.0, "model_reduction_percent": 55.1}
    energy = {**full["energy"], "thinned": thinned}
    html = render({**full, "energy": energy}, read_json(tiny_run / "config.json"), "x")
    check_self_contained(html)
    assert "39 % of the attention&#39;s channels were left out" in html
    assert "were left out" not in render(full, read_json(tiny_run / "config.json"), "x")


def test_what_people_write_is_text(tiny_run: Path, full: dict[str, Any]) -> None:
    html = render(full, read_json(tiny_run / "config.json"), "<i>name</i>")
    assert "<script" not in html
    assert "<i>name" not in html
    assert "<b>Once &lt;b&gt;upon</b> a &lt;script&gt;time" in html
    assert "<b>Once &lt;b&gt;upon</b> the &lt;i&gt;hill" in html


def test_spiking_text_stands_alone_without_a_teacher(full: dict[str, Any]) -> None:
    def writers(generated: dict[str, Any]) -> list[str]:
        page = render({"generate": generated}, {}, "x")
        return re.findall("<figcaption>(spiking|integer|dense)<", page)

    assert writers(full["generate"]) == ["spiking", "dense"]
    assert writers({**full["generate"], "backend": "integer"}) == ["integer", "dense"]
    assert writers({**full["generate"], "dense_text": None}) == ["spiking"]
    assert writers({"text": "of an older run"}) == ["spiking"]
    assert writers({"text": 7, "dense_text": "alone"}) == []


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
    assert rows["mismatches between Lava and the integer model"][0] == "0"
    assert re.fullmatch(r"[\d.]+% (less|more)", rows["attention energy, arithmetic"][0])
    assert "ESTIMATE" in rows["attention energy, arithmetic"][1]
    bill = full["energy"]["bill"]
    over = bill["spiking"]["total_j"] / bill["dense"]["int8, on-chip"]["total_j"]
    assert rows["energy over an int8 dense model's"][0] == f"{over:.2f}"
    # a NaN is null in report.json and makes no row
    assert summary_rows({"eval": {"ppl_ratio": None}}) == []


def test_a_loss_looks_like_one(full: dict[str, Any]) -> None:
    worse = {"reduction_percent": -12.34, "memory_reduction_percent": -80.0}
    rows = {row[0]: row for row in summary_rows({"energy": {"attention": worse, "model": worse}})}
    assert rows["whole-model energy, arithmetic"][1] == "12.3% more"
    assert "80.0% more" in rows["whole-model energy, arithmetic"][2]
    mismatched = forms({"simulate": {**SIMULATE, "mismatches": 3}})[-1]
    assert mismatched.worse and "3 mismatches" in (mismatched.beside or "")
    assert not forms({"simulate": SIMULATE})[-1].worse

    lost = json.loads(json.dumps(full["energy"]))
    for part in ("attention", "feed_forward", "model"):
        lost[part].update(spiking_j=2 * lost[part]["dense_j"], reduction_percent=-100.0)
    html = render({"energy": lost, "simulate": {**SIMULATE, "mismatches": 3}}, {}, "x")
    assert '<li class="loss">Arithmetic alone' in html
    assert html.count('<td class="number loss">100.0% more</td>') == 3
    assert re.search('<td class="long loss">3 mismatches', html)
    (bars,) = (p for p in Page(html).all("img") if p["alt"].startswith("Energy by part"))
    assert "100.0% more" in bars["alt"]
    assert "#d55e00" in drawn(bars["src"])  # what is worse is drawn in orange


def test_whatever_it_belongs_to_stands_at_its_top(full: dict[str, Any]) -> None:
    report = {**full, "eval": {**EVAL, "text": "/home/me/novel.txt", "provenance": STAMP}}
    config = {"dense": "gpt2-nano", "dense_sha256": "b" * 64}
    top, _, rest = render(report, config, "x", weights="a" * 64).partition("The four forms")
    head = top.partition("The numbers")[0]
    for said in ("a" * 12, "b" * 12, "c" * 12, "4,096 tokens of novel.txt", "2026-01-31 12:34 UTC"):
        assert said in head
    assert "/home/me" not in top  # where a text lies is nobody's business
    assert "a" * 13 not in top
    assert "neurtx eval &lt;run&gt; --limit 4096" in rest and "neurtx 0.1.0, torch 2.13.0" in rest


def test_the_commands_stand_in_the_order_in_which_they_are_typed() -> None:
    from neurtransformer.measure.origin import commands

    def made_by(command: object) -> dict[str, Any]:
        return {"provenance": {"command": command}}

    report = {
        "generate": made_by("g"),
        "simulate": made_by("s"),
        "eval": made_by("e"),
        "finetune": made_by("f2"),
        "earlier_trainings": [made_by("f1")],
        "integer": made_by("i"),
        "energy": made_by(["no", "command"]),
        "induction": made_by("e"),
        "convert": made_by("c"),
    }
    assert commands(report) == ["c", "f1", "f2", "e", "i", "s", "g"]


def test_the_same_numbers_draw_the_same_pictures(full: dict[str, Any]) -> None:
    heads = torch.full((2, 2), 3), torch.ones(2, 2)
    once, again = (charts(full, {"n_positions": 64}, heads) for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval", {"spike_rate_by_layer": {"first.attn.key": 0.1}}),
        ("eval", {"race": {"tokens": 3, "step": [], "share": [], "softmax": []}}),
        ("eval", {"raster": {"tokens": ["a"], "rows": [{"layer": 0}]}}),
        ("eval", {"attention_maps": {"tokens": [None], "heads": [{"dense": 7}]}}),
        ("eval", {"loss_by_position": {"position": 1}}),
        ("energy", {"model": 3}),
        ("energy", {"model": {"reduction_percent": "much"}, "bill": {"spiking": []}}),
        ("finetune", {"curve": [[1, "match"]]}),
        ("generate", {"prompt": ["a"], "text": 7, "dense_text": {}}),
        ("generate", {"text": "half a character: \ud800"}),
        ("place", {"cores": "many", "chips": 1}),
        ("place", {"cores": 1, "chips": 1, "fits": [], "utilisation": {"axons": "all"}}),
    ],
)
def test_values_of_a_wrong_type_are_left_out(name: str, value: dict[str, Any]) -> None:
    html = render({name: value}, {}, "x")
    check_self_contained(html)
    assert "<img" not in html
    summary_rows({name: value})


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_report_becomes_a_page(full: dict[str, Any], data: st.DataObject) -> None:
    """Whoever edits report.json, or has it from elsewhere, gets a page that leaves things out."""
    report = json.loads(json.dumps({**full, "eval": {**EVAL, "provenance": STAMP}}))
    alter(report, data)
    with pytest.MonkeyPatch.context() as patch:
        # most of the time, and nothing of report.json that it would be the first to read
        patch.setattr(Figure, "savefig", lambda self, file, **how: file.write(b"<svg/>"))
        html = render(report, {"n_positions": 64}, "x")
    assert Page(html).open == []
    html.encode()


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
