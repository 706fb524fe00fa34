"""Put a run into the package, so that every command takes its name.

    python scripts/ship.py RUN neurtransformer/models/gpt2-nano-spiking

Weights are stored in float16, and report.json without the paths of the machine that made it and
without what was measured on other weights than those that ship: the unrounded ones, say. So ship to
a folder outside the package first, measure that one, and ship it from there.
The model card is written by hand; one that is there stays.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import click

from neurtransformer.folders import new_folder
from neurtransformer.measure.summary import trainings
from neurtransformer.provenance import model_sha256, outdated, provenance_of
from neurtransformer.runs import read_json, write_json
from neurtransformer.spiking.load import find_teacher, load_run, remember_teacher
from neurtransformer.spiking.shim import auto_map, write_shim

CURVE_STEPS = 20
"""One point of the loss curve in so many steps is kept."""


def without_paths(value: Any) -> Any:
    """`value` with the names of files in place of their paths."""
    if isinstance(value, dict):
        return {
            key: shlex.join(without_paths(shlex.split(item)))
            if key == "command"
            else without_paths(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
def main(run: Path, target: Path) -> None:
    """Copy RUN to TARGET, small and fit for others."""
    model, tokenizer = load_run(run)
    teacher = find_teacher(model)
    remember_teacher(model, teacher)
    card = target / "README.md"
    with new_folder(target, force=True) as folder:
        model.config.auto_map = auto_map(model)  # runs made before there was one have none
        model.half().save_pretrained(folder)
        write_shim(folder, model)
        tokenizer.save_pretrained(folder)
        report = without_paths(read_json(run / "report.json"))
        for training in trainings(report):
            training["curve"] = training["curve"][::CURVE_STEPS]
        shipped, known = model_sha256(model), provenance_of(report["finetune"])
        report["finetune"]["provenance"] = {
            "teacher": teacher.source,
            "teacher_sha256": teacher.sha256,
            "unrounded_sha256": known.get("weights_sha256"),
            **known,
            "weights_sha256": shipped,
        }
        old = outdated(report, shipped)
        if old:
            click.echo(f"left out, measured on other weights: {', '.join(old)}")
        report = {name: values for name, values in report.items() if name not in old}
        write_json(folder / "report.json", report)
        for file in folder.iterdir():
            file.chmod(0o644)
        if card.exists():
            shutil.copy(card, folder / card.name)


if __name__ == "__main__":
    main()
