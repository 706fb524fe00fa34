"""`neurtx generate`: continue a prompt."""

from functools import partial

import click

from .output import teacher_option, utf8


@click.command()
@click.argument("run", required=False)
@click.option("--prompt", required=True, help="The text to continue.", callback=utf8)
@click.option(
    "--tokens", type=click.IntRange(min=1), default=60, show_default=True, help="Tokens to write."
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "integer"]),
    default="torch",
    show_default=True,
    help="Which form of the network writes.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@teacher_option
def command(
    run: str | None, prompt: str, tokens: int, backend: str, seed: int, teacher: str | None
) -> None:
    """Continue a prompt with RUN, sampled at temperature 0.8 from the 40 likeliest tokens, which
    are written as they come.

    How much memory the text takes depends on the attention. Fast weights (`linear`) keep one matrix
    for each head, however long the text gets. A race (`ttfs`) keeps a neuron for each head and
    token, so that its memory grows as a key-value cache does. `neurtx report` shows what the dense
    model makes of the same prompt beside it.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    folder = runs.resolve("run", run)

    from neurtransformer.generate import generate
    from neurtransformer.provenance import model_sha256, stamp
    from neurtransformer.spiking.load import load_run, teacher_of

    model, tokenizer = load_run(folder)
    text = generate(
        model,
        tokenizer,
        prompt,
        tokens,
        backend=backend,
        seed=seed,
        on_text=partial(click.echo, nl=False),
    )
    click.echo()
    # the report of a run that ships stays as it is, and only the report wants the dense text
    if teacher is not None or not runs.is_bundled(folder):
        provenance = stamp(weights_sha256=model_sha256(model), seed=seed)
        values = {"prompt": prompt, "text": text, "backend": backend, "dense_text": None}
        try:
            found = teacher_of(folder, model, teacher)
        except UserError as error:
            if teacher is not None:
                raise
            click.echo(
                f"neurtx: the report will not show the dense model's text beside it: {error}",
                err=True,
            )
        else:
            provenance |= {"teacher": found.source, "teacher_sha256": found.sha256}
            values["dense_text"] = generate(
                found.dense, tokenizer, prompt, tokens, backend="torch", seed=seed
            )
        runs.update_report(folder, "generate", values, provenance)
    if run is None:
        click.echo(
            f"neurtx: this was written by {folder}, the last run that was made here", err=True
        )
