"""`neurtx report`: what is known of a run, as one HTML page."""

from pathlib import Path

import click

from .options import force_option, reporting
from .output import answer, free_file, rows_table


@click.command()
@click.argument("run", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file to write.  [default: RUN/report.html]"
)
@force_option("--out")
@reporting
def command(run: str | None, out: Path | None, force: bool, as_json: bool) -> None:
    """Gather what is known of RUN in one HTML page that needs nothing else to be read.

    The page names what has not been measured yet, with the command that measures it. It leaves out
    what was measured on earlier weights, before a training, and says so.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    folder = runs.resolve("run", run)
    if runs.is_plastic(folder):
        raise UserError(
            f"{folder} has no report, for it reads drawings, not text: use `neurtx icl omniglot`"
        )
    # one that ships with the package, or is the hub's, is not written to
    own = (Path.cwd() if runs.is_read_only(folder) else folder) / "report.html"
    # a page that stands there is an older one of the same run
    same = (out or own).expanduser().resolve() == own
    target = free_file(out or own, "--out", force=force or same)

    from neurtransformer.measure.report import page
    from neurtransformer.measure.summary import summary_rows
    from neurtransformer.provenance import current, remarks, run_sha256
    from neurtransformer.spiking.load import check_config

    check_config(folder)
    runs.write_text(target, page(folder))
    report, config = (runs.read_json(folder / f"{name}.json") for name in ("report", "config"))
    weights = run_sha256(folder, config)
    rows = summary_rows(current(report, weights))
    sentences = [f"{line[0].upper()}{line[1:]}." for line in remarks(report, config, weights)]
    if as_json:
        told = [dict(zip(("what", "number", "meaning"), row, strict=True)) for row in rows]
        values = {"run": folder, "report": target, "summary": told, "remarks": sentences}
        answer(values, as_json=True)
        return
    answer({}, as_json=False, table=lambda: rows_table(("", "number", "meaning"), rows))
    for line in [*sentences, str(target)]:
        click.echo(line)
