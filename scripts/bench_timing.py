"""How the benchmarks of `bench.py` measure: turn by turn in one process, time and memory."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """Something that several networks do. name: what is said of it. tokens: of a call, or what else
    is counted. calls: by the names of networks. reference: the one that others are compared with.
    kept: bytes that a network keeps of each token of a text, where that was looked at."""

    name: str
    tokens: int
    calls: Mapping[str, Call]
    reference: str = "dense"
    kept: Mapping[str, float] = field(default_factory=dict)


def rows_of(work: Work, repeats: int) -> list[dict[str, Any]]:
    """What came of it, a row for each network, the reference first."""
    memory = {name: peak(call) for name, call in work.calls.items()}
    seconds = measured(work.calls, repeats)
    rows = []
    for name, own in seconds.items():
        ratios = [d / s for d, s in zip(seconds[work.reference], own, strict=True)]
        rows.append(
            {
                "work": work.name,
                "network": name,
                "reference": work.reference,
                "tokens_per_second": work.tokens / statistics.median(own),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "largest": max(ratios),
                "peak_mib": memory[name],
                "kept_bytes_a_token": work.kept.get(name),
                "seconds": own,
            }
        )
    return rows


def peak(call: Call) -> float | None:
    """MiB that a call needs beyond what the process has, None where the system does not tell."""

    def told(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = told("VmRSS")
        call()
        return (told("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        call()
        return None


def measured(calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each call in each repeat, the first of which, to warm up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if repeat:
                seconds[name].append(time.process_time() - begin)
    return seconds
