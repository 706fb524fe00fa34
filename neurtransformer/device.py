"""Where a network computes, and the type of its weights there, by their names.

Nothing heavy is imported until a name has passed.
"""

import re
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from neurtransformer.errors import UserError

if TYPE_CHECKING:
    import torch

    M = TypeVar("M", bound=torch.nn.Module)

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
"""Types that weights may have. Spike counts, membranes and states are float32 in all of them."""


def is_device(name: str) -> bool:
    """Whether `name` is that of a device, which this machine may have or not."""
    return re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]?))?", name) is not None


def device_of(name: str) -> "torch.device":
    """The device called "cpu", "cuda" or "cuda:N". Raises UserError for another name, and
    for a device that this machine does not have."""
    if not is_device(name):
        raise UserError(f"--device must be cpu, cuda or cuda:N, not {name!r}")

    import torch

    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no {name} device here: leave --device out")
    return device


def dtype_of(name: str) -> "torch.dtype":
    """The type of that name. Raises UserError for one that is not in DTYPES."""
    if name not in DTYPES:
        raise UserError(f"--dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {name!r}")

    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def placed(model: "M", device: str, dtype: str = "float32") -> "M":
    """`model` itself, moved to a device, with weights of that type. Raises UserError as above."""
    return model.to(device_of(device), dtype_of(dtype))
