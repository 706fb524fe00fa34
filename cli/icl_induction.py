"""`neurtx icl induction`: induction heads and losses of every form of a run."""

from pathlib import Path
from typing import Any

from .output import answer, rows_table

_COLUMNS = (
    "form",
    "attention on the earlier match (best head)",
    "layer.head",
    "copying score",
    "loss at token 500 less that at 50 (negative is a gain)",
)
_CAPTION = (
    " On random tokens that repeat: the attention that the best head pays to what followed the "
    "present token before; its place; and whether it makes likelier what it attends to (1 always, "
    "-1 never). On text: the loss, whose tokens move together in a context shorter than 512. "
    "converted: the network before any training.\n"
)


def induction(
    *,
    run: str | None,
    text: str | None,
    limit: int,
    picture: Path | None,
    device: str,
    teacher: str | None,
    as_json: bool,
) -> None:
    """One table of all forms of a run, and one heat map of their heads."""
    from neurtransformer import runs
    from neurtransformer.device import device_of, placed

    device_of(device)
    folder = runs.resolve("run", run)

    from neurtransformer.icl.induction import dense_form, integer_form, measure, spiking_form
    from neurtransformer.integer.model import IntegerGPT2
    from neurtransformer.measure.figures import induction_heads
    from neurtransformer.provenance import model_sha256, stamp, text_sha256
    from neurtransformer.recipe import load_recipe
    from neurtransformer.spiking.calibrate import calibration_text
    from neurtransformer.spiking.convert import convert
    from neurtransformer.spiking.load import load_run, teacher_of
    from neurtransformer.text import BLOCK, load_blocks

    from .progress import status

    model, tokenizer = load_run(folder)
    known = teacher_of(folder, model, teacher)
    integer = IntegerGPT2.from_spiking(model)
    dense, config = placed(known.dense, device), model.config
    placed(model, device)
    block = min(BLOCK, config.context)
    blocks = load_blocks(text, tokenizer, block, split="heldout", limit_tokens=limit)
    found: dict[str, Any] = {}
    with status("measuring") as note:
        note("the dense model")
        found["dense"] = measure(dense_form(dense, model), config.vocab_size, blocks)
        note("the naive conversion")
        tokens = calibration_text(dense, tokenizer, None, load_recipe().calibration)
        tokens = tokens.to(dense.device)
        naive = convert(
            dense,
            tokens,
            config.timesteps,
            "",
            coding=config.coding,
            attention=config.attention,
            attention_code=config.attention_code,
            digits=config.digits,
            first_token=config.first_token,
            limited=config.limited,
        )
        found["converted"] = measure(spiking_form(naive), config.vocab_size, blocks)
        note("the spiking network")
        found["spiking"] = measure(spiking_form(model), config.vocab_size, blocks)
        note("the integer network")
        found["integer"] = measure(integer_form(integer), config.vocab_size, blocks)
    if picture is not None:
        heads = {name: values["prefix_matching"] for name, values in found.items()}
        runs.write_text(picture, induction_heads(heads).decode())
    provenance = stamp(
        weights_sha256=model_sha256(model),
        teacher=known.source,
        teacher_sha256=known.sha256,
        text_sha256=text_sha256(blocks),
    )
    runs.update_report(folder, "induction", found, provenance)
    rows = [_induction_row(name, values) for name, values in found.items()]
    values = {"task": "induction", "run": folder, "tokens": blocks.numel(), **found}
    answer(values, as_json=as_json, table=lambda: _table(rows, str(folder)))


def _table(rows: list[tuple[Any, ...]], title: str) -> Any:
    from rich.console import Group

    return Group(rows_table(_COLUMNS, rows, title=title), _CAPTION)


def _induction_row(name: str, values: dict[str, Any]) -> tuple[Any, ...]:
    layer, head = values["best_head"]
    copying = values["copying"][layer][head]
    return name, values["prefix_matching_max"], f"{layer}.{head}", copying, values["icl_score"]
