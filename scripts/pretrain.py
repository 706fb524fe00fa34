"""Pretrain a GPT-2 from random weights within a given time: the script behind `gpt2-nano`.

    python scripts/pretrain.py --text FILE[=WEIGHT] [--text ...] --out DIR [--minutes N] [--resume]

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
    torchrun --standalone --nproc-per-node 2 scripts/pretrain.py --out run --minutes 105 \\
      --text $T/classic_books.txt=.30 --text $T/english_novels.txt=.24 \\
      --text $T/openstax_textbooks.txt=.30 --text $T/us_presidential_addresses.txt=.06 \\
      --text $T/wikipedia_articles.txt=.05 --text $T/onestop_english_news.txt=.04 \\
      --text $T/tinystories_sample.txt=.01 --heldout $H/novels.txt --heldout $H/textbooks.txt \\
      --tokenizer neurtransformer/models/gpt2-nano

Without `--tokenizer`, a byte-level BPE of `--vocabulary` entries is trained on the same text.
At real scale (GPT-2 small, one machine with 8 GPUs; the rates are a start, not tuned there):

    accelerate launch --multi_gpu --num_processes 8 scripts/pretrain.py --text web.txt \\
      --heldout held.txt --tokenizer openai-community/gpt2 --layers 12 --width 768 --heads 12 \\
      --context 1024 --batch-tokens 65536 --muon-lr 0.02 --adam-lr 1e-3 --out run --minutes 600

Sources: GPT-2, Radford et al. 2019; Muon, Keller Jordan et al. 2024
(https://kellerjordan.github.io/posts/muon/); AdamW, Loshchilov & Hutter 2019; linear decay to
zero, Bergsma et al. 2025 (arXiv 2502.15938); short rows first, Li et al. 2022 (arXiv 2108.06084).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

DOCUMENT = "<|endoftext|>"
HELDOUT_BLOCKS = 24


class Mistake(click.ClickException):
    """The caller's mistake: one line, exit code 2."""

    exit_code = 2


# --- two kernels: what a CPU spends most of its time on --------------------------------------


def tiles(rows: int, group: int, length: int, tile: int) -> Iterator[tuple[slice, int, int]]:
    """(rows, begin, end): which rows and which queries to do together."""
    for a in range(0, rows, group):
        for i in range(0, length, tile):
            yield slice(a, a + group), i, min(i + tile, length)


