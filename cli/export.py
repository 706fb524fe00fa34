"""`neurtx export`: a run becomes a netlist."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import answer, json_option

if TYPE_CHECKING:
    from neurtransformer.loihi.graph import Spikes

# held-out text that the loss of the integers is measured on
_TOKENS, _BLOCK = 1024, 256


@click.command()
@click.argument("run", required=False)
@click.option("--target", type=click.Choice(["loihi2", "nir"]), required=True)
@click.option(
    "--spikes",
    type=click.Choice(["rate", "graded"]),
    default="rate",
    show_default=True,
    help="A count as T binary spikes, or as one graded spike.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the netlist.")
@click.option("--force", is_flag=True, help="Replace a netlist that stands at --out.")
@json_option
def command(
    run: str | None, target: str, spikes: "Spikes", out: Path | None, force: bool, as_json: bool
) -> None:
    """Write RUN as a netlist for Loihi 2.

    Weights become 8-bit integers, states 24-bit ones, and each projection a netx file that stock
    Lava loads. What that costs is measured on a little held-out text. `neurtx simulate` runs the
    netlist and checks it.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    if target == "nir":
        raise UserError(
            "NIR cannot hold a product of two signals or a LayerNorm, so no whole block, and its "
            "feed-forward chain alone comes with a later release: take --target loihi2"
        )
    folder = runs.resolve("run", run)
    netlist = out or runs.default_folder("netlist", str(folder))

    with runs.new_folder(netlist, force=force) as fresh:
        from neurtransformer.integer.model import IntegerGPT2
        from neurtransformer.integer.quality import evaluate_integer
        from neurtransformer.loihi.netlist import write
        from neurtransformer.spiking.load import load_run, load_teacher
        from neurtransformer.text import load_blocks

        from .progress import status

        with status("exporting") as note:
            note("reading the run")
            spiking, tokenizer = load_run(folder)
            note("quantising")
            model = IntegerGPT2.from_spiking(spiking)
            manifest = write(fresh, model, tokenizer, spikes, made_from=folder, progress=note)
            note("measuring what the integers cost")
            blocks = load_blocks(
                None,
                tokenizer,
                min(_BLOCK, spiking.config.n_positions),
                split="heldout",
                limit_tokens=_TOKENS,
            )
            try:
                dense = load_teacher(spiking)
            except UserError:  # the netlist does not need it
                dense = None
            cost = evaluate_integer(model, spiking, dense, blocks)
    netlist = netlist.expanduser().resolve()
    runs.remember("netlist", netlist)
    runs.update_report(folder, "integer", cost)
    values = {
        "netlist": netlist,
        "run": folder,
        "target": target,
        "spikes": spikes,
        "files": len(manifest.files) + 1,
        "synapses": manifest.totals.synapses,
        "neurons": manifest.totals.neurons,
        "weight_bits": manifest.totals.weight_bits,
        **cost,
    }
    answer(values, as_json=as_json, title="exported")
