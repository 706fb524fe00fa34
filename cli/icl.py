"""`neurtx icl`: what is learnt in context, and what of it survives."""

from pathlib import Path
from typing import Any

import click

from .output import answer, json_option, rows_table

TASKS = ("induction", "omniglot")


@click.command()
@click.argument("task", type=click.Choice(["induction", "regression", "omniglot"]))
@click.argument("run", required=False)
@click.option("--text", help="Held-out text for losses: a file, - or a hub data set.")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="Tokens of it.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="SVG of the heads, to write.")
@click.option("--force", is_flag=True, help="Replace a file that stands at --picture.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="omniglot: the folder of its archives."
)
@click.option("--ways", type=click.IntRange(min=2), help="omniglot: characters of an episode.")
@click.option("--shots", type=click.IntRange(min=1), help="omniglot: drawings of each in context.")
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="omniglot: how many of each setting.",
)
@json_option
def command(
    task: str,
    run: str | None,
    text: str | None,
    limit: int,
    picture: Path | None,
    force: bool,
    data: Path | None,
    ways: int | None,
    shots: int | None,
    episodes: int,
    as_json: bool,
) -> None:
    """Measure in-context learning: TASK is `induction` or `omniglot`.

    induction: attention heads of RUN that find what followed an earlier occurrence of a token, and
    how much the loss falls along the context, for the dense teacher, the naive conversion, RUN and
    its integer network.

    omniglot: characters of unseen alphabets told from a few drawings in the context, by a small
    transformer whose attention is a plastic connection, in float, in integers and in the learning
    engine, and by controls. Without --ways and --shots in three settings, and in the official
    one-shot runs where all_runs.zip is in the folder.
    """
    from neurtransformer.errors import UserError

    if task not in TASKS:
        raise UserError(f"icl {task} is not built yet: this version knows {', '.join(TASKS)}")
    if task == "omniglot":
        from .icl_omniglot import omniglot

        return omniglot(data, ways, shots, episodes, as_json)
    if picture is not None and picture.exists() and not force:
        raise UserError(f"{picture} exists already: name another file or add --force")
    induction(run, text, limit, picture, as_json)


def induction(
    run: str | None, text: str | None, limit: int, picture: Path | None, as_json: bool
) -> None:
    """One table of all forms of a run, and one heat map of their heads."""
    from neurtransformer import runs

    folder = runs.resolve("run", run)

    from neurtransformer.icl.induction import dense_form, integer_form, measure, spiking_form
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.measure.figures import induction_heads
    from neurtransformer.recipe import load_recipe
    from neurtransformer.spiking.calibrate import calibration_text
    from neurtransformer.spiking.convert import convert
    from neurtransformer.spiking.load import load_run, load_teacher
    from neurtransformer.text import load_blocks

    from .progress import status

    model, tokenizer = load_run(folder)
    dense, config = load_teacher(model), model.config
    blocks = load_blocks(text, tokenizer, config.n_positions, split="heldout", limit_tokens=limit)
    found: dict[str, Any] = {}
    with status("measuring") as note:
        note("the dense model")
        found["dense"] = measure(dense_form(dense), config.vocab_size, blocks)
        note("the naive conversion")
        tokens = calibration_text(dense, tokenizer, None, load_recipe().calibration)
        naive = convert(dense, tokens, config.timesteps, "", coding=config.coding)
        found["converted"] = measure(spiking_form(naive), config.vocab_size, blocks)
        note("the spiking network")
        found["spiking"] = measure(spiking_form(model), config.vocab_size, blocks)
        note("the integer network")
        integer = integer_form(IntegerGPT2.from_spiking(model))
        found["integer"] = measure(integer, config.vocab_size, blocks)
    if picture is not None:
        heads = {name: values["prefix_matching"] for name, values in found.items()}
        runs.write_text(picture, induction_heads(heads).decode())
    runs.update_report(folder, "induction", found)
    columns = ("form", "prefix matching, best head", "layer.head", "its copying", "ICL score")
    rows = [_induction_row(name, values) for name, values in found.items()]
    values = {"task": "induction", "run": folder, "tokens": blocks.numel(), **found}
    answer(values, as_json=as_json, table=lambda: rows_table(columns, rows))


def _induction_row(name: str, values: dict[str, Any]) -> tuple[Any, ...]:
    layer, head = values["best_head"]
    copying = values["copying"][layer][head]
    return name, values["prefix_matching_max"], f"{layer}.{head}", copying, values["icl_score"]