class BlockAttention(torch.autograd.Function):
    """Causal softmax attention in tiles that stay in the cache.

    In bfloat16 on a CPU with AMX its backward pass takes half the time of PyTorch's own.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape, (length, width) = q.shape, q.shape[-2:]
        q, k, v = (x.reshape(-1, length, width) for x in (q * width**-0.5, k, v))
        tile = min(256, length)
        group = max(1, 2**20 // (tile * length))
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        future = torch.full((tile, tile), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        kept = []
        for rows, i, j in tiles(len(q), group, length, tile):
            scores = q[rows, i:j] @ k[rows, :j].mT
            scores[..., i:].add_(future[: j - i, : j - i])
            kept.append(torch.softmax(scores, -1))
            out[rows, i:j] = kept[-1] @ v[rows, :j]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.tiling = (group, length, tile)
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grads[0].reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for weights, (rows, i, j) in zip(kept, tiles(len(q), *ctx.tiling), strict=True):
            g = grad[rows, i:j]
            dv[rows, :j] += weights.mT @ g
            dweights = g @ v[rows, :j].mT
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, q.dtype)
            dq[rows, i:j] = dscores @ k[rows, :j]
            dk[rows, :j] += dscores.mT @ q[rows, i:j]
        dq.mul_(q.shape[-1] ** -0.5)
        return tuple(x.view(grads[0].shape) for x in (dq, dk, dv))


@torch.compiler.disable
def block_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """`BlockAttention` in the form that transformers calls."""
    return BlockAttention.apply(q, k, v).transpose(1, 2), None


AttentionInterface.register("blocks", block_attention)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of `hidden @ weight.T`; never holds more than 512 rows of logits.

    The gradient is computed on the way forward (the idea of Liger Kernel, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros(weight.shape[::-1], dtype=torch.float32, device=weight.device)
        total = torch.zeros((), device=hidden.device)
        for i in range(0, len(hidden), 512):
            h, y = hidden[i : i + 512], target[i : i + 512, None]
            log_p = torch.log_softmax(h @ weight.t(), -1)
            total -= log_p.gather(1, y).float().sum()
            g = log_p.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=log_p.dtype))
            dhidden[i : i + 512] = g @ weight
            dweight += h.t().contiguous() @ g
        dweight = dweight.div_(len(hidden)).t().to(weight.dtype)
        ctx.save_for_backward(dhidden.div_(len(hidden)), dweight)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dhidden, dweight = ctx.saved_tensors
        return dhidden * grads[0], dweight * grads[0], None


# --- the optimizer ---------------------------------------------------------------------------


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each g, roughly: Newton-Schulz in bfloat16 (Jordan)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    """Momentum, orthogonalised (Jordan et al. 2024), for the matrices of the blocks.

    Query, key and value count as matrices of their own. Matrices of one shape go through
    Newton-Schulz in one batch, and every process does its share of the batch.
    """

    def __init__(self, weights: list[Tensor], accelerator: Accelerator, decay: float = 0.05):
        self.weights, self.accelerator, self.decay = weights, accelerator, decay
        self.buffers = [torch.zeros_like(w) for w in weights]

    @torch.no_grad()
    def step(self, grads: list[Tensor], lr: float, momentum: float) -> None:
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor, float]]] = {}
        for weight, buffer, grad in zip(self.weights, self.buffers, grads, strict=True):
            buffer.lerp_(grad, 1 - momentum)
            update = grad.lerp(buffer, momentum)  # Nesterov
            weight.mul_(1 - lr * self.decay)
            fan_in, fan_out = weight.shape  # GPT-2 stores its matrices as (in, out)
            parts = 3 if fan_out == 3 * fan_in else 1
            for w, u in zip(weight.chunk(parts, 1), update.chunk(parts, 1), strict=True):
                scale = math.sqrt(max(1.0, w.shape[1] / w.shape[0]))
                w, u = (w.t(), u.t()) if w.shape[0] > w.shape[1] else (w, u)
                groups.setdefault(tuple(w.shape), []).append((w, u, scale))
        for group in groups.values():
            share = -(-len(group) // self.accelerator.num_processes)
            begin = share * self.accelerator.process_index
            mine = [u for _, u, _ in group][begin : begin + share]
            mine += [torch.zeros_like(group[0][1])] * (share - len(mine))
            updates = self.accelerator.gather(orthogonalise(torch.stack(mine)))
            for (weight, _, scale), update in zip(group, updates, strict=False):
                weight.add_(update, alpha=-lr * scale)


# --- text ------------------------------------------------------------------------------------


def documents(path: Path) -> list[str]:
    """The documents of a file, in order."""
    parts = path.read_text(encoding="utf-8").split(DOCUMENT + "\n")
    return [d.strip("\n") for d in parts if d.strip()]


def train_tokenizer(files: list[Path], size: int, place: Path) -> None:
    """Byte-level BPE (GPT-2's kind) of `size` entries; number 0 starts a document."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[DOCUMENT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((d for f in files for d in documents(f)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=DOCUMENT, eos_token=DOCUMENT, unk_token=DOCUMENT
    )
    fast.save_pretrained(place)


def read_tokens(path: Path, tokenizer: Any, cache: Path) -> np.ndarray:
    """A file as token numbers, each document after the start token; kept in `cache`."""
    bpe = tokenizer.backend_tokenizer
    key = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns} {bpe.to_str()}"
    file = cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    if not file.exists():
        kind = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
        texts, ids = documents(path), []
        for i in range(0, len(texts), 64):
            for encoded in bpe.encode_batch(texts[i : i + 64], add_special_tokens=False):
                ids.append(np.array([tokenizer.bos_token_id, *encoded.ids], dtype=kind))
        part = file.with_name(file.name + ".part.npy")
        np.save(part, np.concatenate(ids) if ids else np.zeros(0, dtype=kind))
        part.rename(file)
    return np.load(file, mmap_mode="r")


