"""One tensor of an integer network: its shape, its range, and the kind of file it goes to."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from numpy.typing import NDArray

Home = Literal["synapses", "chip"]


@dataclass(frozen=True)
class Entry:
    """One tensor of integers. home: the projections (netx files), or the chip's other integers."""

    shape: tuple[int, ...]
    home: Home
    low: int
    high: int

    @property
    def dtype(self) -> str:
        return "int16" if self.home == "synapses" else "int32"


Entries = Iterator[tuple[str, Entry]]


def check_entries(
    entries: Mapping[str, Entry], tensors: Mapping[str, NDArray], complain: Callable[[str], None]
) -> None:
    """Call `complain` with what is wrong with shapes, types and ranges."""
    for name in sorted(entries.keys() ^ tensors.keys()):
        complain(f"{name} is {'missing' if name in entries else 'not expected'}")
    for name, entry in entries.items():
        x = tensors[name]
        if x.shape != entry.shape or x.dtype.name != entry.dtype:
            complain(
                f"{name} is {x.dtype.name} {x.shape}, but should be {entry.dtype} {entry.shape}"
            )
        if x.min() < entry.low or x.max() > entry.high:
            complain(f"{name} holds values out of range")
        if entry.home == "synapses" and (x & 1).any():
            complain(f"{name} holds odd weights")
