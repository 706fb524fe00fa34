"""`neurtx icl omniglot`: learning characters from a few examples in the context."""

from pathlib import Path
from typing import Any

from .output import answer, rows_table

SETTINGS = ((5, 1), (5, 5), (20, 1))
IN_LAVA = 1
"""Episodes of each setting that run in Lava itself too, all of the network, some seconds each."""

SEED = 0


def omniglot(
    run: str | None,
    data: Path | None,
    ways: int | None,
    shots: int | None,
    episodes: int,
    device: str,
    as_json: bool,
) -> None:
    """One table: the accuracy of each form and control in each setting.

    run: a folder of trained networks, else the one that ships with the package. ways, shots: of
    one setting, else all of `SETTINGS`. The answer's `ways`, `shots` and `accuracy` are those of
    the first; `settings` has all of them.
    """
    from neurtransformer import runs
    from neurtransformer.device import placed
    from neurtransformer.icl import omniglot as drawings
    from neurtransformer.icl import plastic
    from neurtransformer.icl.evaluate import Evaluation

    from .progress import remark, status

    folder = runs.resolve("run", run or plastic.SHIPPED.name)
    lava = _has_lava()
    encoders, trained_on = plastic.load(folder)
    encoders = {name: placed(encoder, device) for name, encoder in encoders.items()}
    with status("reading drawings") as note:
        if data is None:
            unseen, one_shot = drawings.load_from_hub(), None
        else:
            unseen, one_shot = drawings.load_drawings(data), drawings.load_runs(data)
        unseen = unseen.of(trained_on, others=True)
        chosen = SETTINGS if ways is None and shots is None else ((ways or 5, shots or 1),)
        drawn = [drawings.draw_episodes(*unseen.size, *pair, episodes, SEED) for pair in chosen]
        note("encoding them")
        flat = unseen.ink.reshape(-1, drawings.SIDE, drawings.SIDE)
        evaluation = Evaluation(encoders, flat, max(setting.ways for setting in drawn))
        found = []
        for (w, s), setting in zip(chosen, drawn, strict=True):
            note(f"{w}-way {s}-shot")
            found.append({**evaluation.measure(setting), "lava": None})
            if lava:
                note(f"{w}-way {s}-shot in Lava")
                found[-1]["lava"] = evaluation.in_lava(setting, IN_LAVA)
                if found[-1]["lava"] is None:
                    remark(f"{w}-way {s}-shot is too large to be run in Lava")
        if one_shot is not None:
            note("the official runs")
            inks, queries = one_shot
            official = Evaluation(encoders, inks, queries.ways).measure(queries)
    alphabets = sorted(set(unseen.alphabet.tolist()))
    values: dict[str, Any] = {
        "task": "omniglot",
        "run": folder,
        **found[0],
        "settings": found,
        "official_runs": None if one_shot is None else official,
        "alphabets": alphabets,
        "characters": unseen.size[0],
        "seed": SEED,
    }
    lines = [_line(f"{x['ways']}-way {x['shots']}-shot", x) for x in found]
    if one_shot is not None:
        lines.append(_line("official runs", official))
    columns = ("accuracy, %", *found[0]["accuracy"], "episodes", "Lava differs")
    title = f"{unseen.size[0]} unseen characters: {', '.join(alphabets)}"
    answer(values, as_json=as_json, table=lambda: rows_table(columns, lines, title=title))


def _has_lava() -> bool:
    """Whether episodes can run in Lava too; without, everything else goes on and this is told."""
    from neurtransformer.errors import UserError

    from .progress import remark

    try:
        import neurtransformer.loihi.lava_compat  # noqa: F401
    except UserError as missing:
        remark(f"the episodes are not run in Lava: {missing}")
        return False
    return True


def _line(name: str, found: dict[str, Any]) -> tuple[Any, ...]:
    """Accuracies with half the width of their intervals."""
    shares = []
    for form, share in found["accuracy"].items():
        low, high = found["interval"][form]
        shares.append(f"{100 * share:.1f} ±{50 * (high - low):.1f}")
    lava = found.get("lava")
    differs = None if lava is None else f"{lava['mismatches']} of {lava['compared']:,}"
    return name, *shares, found["episodes"], differs
