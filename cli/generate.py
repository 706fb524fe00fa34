"""`neurtx generate`: continue a prompt."""

import click


@click.command()
@click.argument("run", required=False)
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--tokens", type=click.IntRange(min=1), default=60, show_default=True)
@click.option(
    "--backend", type=click.Choice(["torch", "integer"]), default="torch", show_default=True
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def command(run: str | None, prompt: str, tokens: int, backend: str, seed: int) -> None:
    """Continue a prompt with RUN, sampled at temperature 0.8 from the 40 likeliest tokens.

    The state is one matrix per head, so memory stays the same however long the text gets.
    """
    from neurtransformer import runs

    folder = runs.resolve("run", run)

    from neurtransformer.generate import generate
    from neurtransformer.spiking.load import load_run

    model, tokenizer = load_run(folder)
    text = generate(model, tokenizer, prompt, tokens, backend=backend, seed=seed)
    runs.update_report(folder, "generate", {"prompt": prompt, "text": text, "backend": backend})
    click.echo(text)
