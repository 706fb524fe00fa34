"""`neurtx generate`: continue a prompt."""

import click

from .output import utf8


@click.command()
@click.argument("run", required=False)
@click.option("--prompt", required=True, help="The text to continue.", callback=utf8)
@click.option("--tokens", type=click.IntRange(min=1), default=60, show_default=True)
@click.option(
    "--backend", type=click.Choice(["torch", "integer"]), default="torch", show_default=True
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def command(run: str | None, prompt: str, tokens: int, backend: str, seed: int) -> None:
    """Continue a prompt with RUN, sampled at temperature 0.8 from the 40 likeliest tokens.

    The state is one matrix per head, so memory stays the same however long the text gets. What the
    dense model makes of the same prompt stands beside it in `neurtx report`.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    folder = runs.resolve("run", run)

    from neurtransformer.generate import generate
    from neurtransformer.spiking.load import load_run, load_teacher

    model, tokenizer = load_run(folder)
    text = generate(model, tokenizer, prompt, tokens, backend=backend, seed=seed)
    try:
        dense = load_teacher(model)
    except UserError as error:
        click.echo(f"neurtx: no dense text beside it in the report: {error}", err=True)
        dense_text = None
    else:
        dense_text = generate(dense, tokenizer, prompt, tokens, backend="torch", seed=seed)
    values = {"prompt": prompt, "text": text, "backend": backend, "dense_text": dense_text}
    runs.update_report(folder, "generate", values)
    click.echo(text)
