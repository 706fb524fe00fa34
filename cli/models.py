"""`neurtx models`: the names that `neurtx convert` knows."""

import click

from .output import answer, json_option, rows_table


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the short names of dense models, their sizes, and where their weights come from.

    `neurtx convert` takes these names, and any hub id (owner/name) or local folder of a GPT-2 or a
    Llama. "offline" says whether a model can be had without network.
    """
    from neurtransformer.dense import list_models

    models = list_models()
    columns = ("name", "layers", "width", "heads", "context", "parameters", "source", "offline")
    answer(
        {"models": models},
        as_json=as_json,
        table=lambda: rows_table(columns, [[model[key] for key in columns] for model in models]),
    )