def replace_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under another name and give it its own when complete."""
    new, old = place.with_name(place.name + ".new"), place.with_name(place.name + ".old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


# --- the run ---------------------------------------------------------------------------------


class Run:
    """Weights, optimizers and counters of one run, the same in every process.

    `masters` are float32; the model computes with a bfloat16 copy of them (`working`).
    """

    def __init__(
        self, model: GPT2LMHeadModel, accelerator: Accelerator, muon_lr: float, adam_lr: float
    ):
        self.model, self.accelerator = model, accelerator
        self.working = dict(model.named_parameters())
        self.masters = {n: p.detach().clone() for n, p in self.working.items()}
        self.matrices = [n for n, p in self.masters.items() if ".h." in n and p.ndim == 2]
        self.others = [n for n in self.masters if n not in self.matrices]
        self.muon = Muon([self.masters[n] for n in self.matrices], accelerator)
        self.rest = [nn.Parameter(self.masters[n]) for n in self.others]
        self.muon_lr, self.adam_lr = muon_lr, adam_lr
        self.adam = torch.optim.AdamW(
            self.rest, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True
        )
        sizes = [m.numel() for m in self.masters.values()]
        # All gradients, then seconds gone by and loss: one buffer, one exchange per step.
        self.flat = torch.zeros(sum(sizes) + 2, device=accelerator.device)
        self.grads = {
            n: g.view(m.shape)
            for (n, m), g in zip(self.masters.items(), self.flat[:-2].split(sizes), strict=True)
        }
        self.step = self.tokens = self.evaluated = 0
        self.elapsed = 0.0
        self.curve: list[dict[str, Any]] = []

    def update(
        self, loss: Tensor, seconds: float, minutes: float, decay_from: float
    ) -> tuple[float, float]:
        """Exchange gradients, step both optimizers; the loss and the rate's share of its peak."""
        loss.backward()
        for name, p in self.working.items():
            assert p.grad is not None
            self.grads[name].copy_(p.grad)
            p.grad = None
        self.flat[-1] = loss.detach()
        self.flat[-2] = seconds
        self.flat.copy_(self.accelerator.reduce(self.flat, "mean"))
        self.elapsed, value = self.flat[-2:].tolist()
        if not math.isfinite(value):
            raise click.ClickException(f"the loss is {value} at step {self.step}: lower the rates")
        left = 1 - self.elapsed / (60 * minutes)
        rate = min(1.0, (self.step + 1) / 100) * min(1.0, max(0.0, left / (1 - decay_from)))
        momentum = 0.85 + 0.1 * min(1.0, self.step / 300)
        self.muon.step([self.grads[n] for n in self.matrices], self.muon_lr * rate, momentum)
        for name, p in zip(self.others, self.rest, strict=True):
            p.grad = self.grads[name]
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * rate
        self.adam.step()
        self.publish()
        self.step += 1
        return value, rate

    @torch.no_grad()
    def publish(self) -> None:
        for name, p in self.working.items():
            p.copy_(self.masters[name])

    def save(self, out: Path, tokenizer: Any) -> None:
        """The checkpoint to resume from, and the model as it is now."""

        def checkpoint(place: Path) -> None:
            save_file(self.masters, place / "masters.safetensors")
            state = {f"muon.{n}": b for n, b in zip(self.matrices, self.muon.buffers, strict=True)}
            for n, p in zip(self.others, self.rest, strict=True):
                state[f"avg.{n}"] = self.adam.state[p]["exp_avg"]
                state[f"sq.{n}"] = self.adam.state[p]["exp_avg_sq"]
            save_file(state, place / "optimizer.safetensors")
            counters = ("step", "tokens", "elapsed", "evaluated", "curve")
            text = json.dumps({c: getattr(self, c) for c in counters}, indent=1)
            (place / "state.json").write_text(text)

        def model(place: Path) -> None:
            config = GPT2Config.from_dict({**self.model.config.to_dict(), "use_cache": True})
            final = GPT2LMHeadModel(config)
            final.load_state_dict({n: m.cpu() for n, m in self.masters.items()}, strict=False)
            final.tie_weights()
            final.half().save_pretrained(place)
            tokenizer.save_pretrained(place)
            text = json.dumps({"tokens_seen_and_losses": self.curve}, indent=1)
            (place / "losses.json").write_text(text + "\n")

        if self.accelerator.is_main_process:
            replace_folder(out / "checkpoint", checkpoint)
            replace_folder(out / "model", model)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def load(self, place: Path) -> None:
        weights = load_file(place / "masters.safetensors")
        state = load_file(place / "optimizer.safetensors")
        for key, value in json.loads((place / "state.json").read_text()).items():
            setattr(self, key, value)
        for name, master in self.masters.items():
            if name not in weights or weights[name].shape != master.shape:
                raise Mistake(f"{place} holds another geometry (see {name}): give the same options")
            master.copy_(weights[name])
        for name, buffer in zip(self.matrices, self.muon.buffers, strict=True):
            buffer.copy_(state[f"muon.{name}"])
        device = self.accelerator.device
        for name, p in zip(self.others, self.rest, strict=True):
            self.adam.state[p] = {
                "step": torch.tensor(float(self.step), device=device),
                "exp_avg": state[f"avg.{name}"].to(device),
                "exp_avg_sq": state[f"sq.{name}"].to(device),
            }
        self.publish()

    def hidden(self, ids: Tensor) -> Tensor:
        """What the model predicts the next token from, one row for each position."""
        h = self.model.transformer(input_ids=ids, use_cache=False).last_hidden_state
        return h.reshape(-1, h.shape[-1])

    @torch.no_grad()
    def evaluate(self, heldout: dict[str, np.ndarray], context: int, rows: int) -> dict[str, float]:
        """Nats per token on the first blocks of each held-out text."""
        head = self.working["transformer.wte.weight"]
        accelerator, losses = self.accelerator, {}
        for name, ids in heldout.items():
            blocks = min(HELDOUT_BLOCKS, len(ids) // context)
            table = torch.from_numpy(ids[: blocks * context].astype(np.int64)).view(-1, context)
            mine = table[accelerator.process_index :: accelerator.num_processes]
            total = torch.zeros(2, device=accelerator.device)
            for x in mine.to(accelerator.device).split(rows):
                h = self.hidden(x).view(*x.shape, -1)[:, :-1]
                for states, targets in zip(h, x[:, 1:], strict=True):
                    log_p = (states @ head.t()).float().log_softmax(-1)
                    total[0] -= log_p.gather(1, targets[:, None]).sum()
                    total[1] += len(targets)
            total = accelerator.reduce(total, "sum")
            losses[name] = round((total[0] / total[1]).item(), 4)
        return losses


def parse_mixture(texts: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """FILE[=WEIGHT] ... -> files and their shares."""
    if not texts:
        raise Mistake("give at least one --text FILE[=WEIGHT]")
    files, weights = [], []
    for text in texts:
        name, _, weight = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            weights.append(float(weight))
        except ValueError:
            raise Mistake(f"--text {text}: {weight!r} is not a number") from None
        files.append(Path(name))
    if min(weights) < 0 or sum(weights) <= 0:
        raise Mistake("the weights of --text must not be negative, nor all 0")
    return files, np.array(weights) / sum(weights)


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
        use_cache=False,
        bos_token_id=start,
        eos_token_id=start,
    )
    config._attn_implementation = "sdpa" if device.type == "cuda" else "blocks"
    model = GPT2LMHeadModel(config).to(device)
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.zeros_(p)  # each block begins as the identity
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
            length = context // (4 if progress < 0.08 else 2 if progress < 0.25 else 1)
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
