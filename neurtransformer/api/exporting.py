"""`export`: a run to a netlist or to NIR graphs, what `neurtx export` does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neurtransformer.api.given import Named, check_choice, name_of, path_of
from neurtransformer.progress import SILENT, Note, Progress

if TYPE_CHECKING:
    from neurtransformer.loihi.netlist import Manifest

    Written = tuple[Manifest, dict[str, Any], dict[str, Any]]
    """The manifest, what the integers cost, and the record of that."""

INTEGER_TOKENS, INTEGER_BLOCK = 2048, 256
"""Held-out text that the loss of the integers is measured on."""


def export(
    run: Named = None,
    out: str | Path | None = None,
    *,
    target: Literal["loihi2", "nir"] = "loihi2",
    spikes: Literal["binary", "graded"] = "binary",
    text: str | Path | None = None,
    device: str = "cpu",
    teacher: str | Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a run as a netlist for Loihi 2, or what NIR can hold of it as NIR graphs.

    run: the folder of a run, or the name of one that ships with the package or is on the hub. None
        is the last run that a command made from the current folder.
    out: the folder to write. None is a free name below ./netlists or ./nir-graphs.
    target: "loihi2" or "nir". `spikes`, `text`, `device` and `teacher` are for "loihi2" alone.
    spikes: how a count travels: as T "binary" spikes, or as one "graded" spike that carries a
        number.
    text: what the loss of the integer network is measured on: a file, "-" for standard input, or a
        data set on the hub. None is the held-out part of CPython's text, of which nothing is
        measured if the tokenizer does not read English.
    device: where the spiking and the dense network compute for that, "cpu", "cuda" or "cuda:N"; the
        integer network computes on the CPU.
    teacher: the dense model to compare the integers with, a name or a folder, if it is not where it
        was or is to be another one. None is the one that the run remembers; if that is gone, a
        remark is made and the integers are compared with the spiking network alone.
    force: replace a netlist, or a folder of graphs, that stands at `out`.
    progress: is told how far the work is (`neurtransformer.progress.Progress`); by default nobody
        is.

    Returns a dict:

    - `netlist`: the folder that was written, an absolute Path, for either target; `run`: the run's;
    - `target`, and for "loihi2" `spikes`: the settings;
    - `files`: the number of files;
    - `synapses`, `neurons`: their numbers in what was written, without the synapses that a text
      writes;
    - `weight_bits`: bits of a weight;
    - `left_out`, for "nir": what NIR cannot hold, in words;
    - for "loihi2", of a language model and where a text was read: `tokens`, how many were read;
      `ppl_integer` and `ppl_spiking`, the perplexities of the integer and the spiking network on
      them; `ppl_ratio_to_spiking`, the former divided by the latter; and where there is a dense
      model `ppl_dense` and `ppl_ratio`, `ppl_integer` divided by that.

    The latter are noted in the run's report.json too, unless the run ships with the package or is
    the hub's.

    Raises UserError for a run that the target cannot hold, a text or a named teacher that cannot be
    had, a setting that the target does not take, or a folder that may not be replaced.
    """
    from neurtransformer import runs
    from neurtransformer.device import device_of
    from neurtransformer.errors import UserError

    check_choice("target", target, ("loihi2", "nir"))
    check_choice("spikes", spikes, ("binary", "graded"))
    if target == "nir" and spikes != "binary":
        raise UserError("--spikes is for --target loihi2: a NIR graph takes counts either way")
    if target == "nir" and text is not None:
        raise UserError("--text is for --target loihi2: nothing is measured of a NIR graph")
    if target == "nir" and teacher is not None:
        raise UserError("--teacher is for --target loihi2: a NIR graph is compared with nothing")
    if target == "nir" and device != "cpu":
        raise UserError("--device is for --target loihi2: nothing is measured of a NIR graph")
    device_of(device)
    folder = runs.resolve("run", name_of(run))
    if target == "nir":
        return _nir(folder, path_of(out), force, progress)
    texts = name_of(text), name_of(teacher)
    return _loihi2(folder, path_of(out), spikes, device, *texts, force, progress)


