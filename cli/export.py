"""`neurtx export`: a run becomes a netlist."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import answer, json_option, teacher_option

if TYPE_CHECKING:
    from neurtransformer.folders import Place
    from neurtransformer.loihi.netlist import Manifest
    from neurtransformer.loihi.nodes import Spikes

    Written = tuple[Manifest, dict[str, Any], dict[str, Any]]
    """The manifest, what the integers cost, and the record of that."""

# held-out text that the loss of the integers is measured on
_TOKENS, _BLOCK = 2048, 256


@click.command()
@click.argument("run", required=False)
@click.option("--target", type=click.Choice(["loihi2", "nir"]), required=True)
@click.option(
    "--spikes",
    type=click.Choice(["binary", "graded", "rate"]),
    # the word of old, which also names a code, is still taken
    callback=lambda ctx, option, word: "binary" if word == "rate" else word,
    metavar="[binary|graded]",
    default="binary",
    show_default=True,
    help="A count as T binary spikes, or as one graded spike (Loihi 2).",
)
@click.option("--text", help="Text to measure the integers on: a file, - or a hub data set.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the netlist.")
@click.option("--force", is_flag=True, help="Replace a netlist that stands at --out.")
@teacher_option
@json_option
def command(
    run: str | None,
    target: str,
    spikes: "Spikes",
    text: str | None,
    out: Path | None,
    force: bool,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Write RUN as a netlist for Loihi 2, or what NIR can hold of it as NIR graphs.

    Weights become 8-bit integers, states 24-bit ones. For Loihi 2 each projection becomes a netx
    file that stock Lava loads; what the integers cost is measured on a little held-out text, and
    `neurtx simulate` runs the netlist and checks it. NIR holds the feed-forward chains, but no
    product of two signals: no attention, no LayerNorm. For Loihi 2 RUN may also be a plastic
    transformer, such as omniglot-plastic. A model that does not read English wants --text, or
    nothing is measured.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError
    from neurtransformer.folders import Place

    if target == "nir" and spikes != "binary":
        raise UserError("--spikes is for --target loihi2: a NIR graph takes counts either way")
    if target == "nir" and text is not None:
        raise UserError("--text is for --target loihi2: nothing is measured of a NIR graph")
    if target == "nir" and teacher is not None:
        raise UserError("--teacher is for --target loihi2: a NIR graph is compared with nothing")
    folder = runs.resolve("run", run)
    if target == "nir":
        values = _nir(folder, Place("nir", str(folder), out), force)
    else:
        place = Place("netlist", str(folder), out)
        values = _loihi2(folder, place, spikes, text, teacher, force)
    answer(values, as_json=as_json, title="exported")


def _loihi2(
    folder: Path,
    place: "Place",
    spikes: "Spikes",
    text: str | None,
    teacher: str | None,
    force: bool,
) -> dict[str, Any]:
    from neurtransformer import runs
    from neurtransformer.errors import UserError
    from neurtransformer.folders import new_folder

    plastic = runs.is_plastic(folder)
    for option, given in (("--text", text), ("--teacher", teacher)):
        if plastic and given is not None:
            raise UserError(f"{option} is for a GPT-2: {folder} reads drawings and has no teacher")
    with new_folder(place, force=force) as fresh:
        if plastic:
            manifest, cost, provenance = _write_plastic(folder, fresh, spikes)
        else:
            manifest, cost, provenance = _write_gpt2(folder, fresh, spikes, text, teacher)
    runs.remember("netlist", place.made)
    if cost:
        runs.update_report(folder, "integer", cost, provenance)
    return {
        "netlist": place.made,
        "run": folder,
        "target": "loihi2",
        "spikes": spikes,
        "files": len(manifest.files) + 1,
        "synapses": manifest.totals.synapses,
        "neurons": manifest.totals.neurons,
        "weight_bits": manifest.totals.weight_bits,
        **cost,
    }


def _write_plastic(folder: Path, fresh: Path, spikes: "Spikes") -> "Written":
    """Write the netlist of a plastic transformer; its accuracy is what `icl omniglot` measures."""
    from neurtransformer.icl.plastic import load, quantised
    from neurtransformer.loihi.netlist import write
    from neurtransformer.provenance import run_sha256
    from neurtransformer.runs import read_json

    from .progress import status

    with status("exporting") as note:
        sha256 = run_sha256(folder, read_json(folder / "config.json"))
        encoders, _ = load(folder)
        note("quantising")
        model = quantised(encoders["float"])
        manifest = write(
            fresh, model, None, spikes, made_from=folder, run_sha256=sha256, progress=note
        )
        return manifest, {}, {}


def _write_gpt2(
    folder: Path, fresh: Path, spikes: "Spikes", text: str | None, teacher: str | None
) -> "Written":
    """Write the netlist of a spiking GPT-2, and measure what the integers cost on `text`, for None
    on CPython's, if the tokenizer reads English."""
    from neurtransformer.errors import UserError
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.integer.quality import evaluate_integer
    from neurtransformer.loihi.netlist import write
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import UnreadableText, load_blocks

    from .progress import status

    with status("exporting") as note:
        note("reading the run")
        spiking, tokenizer = load_run(folder)
        # whoever names a teacher wants to hear of a mistake before the long work
        found = None if teacher is None else teacher_of(folder, spiking, teacher)
        note("quantising")
        model = IntegerGPT2.from_spiking(spiking)
        # before the long work, in which nobody wants to be told of a mistake
        block = min(_BLOCK, spiking.config.context)
        try:
            blocks = load_blocks(text, tokenizer, block, split="heldout", limit_tokens=_TOKENS)
        except UnreadableText as error:
            if text is not None:
                raise
            blocks = None
            click.echo(f"neurtx: what the integers cost is not measured: {error}", err=True)
        sha256 = model_sha256(spiking)
        manifest = write(
            fresh, model, tokenizer, spikes, made_from=folder, run_sha256=sha256, progress=note
        )
        if blocks is None:
            return manifest, {}, {}
        note("measuring what the integers cost")
        provenance = stamp(weights_sha256=sha256, text_sha256=text_sha256(blocks))
        try:
            found = found or teacher_of(folder, spiking, None)
        except UserError as error:  # the netlist does not need it
            click.echo(f"neurtx: not compared with the dense model: {error}", err=True)
            return manifest, evaluate_integer(model, spiking, None, blocks), provenance
        provenance |= {"teacher": found.source, "teacher_sha256": found.sha256}
        return manifest, evaluate_integer(model, spiking, found.dense, blocks), provenance


def _nir(folder: Path, place: "Place", force: bool) -> dict[str, Any]:
    from neurtransformer.folders import new_folder

    with new_folder(place, force=force) as fresh:
        from neurtransformer import nir_export
        from neurtransformer.integer.model import IntegerGPT2
        from neurtransformer.provenance import model_sha256
        from neurtransformer.spiking.load import load_run

        from .progress import status

        with status("exporting") as note:
            note("reading the run")
            spiking, _ = load_run(folder)
            note("quantising")
            model = IntegerGPT2.from_spiking(spiking)
            manifest = nir_export.write(
                fresh,
                model,
                made_from=folder,
                run_sha256=model_sha256(spiking),
                progress=note,
            )
    # not remembered as the last netlist: `simulate` and `place` read those for Loihi 2
    return {
        "netlist": place.made,
        "run": folder,
        "target": "nir",
        "files": len(manifest["graphs"]) + 1,
        **manifest["totals"],
        "left_out": manifest["left_out"],
    }
