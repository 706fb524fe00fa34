"""The ladder as a table."""

import statistics
from typing import Any


def table(rows: list[dict[str, Any]], texts: list[str]) -> str:
    """Rungs as a Markdown table: mean over seeds, with the range where there are several.

    A column for each text holds perplexity ratios to the dense model; the others are means over
    all texts.
    """
    dense = rows[0]["texts"]
    head = [
        "network",
        *(f"{text} (dense {dense[text]['ppl_dense']:.1f})" for text in texts),
        "cosine",
        "agreement",
        "spikes a token",
        "attention / model energy saved (estimate)",
    ]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(row["rung"] for row in rows):
        same = [row for row in rows if row["rung"] == name]
        saved = [
            _values(same, f"{part}_reduction_percent", texts) for part in ("attention", "model")
        ]
        # of other people's neurons no spikes were counted
        spikes = statistics.fmean(_values(same, "spikes_per_token", texts))
        lines.append(
            [
                name,
                *(_mean_and_range(_values(same, "ppl_ratio", [text])) for text in texts),
                f"{statistics.fmean(_values(same, 'cosine_similarity', texts)):.3f}",
                f"{statistics.fmean(_values(same, 'token_agreement', texts)):.1%}",
                f"{spikes:,.0f}" if spikes else "-",
                " / ".join(f"{statistics.fmean(x):.0f} %" for x in saved if x) or "-",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _values(rows: list[dict[str, Any]], key: str, texts: list[str]) -> list[float]:
    """What was measured of these rungs on these texts, where it was."""
    measured = [row["texts"][text] for row in rows for text in texts]
    return [values[key] for values in measured if key in values]


def _mean_and_range(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"
