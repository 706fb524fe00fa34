"""What large models ask of the memory allocator."""

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGE = 2**30
"""Bytes of weights from which on a model is large."""

MAPPED = 2**22
"""Bytes from which on a block of memory is returned to the system when it is freed."""

_M_MMAP_THRESHOLD = -3


def is_large(model: "PreTrainedModel") -> bool:
    """Whether copies of a model's weights are to be avoided."""
    return sum(x.nbytes for x in model.parameters()) >= LARGE


def spare(model: "PreTrainedModel") -> None:
    """If `model` is large, have memory from now on returned to the system as soon as it is freed.

    glibc keeps freed blocks of up to 32 MiB, in which tensors of other sizes do not fit: half as
    much again as the weights of a wide model (docs/LOG.md). Without glibc nothing happens.
    """
    if sys.platform == "linux" and is_large(model):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, MAPPED)
