"""Pretrain a GPT-2 from random weights within a given time: the script behind `gpt2-nano`.

    python scripts/pretrain/pretrain.py --text FILE[=WEIGHT] [--text ...] --out DIR [--minutes N]
      [--resume]

Text is UTF-8; a line `<|endoftext|>` separates documents. Each row of a batch is a random window
of one file, drawn with the probability WEIGHT / sum of weights (1 if left out). The learning rate
and the length of the rows follow the share of `--minutes` that is used up, so a run ends on time
on a fast machine and on a shared one. Stopped, it goes on with `--resume`; a smaller `--minutes`
then brings the decay forward, a larger one puts it off. In DIR:

    model/        the latest model in float16, with its tokenizer and losses.json: load it from here
    checkpoint/   float32 weights, optimizer (safetensors) and counters (JSON): what --resume needs
    tokens/       the text as token numbers, made once

The bundled model. Two processes of one thread are faster than one process of two threads on two
cores (one meeting per step instead of one per operation), and suffer far less from other load:

    export OMP_NUM_THREADS=1; T=corpus/train; H=corpus/heldout
    torchrun --standalone --nproc-per-node 2 scripts/pretrain/pretrain.py --out run --minutes 105 \\
      --text $T/classic_books.txt=.30 --text $T/english_novels.txt=.24 \\
      --text $T/openstax_textbooks.txt=.30 --text $T/us_presidential_addresses.txt=.06 \\
      --text $T/wikipedia_articles.txt=.05 --text $T/onestop_english_news.txt=.04 \\
      --text $T/tinystories_sample.txt=.01 --heldout $H/novels.txt --heldout $H/textbooks.txt \\
      --tokenizer neurtransformer/models/gpt2-nano

`--grow MODEL` starts from a smaller model of the same tokenizer, written larger so that it computes
the same (pretrain_grow.py). Without `--tokenizer`, a byte-level BPE of `--vocabulary` entries is
trained on the same text.
At real scale (GPT-2 small, one machine with 8 GPUs; the rates are a start, not tuned there):

    accelerate launch --multi_gpu --num_processes 8 scripts/pretrain/pretrain.py --text web.txt \\
      --heldout held.txt --tokenizer openai-community/gpt2 --layers 12 --width 768 --heads 12 \\
      --context 1024 --batch-tokens 65536 --muon-lr 0.02 --adam-lr 1e-3 --out run --minutes 600

Sources: GPT-2, Radford et al. 2019; Muon, Keller Jordan et al. 2024
(https://kellerjordan.github.io/posts/muon/); AdamW, Loshchilov & Hutter 2019; linear decay to
zero, Bergsma et al. 2025 (arXiv 2502.15938); short rows first, Li et al. 2022 (arXiv 2108.06084).
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from pretrain_data import Mistake, parse_mixture, read_tokens, replace_folder, train_tokenizer
from pretrain_grow import grown
from pretrain_kernels import ChunkedCrossEntropy
from pretrain_run import Run

FOLDER = click.Path(file_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True)


@click.command(context_settings={"show_default": True})
@click.option("--text", "texts", multiple=True, metavar="FILE[=WEIGHT]", help="Text to learn.")
@click.option("--heldout", multiple=True, metavar="FILE", help="Text to measure on.")
@click.option("--tokenizer", "tokenizer_name", help="Folder or hub name; else one is trained.")
@click.option("--vocabulary", default=4096, type=click.IntRange(min=257), help="Its entries.")
@click.option("--out", required=True, type=FOLDER, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--force", is_flag=True, help="Start over, though --out holds a checkpoint.")
@click.option("--minutes", default=105.0, type=RATE, help="Length of the whole run.")
@click.option("--grow", type=FOLDER, help="A trained model to start from, written larger.")
@click.option("--layers", default=4, type=POSITIVE)
@click.option("--width", default=256, type=POSITIVE)
@click.option("--heads", default=4, type=POSITIVE)
@click.option("--context", default=512, type=click.IntRange(min=4))
@click.option("--batch-tokens", default=2048, type=POSITIVE, help="Of one process in one step.")
@click.option("--muon-lr", default=0.02, type=RATE, help="Peak rate of the block matrices.")
@click.option("--adam-lr", default=4e-3, type=RATE, help="Peak rate of everything else.")
@click.option(
    "--decay-from",
    default=0.4,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the time after which the rates fall, linearly, to 0.",
)
@click.option("--compile/--no-compile", "compiled", default=True, help="Use torch.compile.")
@click.option("--eval-every", default=2_000_000, type=POSITIVE, help="Tokens between measurements.")
@click.option("--checkpoint-minutes", default=5.0, type=RATE)
@click.option("--seed", default=0)
def main(
    texts: tuple[str, ...],
    heldout: tuple[str, ...],
    tokenizer_name: str | None,
    vocabulary: int,
    out: Path,
    resume: bool,
    force: bool,
    minutes: float,
    grow: Path | None,
    layers: int,
    width: int,
    heads: int,
    context: int,
    batch_tokens: int,
    muon_lr: float,
    adam_lr: float,
    decay_from: float,
    compiled: bool,
    eval_every: int,
    checkpoint_minutes: float,
    seed: int,
) -> None:
    """Pretrain a GPT-2 from random weights within a given time (see the top of this script)."""
    files, shares = parse_mixture(texts)
    for file in (*files, *map(Path, heldout)):
        if not file.is_file():
            raise Mistake(f"no such file: {file}")
    if width % heads:
        raise Mistake(f"--width {width} is not a multiple of --heads {heads}")
    begun = (out / "checkpoint").exists()
    if resume and not begun:
        raise Mistake(f"nothing to resume in {out}: leave out --resume")
    if begun and not (resume or force):
        raise Mistake(f"{out} holds a checkpoint: give --resume, or --force to start over")

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    with accelerator.main_process_first():  # it writes, the others then read
        if tokenizer_name is None:
            tokenizer_name = str(out / "tokenizer")
            if not Path(tokenizer_name).exists():
                replace_folder(out / "tokenizer", lambda p: train_tokenizer(files, vocabulary, p))
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
        except (OSError, ValueError):
            raise Mistake(f"no tokenizer in {tokenizer_name}") from None
        (out / "tokens").mkdir(parents=True, exist_ok=True)
        streams = [read_tokens(f, tokenizer, out / "tokens") for f in files]
        measured = {Path(h).stem: read_tokens(Path(h), tokenizer, out / "tokens") for h in heldout}
    sources = (*files, *map(Path, heldout))
    for file, ids in zip(sources, (*streams, *measured.values()), strict=True):
        if len(ids) <= context:
            raise Mistake(f"{file} has {len(ids)} tokens: too few for --context {context}")
        accelerator.print(f"{file.stem}: {len(ids):,} tokens")

    torch.manual_seed(seed)
    start = tokenizer.bos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=start,
        eos_token_id=start,
    )
    if grow is None:
        model = GPT2LMHeadModel(config)
        for name, p in model.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.zeros_(p)  # each block begins as the identity
    else:
        model = grown(GPT2LMHeadModel.from_pretrained(grow, use_safetensors=True), config)
    model.config.use_cache = False
    model.config._attn_implementation = "sdpa" if device.type == "cuda" else "blocks"
    model.to(device)
    run = Run(model, accelerator, muon_lr, adam_lr)
    model.to(torch.bfloat16)  # after the masters have been copied from it
    if resume:
        run.load(out / "checkpoint")
    run.publish()
    if compiled:
        model.transformer.compile(dynamic=False)
    head = run.working["transformer.wte.weight"]

    def batch(length: int) -> Tensor:
        rng = np.random.default_rng([seed, run.step, accelerator.process_index])
        rows = []
        for _ in range(max(1, batch_tokens // length)):
            ids = streams[rng.choice(len(streams), p=shares)]
            at = int(rng.integers(len(ids) - length))
            rows.append(ids[at : at + length + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows)).to(device)

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (accelerator.is_main_process and console.is_terminal),
    )
    task = bar.add_task("pretraining", total=minutes * 60, completed=int(run.elapsed))
    zero = time.monotonic() - run.elapsed
    logged, saved, tokens_then, mean = run.elapsed, run.elapsed, run.tokens, 0.0
    with bar:
        while (progress := run.elapsed / (60 * minutes)) < 1:
            # Short rows first: they are cheaper, and words come before chapters.
            early = 1 if grow else 4 if progress < 0.08 else 2 if progress < 0.25 else 1
            length = context // early
            rows = batch(length)
            inputs, targets = rows[:, :-1], rows[:, 1:].flatten()
            loss = ChunkedCrossEntropy.apply(run.hidden(inputs), head, targets)
            value, rate = run.update(loss, time.monotonic() - zero, minutes, decay_from)
            run.tokens += len(targets) * accelerator.num_processes
            mean = 0.98 * mean + 0.02 * value if mean else value
            if run.elapsed - logged > 20:
                speed = (run.tokens - tokens_then) / (run.elapsed - logged)
                line = (
                    f"{run.tokens / 1e6:.2f} M tokens, loss {mean:.3f}, rate {rate:.2f}, "
                    f"length {length}, {speed:.0f} tokens/s"
                )
                bar.update(task, completed=run.elapsed, description=line)
                if not console.is_terminal:
                    accelerator.print(f"{run.elapsed / 60:.1f}/{minutes:g} min: {line}", flush=True)
                logged, tokens_then = run.elapsed, run.tokens
            last = run.elapsed >= 60 * minutes
            if last or run.tokens - run.evaluated >= eval_every:
                run.evaluated = run.tokens
                losses = run.evaluate(measured, context, max(1, batch_tokens // context))
                run.curve.append(
                    {
                        "tokens": run.tokens,
                        "train_loss": round(mean, 4),
                        "heldout_loss": losses,
                        "minutes": round(run.elapsed / 60, 1),
                    }
                )
                if accelerator.is_main_process:
                    console.print(f"held out: {losses}")
            if last or run.elapsed - saved > 60 * checkpoint_minutes:
                run.save(out, tokenizer)
                saved = run.elapsed
    accelerator.print(f"done: {run.tokens:,} tokens, {run.step:,} steps; model in {out / 'model'}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
