"""`neurtx models`: the names that other commands know."""

from typing import Any

import click

from .options import reporting
from .output import answer, rows_table

_DENSE = ("name", "layers", "width", "heads", "context", "parameters", "source", "offline")
_RUNS = (
    "name",
    "made from",
    "attention",
    "code of the attention",
    "code of the feed-forward blocks",
)


@click.command()
@reporting
def command(as_json: bool) -> None:
    """List the dense models that have a short name, and the runs that ship with neurtx.

    `neurtx convert` takes the names of dense models, and any hub id (owner/name) or local folder of
    a GPT-2 or a Llama. "offline" says whether a model can be had without network.

    Every command that takes a RUN takes the name of a run that ships. Such a name always means that
    run; one of your own that has the same name is told apart by its path, such as ./NAME.
    """
    from neurtransformer.dense import list_models

    values = {"models": list_models(), "runs": _shipped()}
    answer(values, as_json=as_json, table=lambda: _tables(values))


def _shipped() -> list[dict[str, Any]]:
    """What the configs of the runs that ship say of them."""
    from neurtransformer import runs

    rows = []
    for name in runs.bundled("run"):
        folder = runs.BUNDLED / name
        config = {"attention": "linear", **runs.read_json(folder / "config.json")}
        if runs.is_plastic(folder):
            config |= {"attention": None}
        steps, coding = config.get("timesteps"), config.get("coding")
        rows.append(
            {
                "name": name,
                "model": config.get("dense"),
                "attention": config.get("attention"),
                "attention_timesteps": config.get("attention_timesteps") or steps,
                "attention_coding": config.get("attention_coding") or coding,
                "timesteps": steps,
                "coding": coding,
                "path": folder,
            }
        )
    return rows


def _tables(values: dict[str, Any]) -> Any:
    from rich.console import Group

    rows = [
        (
            row["name"],
            row["model"] or "drawings (`neurtx icl omniglot`)",
            row["attention"] or "plastic synapses",
            _code(row["attention_coding"], row["attention_timesteps"]),
            _code(row["coding"], row["timesteps"]),
        )
        for row in values["runs"]
    ]
    models = [[model[key] for key in _DENSE] for model in values["models"]]
    return Group(
        rows_table(_DENSE, models, title="dense models that have a short name"),
        rows_table(_RUNS, rows, title="spiking runs that ship with neurtx (read-only)"),
    )


def _code(coding: str | None, timesteps: int | None) -> str | None:
    return None if coding is None else f"{coding}, T = {timesteps}"
