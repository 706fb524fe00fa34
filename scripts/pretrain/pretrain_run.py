"""For pretrain.py: the optimizer, and the state of a run with its checkpoints and measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from pretrain_data import Mistake, replace_folder

HELDOUT_BLOCKS = 24


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
