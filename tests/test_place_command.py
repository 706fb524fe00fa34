"""`neurtx place`: a netlist, a model by name, a chip of one's own, mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurtransformer import dense, runs


@pytest.mark.parametrize("which", ["tiny_race_netlist", "tiny_netlist"])
def test_place_a_netlist(
    neurtx: Callable[..., Any], request: pytest.FixtureRequest, which: str
) -> None:
    folder = request.getfixturevalue(which)
    done = neurtx("place", str(folder), "--json", "--out", "cores.png")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["netlist"] == str(folder)
    assert found["cores"] >= 8
    assert found["chips"] == 1
    assert found["fits"] == {"one chip": True, "Kapoho Point": True, "Hala Point": True}
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    again = ("place", str(folder), "--out", "cores.png")
    assert "exists already" in neurtx(*again).mistake()
    assert neurtx(*again, "--force").returncode == 0


def test_what_is_placed_is_noted_for_the_report(
    neurtx: Callable[..., Any],
    tmp_path: Path,
    tiny_run: Path,
    copy_of: Callable[[Path], Path],
    nano_tokenizer: Any,
) -> None:
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.loihi import netlist
    from neurtransformer.provenance import model_sha256
    from neurtransformer.runs import read_json
    from neurtransformer.spiking.load import load_run

    run, folder = copy_of(tiny_run), tmp_path / "net"
    folder.mkdir()
    model, _ = load_run(run)
    integer, sha256 = IntegerGPT2.from_spiking(model), model_sha256(model)
    netlist.write(folder, integer, nano_tokenizer, "binary", made_from=run, run_sha256=sha256)
    (tmp_path / "mine.yaml").write_text("core:\n  synaptic_bytes: 65536\n")
    assert neurtx("place", str(folder), "--chip", str(tmp_path / "mine.yaml")).returncode == 0
    # a chip that is not there is nothing to report
    assert "place" not in read_json(run / "report.json")
    found = json.loads(neurtx("place", str(folder), "--json").stdout)
    noted = read_json(run / "report.json")["place"]
    assert noted.pop("provenance")["weights_sha256"] == sha256
    assert noted == {name: value for name, value in found.items() if name != "layers"}
    assert neurtx("report", str(run)).returncode == 0
    html = (run / "report.html").read_text()
    assert f'<th scope="row">cores</th><td>{found["cores"]}</td>' in html


def test_place_by_name(neurtx: Callable[..., Any]) -> None:
    found = json.loads(neurtx("place", "gpt2-xl", "--json").stdout)
    assert found["model"] == "gpt2-xl"
    assert found["fits"] == {"one chip": False, "Kapoho Point": False, "Hala Point": True}
    shown = neurtx("place", "gpt2-nano").stdout
    assert "fits Kapoho Point" in shown
    assert "h.attn.race" in shown


def test_a_name_means_what_it_means_to_convert(
    neurtx: Callable[..., Any], tmp_path: Path, tiny_netlist: Path
) -> None:
    """Whatever folder has the name too: that one is told apart by a path."""
    (tmp_path / "gpt2-nano").mkdir()
    done = neurtx("place", "gpt2-nano", "--json")
    assert json.loads(done.stdout)["model"] == "gpt2-nano" and done.stderr == ""
    assert "is not a netlist" in neurtx("place", "./gpt2-nano").mistake()
    shutil.copytree(tiny_netlist, tmp_path / "gpt2-nano", dirs_exist_ok=True)
    done = neurtx("place", "gpt2-nano", "--json")
    assert json.loads(done.stdout)["model"] == "gpt2-nano" and "./gpt2-nano" in done.stderr
    own = json.loads(neurtx("place", "./gpt2-nano", "--json").stdout)
    assert own["netlist"] == str(tmp_path / "gpt2-nano")
    # what others call a model goes behind a folder, as `locate` says
    assert json.loads(neurtx("place", "gpt2", "--json").stdout)["model"] == "gpt2-small"
    shutil.copytree(tiny_netlist, tmp_path / "gpt2")
    assert "netlist" in json.loads(neurtx("place", "gpt2", "--json").stdout)
    assert dense.locate("gpt2-nano") == runs.BUNDLED / "gpt2-nano"
    assert dense.locate("gpt2") == tmp_path / "gpt2"


def test_a_chip_of_ones_own(neurtx: Callable[..., Any], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("core:\n  synaptic_bytes: 65536\nsystems:\n  two chips: 2\n")
    half = json.loads(neurtx("place", "gpt2-small", "--chip", str(mine), "--json").stdout)
    full = json.loads(neurtx("place", "gpt2-small", "--json").stdout)
    assert 1.8 < half["cores"] / full["cores"] < 2.2
    assert half["fits"]["two chips"] is False


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("gpt2-huge",), "does not exist"),
        (("gpt2-nano", "--chip", "none.yaml"), "none.yaml does not exist"),
        (("gpt2-nano", "--chip", "bad.yaml"), "core.neurons"),
        (("gpt2-nano", "--chip", "odd.yaml"), "sugar"),
        (("gpt2-nano", "--out", "cores.pdf"), "--out must end in .png, not 'cores.pdf'"),
        (("gpt2-nano", "--out", "nowhere/cores.png"), "does not exist"),
        ((), "no netlist here yet"),
    ],
)
def test_mistakes(
    neurtx: Callable[..., Any], tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("core:\n  neurons: 0\n")
    (tmp_path / "odd.yaml").write_text("sugar: 3\n")
    assert message in neurtx("place", *args).mistake()
