"""`neurtx place`: cores, chips and memory of a netlist, against the chip's limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import force_option, reporting
from .output import answer, free_file, rows_table

if TYPE_CHECKING:
    from neurtransformer.loihi.netlist import Manifest
    from neurtransformer.loihi.network import Network

# key of the answer -> the row for a person, and what it means
_SHOWN = {
    "cores": ("cores", "cores that the network takes"),
    "chips": ("chips", "chips that have so many cores"),
    "bottleneck": ("bottleneck", "the resource that is used most"),
    "lower_bound_chips": ("lower bound of chips", "no placement needs fewer"),
    "bound_factor": ("chips over the lower bound", "1 is as good as can be"),
}


@click.command()
@click.argument("netlist", required=False)
@click.option(
    "--chip",
    "description",
    type=click.Path(path_type=Path),
    help="A YAML file with chip limits that replace those of configs/loihi2.yaml.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Draw how full the cores are into this .png file.",
)
@force_option("--out")
@reporting
def command(
    netlist: str | None, description: Path | None, out: Path | None, force: bool, as_json: bool
) -> None:
    """Place NETLIST on the cores of Loihi 2, and say which systems hold it.

    What is found without --chip is noted in the run that NETLIST was made from, if it is still
    there, for `neurtx report`.

    NETLIST may also be the short name of a dense model, such as gpt2-xl or smollm2-135m (`neurtx
    models` lists them), because only the sizes of the network are needed. Some limits of the chip
    have not been published and are assumed; configs/loihi2.yaml says which.
    """
    from neurtransformer import runs

    if out is not None:
        out = free_file(out, "--out", force=force, kinds=(".png",))

    from neurtransformer.loihi.chip import Resources, load_chip
    from neurtransformer.loihi.place import place, summary, utilisation

    chip = load_chip(description)
    named, graph, manifest = _graph(netlist)
    placement = place(graph, chip)
    values = {**named, **summary(placement)}
    if manifest is not None and description is None:
        _note(manifest, values)
    if out is not None:
        from neurtransformer.measure.figures import core_utilisation

        names = [name.replace("_", " ") for name in Resources._fields]
        picture = core_utilisation(utilisation(placement), names, chip.cores_per_chip)
        runs.write_bytes(out, picture)
        values["picture"] = out
    answer(values, as_json=as_json, table=lambda: _tables(values))


def _note(manifest: "Manifest", values: Mapping[str, Any]) -> None:
    """For the report of the run that the netlist was made from."""
    from neurtransformer import runs
    from neurtransformer.provenance import stamp

    if manifest.run is not None and runs.is_one("run", run := Path(manifest.run)):
        noted = {name: value for name, value in values.items() if name != "layers"}
        runs.update_report(run, "place", noted, stamp(weights_sha256=manifest.run_sha256))


def _graph(given: str | None) -> "tuple[dict[str, Any], list[Network], Manifest | None]":
    """What NETLIST names, for the answer, its graph, and its manifest, which a name has not."""
    from neurtransformer import runs
    from neurtransformer.dense import KNOWN, model_called
    from neurtransformer.loihi.place import graph_of

    from .progress import remark

    model = model_called(given) if given is not None else None
    if model is not None:
        if runs.is_one("netlist", Path(str(given))):
            remark(f"{given} is the model of that name; the netlist is ./{given}")
        return {"model": model}, graph_of(KNOWN[model]), None
    folder = runs.resolve("netlist", given)

    from neurtransformer.loihi.netlist import read

    manifest = read(folder).manifest
    return {"netlist": folder}, manifest.networks, manifest


def _tables(values: Mapping[str, Any]) -> Any:
    """For a person: the counts, then the layers, those of the same name in all blocks together."""
    from rich.console import Group

    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in values["layers"]:
        parts = [part for part in layer["name"].split(".") if not part.isdigit()]
        kinds.setdefault(".".join(parts), []).append(layer)
    what = values.get("model") or values["netlist"]
    rows = [
        (
            kind,
            len(layers),
            sum(layer["cores"] for layer in layers),
            layers[0]["binds"] or "fits one core",
            *(round(100 * share, 1) for share in layers[0]["utilisation"].values()),
        )
        for kind, layers in kinds.items()
    ]
    resources = [f"{name.replace('_', ' ')} %" for name in values["utilisation"]]
    return Group(
        rows_table(
            ("", "", "meaning"),
            [
                *((name, values[key], what) for key, (name, what) in _SHOWN.items()),
                *((f"fits {name}", fits, "") for name, fits in values["fits"].items()),
                *(
                    (f"{name.replace('_', ' ')} used, %", round(100 * share, 1), "")
                    for name, share in values["utilisation"].items()
                ),
            ],
            title=f"{what} on {values['chip']}",
        ),
        rows_table(
            ("layer", "number of layers", "cores", "a core is full of", *resources),
            rows,
            title="how full the cores of each layer are, in the first block",
        ),
        " A row is all layers of one name: number of layers, and the cores of all of them. A layer "
        "that does not fit one core is split; a column names the resource of which its cores are "
        "full.\n",
    )
