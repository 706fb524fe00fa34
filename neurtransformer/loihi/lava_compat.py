"""Importing this module makes Lava importable on Python 3.11; import it before anything of Lava.

lava-nc 0.10.0 and lava-dl 0.6.0 are archived and were written for Python 3.8 to 3.10. Four things
stand in the way, and all are mended from outside, for nothing on disk may change:

- `lava.magma.compiler.var_model` has dataclass defaults that are unhashable, which 3.11 refuses;
- `lava.lib.dl.slayer` imports all of SLAYER (cv2, torchvision) for the one file that netx needs;
- Lava sets the start method of multiprocessing, which fails where one has been set already;
- Lava's shared memory has names that stay behind when it is killed (`janitor.py`).
"""

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

from neurtransformer.errors import UserError
from neurtransformer.janitor import MemoryManager

MISSING = "Lava is not installed: type `neurtx install lava`"


@contextlib.contextmanager
def _hashable_dataclasses() -> Iterator[None]:
    """While open, `@dataclass` makes hashable classes, which 3.11 takes as defaults."""
    original = dataclasses.dataclass

    def hashable(cls: type | None = None, /, **options: Any) -> Any:
        return original(cls, **{**options, "unsafe_hash": True})

    with mock.patch.object(dataclasses, "dataclass", hashable):
        yield


def _bare_package(name: str) -> None:
    """Register `name` as a package whose `__init__` is not run."""
    if name in sys.modules:
        return
    parent, _, last = name.rpartition(".")
    package = types.ModuleType(name)
    package.__path__ = [f"{path}/{last}" for path in importlib.import_module(parent).__path__]
    sys.modules[name] = package


def _mend() -> None:
    with _hashable_dataclasses():
        importlib.import_module("lava.magma.compiler.var_model")
    forced = functools.partial(multiprocessing.set_start_method, force=True)
    with mock.patch.object(multiprocessing, "set_start_method", forced):
        infrastructure = importlib.import_module(
            "lava.magma.runtime.message_infrastructure.multiprocessing"
        )
    infrastructure.SharedMemoryManager = MemoryManager  # type: ignore[attr-defined]
    _bare_package("lava.lib.dl.slayer")


try:
    _mend()
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] != "lava":
        raise  # installed, but something that it needs is not
    raise UserError(MISSING) from missing
