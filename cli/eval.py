"""`neurtx eval`: a run beside its dense teacher, on the same tokens."""

import click

from .output import answer, json_option, rows_table, teacher_option

_BUCKETS = 16  # of positions, for the report's picture


@click.command()
@click.argument("run", required=False)
@click.option("--text", help="Held-out text: a file, - or a hub data set.")
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    default=8192,
    show_default=True,
    help="Tokens to evaluate on.",
)
@click.option(
    "--block",
    type=click.IntRange(min=2),
    help="Tokens of one text.  [default: the model's context, 1024 at most]",
)
@click.option("--mode", type=click.Choice(["counts", "steps"]), default="counts", show_default=True)
@teacher_option
@json_option
def command(
    run: str | None,
    text: str | None,
    limit: int,
    block: int | None,
    mode: str,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Compare RUN with the dense model it was made from, on the same tokens.

    `--mode steps` simulates every time step with SpikingJelly's neurons; its numbers equal those of
    `counts`, T times slower. Losses by position, up to twice the context of the model, are measured
    in counts and drawn by `neurtx report`.
    """
    from neurtransformer import runs

    folder = runs.resolve("run", run)
    if mode == "steps":
        from neurtransformer.spiking.coding import soft_reset_neuron

        soft_reset_neuron()  # says so if SpikingJelly is missing

    from neurtransformer.measure.energy import estimate
    from neurtransformer.measure.position import doubled, loss_by_position
    from neurtransformer.measure.quality import counting_spikes, evaluate
    from neurtransformer.measure.race import one_race
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import BLOCK, load_blocks

    from .progress import bar

    model, tokenizer = load_run(folder)
    length = min(block or BLOCK, model.config.context)
    blocks = load_blocks(text, tokenizer, length, split="heldout", limit_tokens=limit)
    found, long = teacher_of(folder, model, teacher), doubled(blocks)
    dense = found.dense
    provenance = stamp(
        weights_sha256=model_sha256(model),
        teacher=found.source,
        teacher_sha256=found.sha256,
        text_sha256=text_sha256(blocks),
    )
    with bar(f"evaluating ({mode})", blocks.numel() + long.numel(), "tokens") as advance:
        model.steps = mode == "steps"
        with counting_spikes(model) as counter:
            values = evaluate(
                model, dense, blocks, counter, on_tokens=lambda tokens: advance(tokens, "")
            )
        model.steps = False  # equal, and what is a witness above would only take longer here
        curve = loss_by_position(
            model, dense, long, _BUCKETS, on_tokens=lambda tokens: advance(tokens, "")
        )
    energy = estimate(model, counter)
    saved = {
        f"{part}_energy_reduction_percent": energy[part]["reduction_percent"]
        for part in ("attention", "model")
    }
    values = {"run": folder, "mode": mode, "text": text, **values, **saved}
    values["loss_by_position"] = curve
    race = one_race(model, dense, tokenizer)
    if race is not None:
        values["race"] = race
    told = {name: value for name, value in values.items() if name != "run"}
    runs.update_report(folder, "eval", told, provenance)
    # what the report draws: rates layer by layer, losses position by position, one race
    drawn = ("spike_rate_by_layer", "loss_by_position", "race")
    rows = [
        (f"{name}, ESTIMATE" if name in saved else name, value)
        for name, value in values.items()
        if name not in drawn
    ]
    title = "spiking beside dense"
    answer(values, as_json=as_json, table=lambda: rows_table(("", ""), rows, title=title))
