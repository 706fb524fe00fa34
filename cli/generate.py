"""`neurtx generate`: continue a prompt."""

from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from .options import device_option, dtype_option, reporting, teacher_option, utf8
from .output import answer

# what greedy decoding leaves nothing to do for
_DRAWING = ("temperature", "top_k", "top_p", "seed")


@click.command()
@click.argument("run", required=False)
@click.option("--prompt", help="The text to continue.", callback=utf8)
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="A UTF-8 file with the text to continue, or - for standard input; in the place of "
    "--prompt.",
)
@click.option(
    "--tokens", type=click.IntRange(min=1), default=60, show_default=True, help="Tokens to write."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=0.8,
    show_default=True,
    help="Randomness: below 1 favours likely tokens, above 1 evens them out.",
)
@click.option(
    "--top-k",
    metavar="K",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    help="Choose only among the K likeliest tokens; 0 means all.",
)
@click.option(
    "--top-p",
    metavar="P",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Choose only among the likeliest tokens whose probabilities add up to P.",
)
@click.option("--greedy", is_flag=True, help="Always take the likeliest token; nothing is random.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the random numbers; the same seed gives the same text.",
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "integer"]),
    default="torch",
    show_default=True,
    help="torch: the spiking network. integer: the integer network.",
)
@device_option
@dtype_option
@teacher_option
@reporting
@click.pass_context
def command(
    ctx: click.Context,
    run: str | None,
    prompt: str | None,
    prompt_file: Path | None,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    greedy: bool,
    seed: int,
    backend: str,
    device: str,
    dtype: str,
    teacher: str | None,
    as_json: bool,
) -> None:
    """Continue a prompt with RUN. The text is written as it comes.

    The integer network (`--backend integer`) computes in NumPy on the CPU.

    How much memory the text takes depends on the attention. Fast weights (`linear`) keep one matrix
    for each head, however long the text gets. A race (`ttfs`) keeps a neuron for each head and
    token, so that its memory grows as a key-value cache does. `neurtx report` shows what the dense
    model makes of the same prompt beside it.
    """
    from neurtransformer import runs
    from neurtransformer.errors import UserError

    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("give --prompt TEXT or --prompt-file FILE", ctx)
    _refuse_idle(ctx, "--greedy", greedy, _DRAWING)
    _refuse_idle(ctx, "--backend integer", backend == "integer", ("device", "dtype"))
    folder = runs.resolve("run", run)

    from neurtransformer.device import device_of, placed
    from neurtransformer.generate import Sampling, generate
    from neurtransformer.provenance import model_sha256, stamp
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import read_prompt

    from . import progress

    device_of(device)
    if prompt is None:
        assert prompt_file is not None
        prompt = read_prompt(prompt_file)
    sampling = Sampling(temperature, top_k, top_p, greedy)
    model, tokenizer = load_run(folder)
    provenance = stamp(weights_sha256=model_sha256(model), seed=seed)
    tell = (lambda _piece: None) if as_json else partial(click.echo, nl=False)
    text = generate(
        placed(model, device, dtype),
        tokenizer,
        prompt,
        tokens,
        backend=backend,
        seed=seed,
        sampling=sampling,
        on_text=tell,
    )
    if not as_json:
        click.echo()
    values = {"prompt": prompt, "text": text, "backend": backend, "dense_text": None}
    # the report of a run that ships stays as it is, and only the report wants the dense text
    if teacher is not None or not runs.is_read_only(folder):
        try:
            found = teacher_of(folder, model, teacher)
        except UserError as error:
            if teacher is not None:
                raise
            progress.remark(f"the report will not show the dense model's text beside it: {error}")
        else:
            provenance |= {"teacher": found.source, "teacher_sha256": found.sha256}
            values["dense_text"] = generate(
                placed(found.dense, device, dtype),
                tokenizer,
                prompt,
                tokens,
                backend="torch",
                seed=seed,
                sampling=sampling,
            )
        runs.update_report(folder, "generate", values, provenance)
    if as_json:
        answer({"run": folder, **values}, as_json=True)
    elif run is None:
        progress.remark(f"this was written by {folder}, the last run that was made here")


def _refuse_idle(ctx: click.Context, why: str, given: bool, idle: tuple[str, ...]) -> None:
    """Raise a usage error for an option that was typed and would do nothing."""
    for name in idle:
        if given and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect with {why}: leave one out", ctx
            )
