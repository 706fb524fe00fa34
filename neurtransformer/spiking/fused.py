"""Calls of `fused.c`: the arithmetic of a token in a few passes of compiled code.

One token is little work for a processor and many small tensor operations, each of which costs more
to call than to do. `pip install` compiles `fused.c` where there is a C compiler. Where there is
none, on other devices than CPUs and in training, the same numbers come from tensor operations.
"""

import ctypes
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

MOST_DIM = 256
"""The widest head that `races` has room for."""

FEW, FEW_THREADS = 2**20, 4
"""Compiled code runs on one thread, where it takes a half to a fifth of the time of tensor
operations. Beyond so many numbers and so many threads these are faster."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, None where there is none."""
    spec = find_spec("neurtransformer.spiking._fused")
    if spec is None or spec.origin is None:
        return None
    try:
        found = ctypes.CDLL(spec.origin)
        pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        found.counts.argtypes = [pointer] * 4 + [size] * 2 + [ctypes.c_float] + [flag] * 2
        found.races.argtypes = [pointer] * 8 + [size] * 5 + [flag] * 2
        found.counts.restype = found.races.restype = None
    except (OSError, AttributeError):  # of another system, or of another version
        return None
    return found


def usable(x: Tensor) -> bool:
    """Whether there is compiled code, and x is what it takes, a plain float32 tensor of a CPU, and
    not so large that many threads were better."""
    return (
        type(x) is Tensor
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not x.requires_grad
        and (x.numel() <= FEW or torch.get_num_threads() <= FEW_THREADS)
        and library() is not None
    )


def counts(
    x: Tensor,
    center: Tensor | None,
    divisor: Tensor,
    most: int,
    *,
    signed: bool,
    analogue: bool,
) -> Tensor:
    """Values x (..., channels) to spike counts, as `CodingNeuron` has them; no gradient.

    center: (channels,), None for zeros. divisor: (channels,), what a spike is worth, or for
    analogue neurons the threshold. All are float32, and so is what is returned.
    """
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    channels = x.shape[-1]
    for part in (center, divisor):
        if part is not None and (part.shape != (channels,) or part.dtype != torch.float32):
            raise ValueError(f"{tuple(part.shape)} {part.dtype} does not fit {channels} channels")
    # named, so that what may be copies live as long as the call
    divisor, center = divisor.contiguous(), None if center is None else center.contiguous()
    library().counts(  # type: ignore[union-attr]  # `usable` has said so
        x.data_ptr(),
        None if center is None else center.data_ptr(),
        divisor.data_ptr(),
        out.data_ptr(),
        x.numel() // channels,
        channels,
        most,
        signed,
        analogue,
    )
    return out


def races(
    query: Tensor,
    synapses: Tensor,
    values: Tensor,
    width: Tensor,
    there: Tensor,
    reciprocals: Tensor,
    bits: int,
) -> Tensor:
    """The races of a few queries that see all token neurons, and the mean values that they read.

    query: counts (batch, heads, asking, dim), float32. synapses, values: of the token neurons,
    (batch, heads, past, dim), int8, the values int8 or int16. width: of a level, (heads,), float32.
    there: (batch, past), bool, False for padding. reciprocals, bits: see `base.normalise`.
    Returns (batch, heads, asking, dim), float32: what `RaceAttention.answered` does.
    """
    batch, heads, asking, dim = query.shape
    past = synapses.shape[-2]
    fits = (
        synapses.shape == values.shape == (batch, heads, past, dim)
        and there.shape == (batch, past)
        and width.shape == (heads,)
        and dim <= MOST_DIM
        and synapses.dtype == torch.int8
        and values.dtype in (torch.int8, torch.int16)
        and there.dtype == torch.bool
    )
    if not fits:
        raise ValueError("queries, token neurons and widths of levels do not fit each other")
    query, synapses, values, there = (
        part.contiguous() for part in (query, synapses, values, there)
    )
    out, room = torch.empty_like(query), torch.empty(past, dtype=torch.int16)
    widths = width.repeat(batch) if batch > 1 else width.contiguous()
    library().races(  # type: ignore[union-attr]  # `usable` has said so
        query.data_ptr(),
        synapses.data_ptr(),
        values.data_ptr(),
        widths.data_ptr(),
        there.data_ptr(),
        reciprocals.data_ptr(),
        room.data_ptr(),
        out.data_ptr(),
        batch * heads,
        heads,
        asking,
        past,
        dim,
        values.dtype == torch.int16,
        bits,
    )
    return out