def _loihi2(
    folder: Path,
    out: Path | None,
    spikes: Literal["binary", "graded"],
    device: str,
    text: str | None,
    teacher: str | None,
    force: bool,
    progress: Progress,
) -> dict[str, Any]:
    from neurtransformer import runs
    from neurtransformer.errors import UserError
    from neurtransformer.folders import Place, new_folder

    plastic = runs.is_plastic(folder)
    for option, given in (("--text", text), ("--teacher", teacher)):
        if plastic and given is not None:
            raise UserError(f"{option} is for a GPT-2: {folder} reads drawings and has no teacher")
    if plastic and device != "cpu":
        raise UserError(f"--device is for a GPT-2: of {folder} only the netlist is written")
    place = Place("netlist", str(folder), out)
    with new_folder(place, force=force) as fresh, progress.status("exporting") as note:
        if plastic:
            manifest, cost, provenance = _write_plastic(folder, fresh, spikes, note)
        else:
            manifest, cost, provenance = _write_text(
                folder, fresh, spikes, device, text, teacher, note, progress.remark
            )
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


def _write_plastic(
    folder: Path, fresh: Path, spikes: Literal["binary", "graded"], note: Note
) -> "Written":
    """Write the netlist of a plastic transformer; its accuracy is what `icl omniglot` measures."""
    from neurtransformer.icl.plastic import load as load_plastic
    from neurtransformer.icl.plastic import quantised
    from neurtransformer.loihi.netlist import write
    from neurtransformer.provenance import run_sha256
    from neurtransformer.runs import read_json

    sha256 = run_sha256(folder, read_json(folder / "config.json"))
    encoders, _ = load_plastic(folder)
    note("quantising")
    model = quantised(encoders["float"])
    manifest = write(fresh, model, None, spikes, made_from=folder, run_sha256=sha256, progress=note)
    return manifest, {}, {}


def _write_text(
    folder: Path,
    fresh: Path,
    spikes: Literal["binary", "graded"],
    device: str,
    text: str | None,
    teacher: str | None,
    note: Note,
    remark: Note,
) -> "Written":
    """Write the netlist of a language model, and measure what the integers cost on `text`, for None
    on CPython's, if the tokenizer reads English; torch's networks then compute on `device`."""
    from neurtransformer.device import placed
    from neurtransformer.errors import UserError
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.integer.quality import evaluate_integer
    from neurtransformer.loihi.netlist import write
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import UnreadableText, load_blocks

    note("reading the run")
    spiking, tokenizer = load_run(folder)
    # whoever names a teacher wants to hear of a mistake before the long work
    found = None if teacher is None else teacher_of(folder, spiking, teacher)
    note("quantising")
    model = IntegerGPT2.from_spiking(spiking)
    # before the long work, in which nobody wants to be told of a mistake
    block = min(INTEGER_BLOCK, spiking.config.context)
    try:
        blocks = load_blocks(text, tokenizer, block, split="heldout", limit_tokens=INTEGER_TOKENS)
    except UnreadableText as error:
        if text is not None:
            raise
        blocks = None
        remark(f"what the integers cost is not measured: {error}")
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
        remark(f"not compared with the dense model: {error}")
        return manifest, evaluate_integer(model, placed(spiking, device), None, blocks), provenance
    provenance |= {"teacher": found.source, "teacher_sha256": found.sha256}
    dense = placed(found.dense, device)
    return manifest, evaluate_integer(model, placed(spiking, device), dense, blocks), provenance


def _nir(folder: Path, out: Path | None, force: bool, progress: Progress) -> dict[str, Any]:
    from neurtransformer.folders import Place, new_folder

    place = Place("nir", str(folder), out)
    with new_folder(place, force=force) as fresh:
        from neurtransformer import nir_export
        from neurtransformer.integer.model import IntegerGPT2
        from neurtransformer.provenance import model_sha256
        from neurtransformer.spiking.load import load_run

        with progress.status("exporting") as note:
            note("reading the run")
            spiking, _ = load_run(folder)
            note("quantising")
            model = IntegerGPT2.from_spiking(spiking)
            sha256 = model_sha256(spiking)
            manifest = nir_export.write(
                fresh, model, made_from=folder, run_sha256=sha256, progress=note
            )
    return {
        "netlist": place.made,
        "run": folder,
        "target": "nir",
        "files": len(manifest["graphs"]) + 1,
        **manifest["totals"],
        "left_out": manifest["left_out"],
    }
