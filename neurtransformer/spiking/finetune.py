"""Fine-tuning: the spiking attention learns from its dense teacher, by surrogate gradients.

What is trained is the SSA and the threshold of every neuron, and with `train: blocks` all other
weights of the blocks too, more slowly; embeddings and LM head stay the teacher's.

Two stages, each with its own AdamW; `match_share` may leave one out. *match*: every SSA, fed with
what the teacher's attention is fed with, learns the teacher's attention output (all layers at once,
errors relative to the output's variance). *distil*: the whole spiking network learns the teacher's
next-token distribution (Kullback-Leibler). The order follows Hedgehog (arXiv 2402.04347).

With a `spikes_budget` the spikes of a token may cost no more than that share of what they cost
before (`synops.py`). Training begins with thresholds that cost just that much (`sparing.py`), and
their cost, times a price, is added to the loss of the *distil* stage. The price follows what is
spent: it rises in a step that costs more than the budget, and falls in one that costs less.

What happens in a step depends on the seed and the number of the step alone, so a run that was
stopped and resumed ends with the same weights as one that was not.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neurtransformer.checkpoint import check_numbers
from neurtransformer.errors import UserError, shortened
from neurtransformer.families.base import tapped
from neurtransformer.folders import new_folder
from neurtransformer.provenance import text_sha256
from neurtransformer.recipe import Finetune
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.innate import after_first, dense_output
from neurtransformer.spiking.model import SpikingLanguageModel
from neurtransformer.spiking.neuron import CodingNeuron
from neurtransformer.spiking.sparing import spare
from neurtransformer.spiking.synops import Cost, cost_of, counting_costs, share_of
from neurtransformer.text import UnreadableText, load_blocks, write_text

log = logging.getLogger(__name__)

Stage = Literal["match", "distil"]
WARM_UP = 10
CHECKPOINT_EVERY = 50
GRADIENT_NORM = {"match": 5.0, "distil": 1.0}
LEAST_VARIANCE = 1e-12
SPARING_BLOCKS = 8
"""Blocks of text that the thresholds which a budget begins with are found on."""

BUDGET_RATE = 0.3
"""With a budget, what part of the recipe's rate of distilling is taken: larger steps undo at once
what the start has found, and win it back only as the rate runs out (docs/LOG.md)."""

THRESHOLD_RATE = 10.0
"""With a budget, the rate of thresholds over that of the attention, in thresholds."""

HASTE = 0.3
"""What the logarithm of the price changes by in a step that costs twice the budget."""


@dataclass(frozen=True)
class Step:
    """What one optimisation step did: number from 1, stage, loss without the penalty, and if there
    is a budget, what its spikes cost as a share of what they cost before, and at which price in
    nats per token for all of that."""

    number: int
    stage: Stage
    loss: float
    share: float = 0.0
    price: float = 0.0


class Distiller(nn.Module):
    """Teacher and student together; its forward pass is the loss of one stage, and what the
    student's spikes cost as a share of `before`: 0 if that is None, or not the stage for it."""

    def __init__(
        self, student: SpikingLanguageModel, teacher: PreTrainedModel, before: Cost | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher: PreTrainedModel = teacher.requires_grad_(False).eval()
        self.before = before

    def forward(self, tokens: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """tokens: (batch, length) int64. Returns two scalars."""
        if stage == "match":
            loss = self.match(tokens)
        elif self.before is not None:
            with counting_costs(self.student) as costs:
                loss = self.distil(tokens)
            return loss, share_of(torch.stack(costs).sum(0), self.before)
        else:
            loss = self.distil(tokens)
        return loss, loss.new_zeros(())

    def match(self, tokens: Tensor) -> Tensor:
        """Mean over layers of the squared error of attention outputs over their variance."""
        first = self.student.config.first_token
        begin = 0 if first is None else 1
        with torch.no_grad(), tapped(self.teacher) as taps:
            self.teacher(after_first(tokens, first), logits_to_keep=1)
        positions = torch.arange(begin, begin + tokens.shape[1], device=tokens.device)
        turned = self.student.rotation(positions[None])
        losses = []
        for block, tap in zip(self.student.blocks, taps, strict=True):
            output, _ = block.attn(tap["attn_in"][:, begin:], turned=turned)
            wanted = tap["attn_out"][:, begin:]
            # an attention that was pruned away varies by nothing, and is followed exactly
            losses.append(F.mse_loss(output, wanted) / wanted.var().clamp(min=LEAST_VARIANCE))
        return torch.stack(losses).mean()

    def distil(self, tokens: Tensor) -> Tensor:
        """Kullback-Leibler divergence from teacher to student, nats per token."""
        with torch.no_grad():
            logits, _ = dense_output(self.teacher, tokens, self.student.config.first_token)
            target = logits.log_softmax(-1)
        logits = self.student(tokens).logits.log_softmax(-1)
        return F.kl_div(logits, target, log_target=True, reduction="none").sum(-1).mean()


def training_text(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | None,
    recipe: Finetune,
    seed: int,
    processes: int = 1,
) -> Tensor:
    """Blocks (n, length) int64 of `text`; for None, CPython's text, if the tokenizer reads English,
    and the teacher's own. As many as all steps of so many processes need, if there are so many."""
    length = min(recipe.block, teacher.config.max_position_embeddings)
    needed = recipe.steps * recipe.blocks_a_step * length * processes
    try:
        blocks = load_blocks(text, tokenizer, length, split="train", limit_tokens=needed)
    except UnreadableText as error:
        if text is not None or recipe.self_written == 0:
            raise
        log.info("training on the dense model's own text alone: %s", error)
        blocks = torch.empty(0, length, dtype=torch.long)
    if text is not None or recipe.self_written == 0:
        return blocks
    written = recipe.self_written, blocks.shape[1]
    log.info("the dense model writes %s tokens to train on", f"{math.prod(written):,}")
    return torch.cat([blocks, write_text(teacher, *written, seed)])


def trainable(model: SpikingLanguageModel, recipe: Finetune) -> list[dict[str, Any]]:
    """Mark what is trained: the SSA and all thresholds of every block, or all of every block.

    Returns an optimizer's groups of parameters, `scale` of each being its share of the rate.
    """
    model.requires_grad_(False)
    model.transformer["h"].requires_grad_(recipe.train == "blocks")
    for block in model.blocks:
        block.attn.requires_grad_(True)
        for module in block.modules():
            if isinstance(module, CodingNeuron):
                module.requires_grad_(True)
    attention: list[nn.Parameter] = []
    thresholds: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            where = attention if ".attn." in name else rest
            (thresholds if name.endswith(".threshold") else where).append(parameter)
    shares = [(attention, 1.0), (rest, recipe.rest_share)]
    if recipe.spikes_budget is None:
        shares.insert(1, (thresholds, recipe.threshold_share))
    else:  # they differ by far, and have a way to go
        shares += [
            ([t], THRESHOLD_RATE * float(t.detach().abs().quantile(0.25))) for t in thresholds
        ]
    return [{"params": params, "scale": share} for params, share in shares if params]


def trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters of an optimizer, in a fixed order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate of step 0..steps-1: linear warm-up, then linear decay to zero."""
    return peak * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)


def next_price(step: Step, budget: float) -> float:
    """The price of spikes in the step after `step`."""
    return step.price * math.exp(HASTE * (step.share / budget - 1))


def batch_at(number: int, blocks: Tensor, batch: int, seed: int) -> Tensor:
    """Batch `number` of endless shuffled passes over blocks (n, length): (batch, length).

    What comes when does not depend on the size of the batch: batches 2 i and 2 i + 1 of one size
    are batch i of twice the size.
    """
    chosen: list[Tensor] = []
    n = len(blocks)
    for place in range(number * batch, (number + 1) * batch):
        if not chosen or place % n == 0:
            shuffle = torch.Generator().manual_seed(seed * 1_000_003 + place // n)
            order = torch.randperm(n, generator=shuffle)
        chosen.append(order[place % n])
    return blocks[torch.stack(chosen)]


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Matrix products of bfloat16 factors and float32 sums, where the processor has them.

    Three times as fast; counts up to 256, and squares of counts up to 16, are exact in bfloat16.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@bfloat16_products()
def finetune(
    model: SpikingLanguageModel,
    teacher: PreTrainedModel,
    blocks: Tensor,
    recipe: Finetune,
    *,
    seed: int,
    device: str,
    checkpoint: Path | None,
    resume: bool,
    on_step: Callable[[Step], None],
) -> list[Step]:
    """Train `model` in place on blocks (n, length) int64; returns every step, for the loss curve.

    checkpoint: folder that is written every CHECKPOINT_EVERY steps, None for no folder; with
    `resume` training goes on from it. The caller removes it when all is saved. One that cannot be
    written is a warning, and the one before it stays.
    Under torchrun or `accelerate launch` every process has batches of its own, and all return the
    same: what one process would with batches of as many blocks as all of them together (the match
    stage looks at each batch by itself). The main one writes checkpoints.
    Raises UserError if there is nothing to resume or the checkpoint belongs to other settings.
    """
    # thresholds of the feed-forward blocks take no part in the first stage
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[unused])
    budget, before, price = recipe.spikes_budget, None, 0.0
    if budget is not None:
        model.to(accelerator.device).train()
        text = batch_at(0, blocks, min(SPARING_BLOCKS, len(blocks)), seed).to(accelerator.device)
        before = cost_of(model, text)
        price = spare(model, teacher.to(accelerator.device), text, before, budget, seed)
    groups = trainable(model, recipe)
    distiller = accelerator.prepare(Distiller(model, teacher, before))
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    plan = {
        "recipe": recipe.model_dump(),
        "seed": seed,
        "teacher_sha256": model.config.dense_sha256,
        "text_sha256": text_sha256(blocks),
        "processes": accelerator.num_processes,
    }
    match_steps = round(recipe.steps * recipe.match_share)
    distil_rate = recipe.distil_rate * (1.0 if budget is None else BUDGET_RATE)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    done: list[Step] = []
    if resume and checkpoint is not None:
        done = read_checkpoint(checkpoint, model, optimizer, plan)
    for number in range(len(done), recipe.steps):
        stage: Stage = "match" if number < match_steps else "distil"
        if number == match_steps:
            optimizer.state.clear()
        begin, length, peak = (
            (0, match_steps, recipe.match_rate)
            if stage == "match"
            else (match_steps, recipe.steps - match_steps, distil_rate)
        )
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * rate_at(number - begin, length, peak)
        if budget is not None and done and done[-1].stage == "distil":
            price = next_price(done[-1], budget)
        optimizer.zero_grad()
        heard = torch.zeros(2, device=accelerator.device)
        for part in range(recipe.accumulate):
            last = part == recipe.accumulate - 1
            share = number * recipe.accumulate + part
            share = share * accelerator.num_processes + accelerator.process_index
            tokens = batch_at(share, blocks, recipe.batch, seed).to(accelerator.device)
            with nullcontext() if last else accelerator.no_sync(distiller):
                loss, cost = distiller(tokens, stage)
                heard += torch.stack([loss, cost]).detach() / recipe.accumulate
                if budget is not None:
                    loss = loss + price * cost
                accelerator.backward(loss / recipe.accumulate)
        mean_loss, mean_cost = accelerator.reduce(heard, "mean").tolist()
        done.append(Step(number + 1, stage, mean_loss, mean_cost, price))
        if not math.isfinite(done[-1].loss):
            raise FloatingPointError(f"the loss is {done[-1].loss} at step {number + 1}")
        nn.utils.clip_grad_norm_(trained(optimizer), GRADIENT_NORM[stage])
        optimizer.step()
        on_step(done[-1])
        due = len(done) % CHECKPOINT_EVERY == 0 and accelerator.is_main_process
        if checkpoint is not None and due:
            try:
                write_checkpoint(checkpoint, model, optimizer, plan, done)
            # libraries put what the system says into errors of their own
            except (OSError, SafetensorError, UserError) as error:
                log.warning("no checkpoint at step %s, training goes on: %s", len(done), error)
    model.activation_checkpointing_disable()
    model.requires_grad_(False).eval()
    return done


def changing(model: SpikingLanguageModel) -> Iterator[tuple[str, Tensor]]:
    """What training changes, by name: parameters, and the centres of codes."""
    yield from model.named_parameters()
    yield from ((name, x) for name, x in model.named_buffers() if name.endswith(".center"))


def write_checkpoint(
    folder: Path,
    model: SpikingLanguageModel,
    optimizer: torch.optim.Optimizer,
    plan: dict[str, object],
    done: list[Step],
) -> None:
    """Write what `read_checkpoint` needs, replacing the checkpoint that was there whole."""
    tensors = {f"model.{name}": x.detach().cpu() for name, x in changing(model)}
    for index, parameter in enumerate(trained(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
    steps = [astuple(step) for step in done]
    with new_folder(folder, force=True) as fresh:
        save_file(tensors, fresh / "checkpoint.safetensors")
        write_json(fresh / "report.json", {"plan": plan, "steps": steps})
        write_json(fresh / "config.json", model.config.to_dict())


def read_checkpoint(
    folder: Path,
    model: SpikingLanguageModel,
    optimizer: torch.optim.Optimizer,
    plan: dict[str, object],
) -> list[Step]:
    """Put model and optimizer where the checkpoint left them; returns the steps done by then."""
    report = read_json(folder / "report.json")
    was = report.get("plan")
    known = was
    if isinstance(was, dict) and isinstance(was.get("recipe"), dict):
        # checkpoints of earlier versions do not say which teacher they had, nor add up batches
        recipe = {"accumulate": 1, "gradient_checkpointing": False, **was["recipe"]}
        known = {"teacher_sha256": plan["teacher_sha256"], **was, "recipe": recipe}
    if known != plan:
        raise UserError(
            "the checkpoint was made with other settings, text, teacher or processes: "
            "give the same again"
        )
    file = folder / "checkpoint.safetensors"
    if not file.is_file():  # whoever opens a pipe waits
        raise UserError(f"the checkpoint in {folder} is damaged: {file.name} is no file")
    try:
        done = _steps(report["steps"])
        tensors = load_file(file)
        for name, x in tensors.items():
            check_numbers(x, f"{file}: {name}")
        with torch.no_grad():
            for name, x in changing(model):
                # those of earlier versions hold no centres, which a budget alone changes
                if name.endswith(".center") and f"model.{name}" not in tensors:
                    continue
                x.copy_(_like(x, tensors[f"model.{name}"]))
        for index, parameter in enumerate(trained(optimizer)):
            prefix = f"optimizer.{index}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if not state:  # it has taken no part yet
                continue
            moments = (_like(parameter, state[key]) for key in ("exp_avg", "exp_avg_sq"))
            mean, square = (moment.to(parameter.device) for moment in moments)
            step = _like(torch.zeros(()), state["step"])
            if step < 1 or square.min() < 0:
                raise ValueError(f"optimizer.{index} is in a state that no training leaves it in")
            optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        return done
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint in {folder} is damaged: {shortened(error)}") from error


def _like(x: Tensor, stored: Tensor) -> Tensor:
    """`stored`, if it has the shape and type of `x`; else raises ValueError."""
    if stored.shape != x.shape or stored.dtype != x.dtype:
        raise ValueError(f"{stored.dtype} {tuple(stored.shape)} does not fit {tuple(x.shape)}")
    return stored


def _steps(record: list[Any]) -> list[Step]:
    """What a checkpoint says of the steps that were done. Raises ValueError or TypeError."""
    steps = [Step(*values) for values in record]
    for number, step in enumerate(steps, 1):
        numbers = step.loss, step.share, step.price
        if step.number != number or step.stage not in get_args(Stage):
            raise ValueError(f"its step {number} is none")
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ValueError(f"its step {number} has no finite loss")
    return steps
