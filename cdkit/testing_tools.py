"""How the contract suite asks and complains; see `cdkit.testing`."""

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cdkit.segment import CrossModalSegment, ImageColumns


def pure(part: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call twice; nothing passed may change, no global random number may be drawn."""
    before = pickle.dumps([*tensors_in(args), *tensors_in(kwargs)])
    generator = torch.get_rng_state()
    first = function(*args, **kwargs)
    require(
        pickle.dumps([*tensors_in(args), *tensors_in(kwargs)]) == before,
        part,
        "nothing is written into what it is passed",
    )
    require(
        generator.equal(torch.get_rng_state()), part, "no random number comes from torch's global"
    )
    torch.rand(1)  # a call that depends on the global generator would now differ
    second = function(*args, **kwargs)
    torch.set_rng_state(generator)
    for a, b in zip(tensors_in(first), tensors_in(second), strict=True):
        same = a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        require(same, part, "equal arguments give equal results, to the bit")
    return first


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in it, but what a segment remembers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, CrossModalSegment | ImageColumns):
        names = [field.name for field in dataclasses.fields(value) if field.name != "memory"]
        return [tensor for name in names for tensor in tensors_in(getattr(value, name))]
    return []


def normal(seed: int, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def require_same(given: Tensor, wanted: Tensor, part: Any, promise: str) -> None:
    close = given.shape == wanted.shape and torch.allclose(
        given, wanted, rtol=1e-9, atol=1e-9, equal_nan=True
    )
    require(close, part, promise, (given, wanted))


def require(kept: bool, part: Any, promise: str, given: object = None) -> None:
    if not kept:
        detail = "" if given is None else f" Got: {given}"
        raise AssertionError(f"{name_of(part)}: {promise}.{detail}")


def name_of(part: object) -> str:
    return repr(part) if dataclasses.is_dataclass(part) else type(part).__name__
