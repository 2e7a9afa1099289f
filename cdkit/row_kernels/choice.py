"""Whether this machine runs the kernels: asked once for an answer."""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Collection
from typing import Any

import torch

from cdkit.errors import CdkitWarning
from cdkit.row_kernels.generated_rows import LARGEST_HEAD
from cdkit.row_kernels.trial import ALLOWED, error_of

DEVICES: tuple[str, ...] = ("cuda",)
"""The kinds of devices that they run on. Tests add the CPU, under Triton's interpreter."""
DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)
"""What they are compiled for. Under the interpreter they also take float64."""
FIRST_CAPABILITY = (8, 0)
"""The oldest NVIDIA architecture with bfloat16 and asynchronous copies (Ampere)."""


def find_kernels(device: torch.device, dtype: torch.dtype, head_dims: Collection[int]) -> Any:
    """Import the Triton kernels, where they run.

    Args:
        device: Where the attention is computed.
        dtype: The dtype of queries, keys and values.
        head_dims: The dimensions of a head in each layer; empty where they are not known.

    Returns:
        The module `cdkit.row_kernels.triton_rows`; None where the device is no NVIDIA GPU, the
        dtype is none of theirs, a head is too large, or Triton is not installed. Then nothing of
        Triton is imported.
    """
    if device.type not in DEVICES or dtype not in DTYPES:
        return None
    if not 0 < max(head_dims, default=0) <= LARGEST_HEAD:
        return None
    if device.type == "cuda" and (
        torch.version.cuda is None or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY
    ):
        return None
    if importlib.util.find_spec("triton") is None:
        return None
    return _tried(device, dtype, max(head_dims))


@functools.cache
def _tried(device: torch.device, dtype: torch.dtype, head_dim: int) -> Any:
    """The kernels, if they give what operators give on this device: tried once in a process."""
    kernels: Any = importlib.import_module("cdkit.row_kernels.triton_rows")
    try:
        off = error_of(kernels, device, dtype, head_dim)
        why = "" if off <= ALLOWED[dtype] else f"it is off by {off:.3g} of numbers around 1"
    except Exception as error:  # Triton compiles now, and needs a C compiler and a fitting driver
        why = str(error)
    if not why:
        return kernels
    warnings.warn(
        f"the kernel for generated tokens does not run on {device} in {dtype} with heads of "
        f"{head_dim} dimensions: {why}. Slower operators run instead; leave 'row_kernel' out of "
        "optimize to keep it from being tried",
        CdkitWarning,
        stacklevel=2,
    )
    return None


def programs(device: torch.device) -> int:
    """How many programs keep a device busy: two for each of its multiprocessors."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return 2 * count
