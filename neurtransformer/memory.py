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


def spare(model: "PreTrainedModel") -> bool:
    """Have freed memory returned to the system at once if `model` is large, and say whether it is.

    glibc keeps freed blocks of up to 32 MiB, in which tensors of other sizes do not fit: half as
    much again as GPT-2 XL's weights (docs/LOG.md). Without glibc nothing happens.
    """
    if sum(x.nbytes for x in model.parameters()) < LARGE:
        return False
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, MAPPED)
    return True
