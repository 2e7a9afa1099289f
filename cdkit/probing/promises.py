"""State a promise, and raise an AssertionError that names it where it does not hold."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor


def require(kept: bool, part: Any, promise: str, given: object = None, *, todo: str = "") -> None:
    """Raise where a promise is broken.

    Args:
        kept: Whether the promise holds.
        part: Whose promise it is; the message begins with its name.
        promise: What should hold, in words.
        given: What was found instead, for the message.
        todo: What its author should do; the message ends with it.

    Raises:
        AssertionError: Where `kept` is False.
    """
    if not kept:
        detail = "" if given is None else f" Got: {given}"
        raise AssertionError(f"{name_of(part)}: {promise}.{detail}{_last(todo, detail)}")


def _last(todo: str, detail: str) -> str:
    """The end of a message; on a line of its own behind numbers that fill several."""
    return f"{chr(10) if chr(10) in detail else ' '}What to do: {todo}" if todo else ""


def name_of(part: object) -> str:
    """How a message names a part: its parameters too, where it is a dataclass."""
    return repr(part) if dataclasses.is_dataclass(part) else type(part).__name__


def require_same(given: Tensor, wanted: Tensor, part: Any, promise: str, *, todo: str = "") -> None:
    """Require equal shapes, and values equal within 1e-9 (absolute and relative)."""
    close = given.shape == wanted.shape and torch.allclose(
        given, wanted, rtol=1e-9, atol=1e-9, equal_nan=True
    )
    require(close, part, promise, (given, wanted), todo=todo)


def require_close(
    given: Tensor, wanted: Tensor, part: Any, promise: str, *, within: float | None = None
) -> None:
    """Require equal shapes, and values as close as numbers of a model can be.

    Args:
        given: What was computed.
        wanted: What it should be.
        part: Whose promise it is.
        promise: What should hold, in words.
        within: The largest difference allowed, relative to 1 + the largest absolute value wanted;
            `precision` of its dtype if None.
    """
    allowed = tolerance(wanted) if within is None else within * (1 + float(wanted.abs().max()))
    require(given.shape == wanted.shape, part, promise, (given.shape, wanted.shape))
    worst = float(
        (given.to(wanted.device).double() - wanted.double()).abs().nan_to_num(nan=math.inf).max()
    )
    require(worst <= allowed, part, promise, f"off by {worst:.3g}")


def tolerance(like: Tensor) -> float:
    """The largest difference allowed between numbers of a model that mathematics calls equal.

    Relative to 1 + the largest absolute value of `like`, because rounding grows with the numbers.
    """
    finite = like[like.isfinite()]
    return precision(like.dtype) * (1 + float(finite.abs().max() if finite.numel() else 0))


def precision(dtype: torch.dtype) -> float:
    """`tolerance` of numbers up to 1."""
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 5e-2)
