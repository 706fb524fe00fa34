"""Train the networks of `neurtx icl omniglot` on the background alphabets but `HELD_OUT`.

    python scripts/train_omniglot.py FOLDER runs/omniglot
    neurtx icl omniglot runs/omniglot --data FOLDER

FOLDER holds background archives. The two networks see the same episodes in the same
order, from one seed. Every character is eight classes, turned by quarters (Vinyals et al., arXiv
1606.04080) and mirrored. In each step a class has a slant, a width, a height and a turn of its own,
all its drawings alike, and some are two characters, one over the other: that makes new classes.
Beside that each drawing is moved a little.
"""

import math
import time
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from neurtransformer import runs
from neurtransformer.errors import UserError
from neurtransformer.folders import new_folder
from neurtransformer.icl.omniglot import BACKGROUND, HELD_OUT, load_drawings
from neurtransformer.icl.plastic import NAMES, Encoder, Encoders, Name, save

STEPS = 4500
WAYS, QUERIES = 80, 4
"""Classes of a step and queries of each; half of the steps have one shot, half two."""

RATE = 4e-3
WARM_UP = 30
SEED = 0

CLASS_WARP = 20.0, 0.25, 0.4, 0.0
DRAWING_WARP = 10.0, 0.12, 0.1, 0.1
SECOND_WARP = 20.0, 0.25, 0.4, 0.3
"""The most of turn in degrees, of stretch, of slant and of shift, as shares of half a side."""

SECOND = 0.3
"""The share of classes that are two characters, one over the other."""


def warp(number: int, most: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """Random linear maps (number, 2, 2) and shifts (number, 2)."""
    turn, stretch, slant, shift = most
    a, h = (torch.rand(2, number) * 2 - 1) * torch.tensor([[math.radians(turn)], [slant]])
    s = 1 + stretch * (torch.rand(number, 2) * 2 - 1)
    turned = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], -1).view(-1, 2, 2)
    bent = torch.stack([s[:, 0], h, torch.zeros(number), s[:, 1]], -1).view(-1, 2, 2)
    return turned @ bent, shift * (torch.rand(number, 2) * 2 - 1)


def warped(classes: Tensor, each: int, most: tuple[float, float, float, float]) -> Tensor:
    """`each` drawings of some of the classes (n, drawers, 28, 28): (WAYS, each, 28, 28)."""
    number, drawers = classes.shape[:2]
    chosen = torch.randperm(number)[:WAYS, None]
    people = torch.rand(WAYS, drawers).argsort(-1)[:, :each]
    ink = classes[chosen, people].flatten(0, 1)[:, None]
    of_class, class_shift = (x.repeat_interleave(each, 0) for x in warp(WAYS, most))
    of_drawing, shift = warp(len(ink), DRAWING_WARP)
    theta = torch.cat([of_drawing @ of_class, (shift + class_shift)[..., None]], -1)
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid, align_corners=False).view(WAYS, each, *ink.shape[2:])


def draw(classes: Tensor, each: int) -> Tensor:
    """The drawings of a step, as `warped`."""
    first, second = (warped(classes, each, most) for most in (CLASS_WARP, SECOND_WARP))
    both = torch.rand(WAYS, 1, 1, 1) < SECOND
    return torch.where(both, torch.maximum(first, second), first)


def train(name: Name, classes: Tensor, steps: int, seed: int) -> tuple[Encoder, float]:
    """One network from random weights, and the running mean of its losses, over 50 or so."""
    torch.manual_seed(seed)
    encoder = Encoder(name).to(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(encoder.parameters())
    answer = torch.arange(WAYS).repeat_interleave(QUERIES)
    recent, started = 0.0, time.monotonic()
    for step in range(steps):
        rate = RATE * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        shots = 1 + step % 2
        drawings = draw(classes, shots + QUERIES)
        keys = encoder(drawings.flatten(0, 1)).view(WAYS, shots + QUERIES, -1)
        value = torch.eye(WAYS).repeat_interleave(shots, 0)
        key, query = keys[:, :shots].flatten(0, 1), keys[:, shots:].flatten(0, 1)
        loss = F.cross_entropy(encoder.logits(query[None], key[None], value[None])[0], answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent += (loss.item() - recent) / min(step + 1, 50)
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            click.echo(f"{name}: step {step + 1}, loss {recent:.3f}, {seconds:.0f} s", err=True)
    return encoder.eval(), recent


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(min=1), default=STEPS, show_default=True)
@click.option("--seed", default=SEED, show_default=True)
def main(folder: Path, target: Path, steps: int, seed: int) -> None:
    """Train both networks on the drawings in FOLDER; TARGET becomes a run."""
    if target.exists():
        raise click.UsageError(f"{target} exists already: name another folder")
    try:
        drawings = load_drawings(folder, BACKGROUND).of(HELD_OUT, others=True)
    except UserError as error:
        raise click.UsageError(str(error)) from None
    ink = torch.from_numpy(drawings.ink)
    turned = torch.cat([ink.rot90(quarter, (-2, -1)) for quarter in range(4)])
    classes = torch.cat([turned, turned.flip(-1)])
    alphabets = tuple(sorted(set(drawings.alphabet.tolist())))
    encoders: Encoders = {}
    losses = {}
    with new_folder(target) as fresh:
        for name in NAMES:
            encoders[name], losses[name] = train(name, classes, steps, seed)
        save(fresh, encoders, alphabets)
        report = {
            "characters": drawings.size[0],
            "alphabets": alphabets,
            "steps": steps,
            "seed": seed,
            "losses": losses,
        }
        runs.write_json(fresh / "report.json", {"training": report})


if __name__ == "__main__":
    main()
