"""How the contract suite asks and complains; see `cdkit.testing`."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


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
    """All tensors in it, but what a segment remembers or carries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = {field.name for field in dataclasses.fields(value)} - {
            "answer_cache",
            "layer_state",
        }
        return [tensor for name in sorted(names) for tensor in tensors_in(getattr(value, name))]
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


def check_value(part: Any) -> None:
    """A part is a value: frozen, hashable, equal to its like, and it can be pickled."""
    cls = type(part)
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(bool(frozen), part, "it is a frozen dataclass")
    require(bool((cls.__doc__ or "").strip()), part, "its class has a docstring")
    # a dataclass without a docstring of its own gets its signature as one
    require(not (cls.__doc__ or "").startswith(f"{cls.__name__}("), part, "it has a docstring")
    twin = dataclasses.replace(part)
    require(twin == part, part, "equal parameters make equal parts")
    try:
        equal_hash = hash(twin) == hash(part)
    except TypeError as error:
        raise AssertionError(f"{name_of(part)}: it can be hashed. Got: {error}") from error
    require(equal_hash, part, "equal parts have equal hashes")
    try:
        copy = pickle.loads(pickle.dumps(part))
    except Exception as error:  # whatever pickle raises, the promise is the same
        raise AssertionError(
            f"{name_of(part)}: it can be pickled (define its class at the top of a module). "
            f"Got: {error}"
        ) from error
    require(copy == part, part, "pickling returns an equal part")


def tolerance(like: Tensor) -> float:
    """How far a model's numbers may lie apart that mathematics says are equal."""
    finite = like[like.isfinite()]
    return precision(like.dtype) * (1 + float(finite.abs().max() if finite.numel() else 0))


def precision(dtype: torch.dtype) -> float:
    """`tolerance` of numbers up to 1."""
    return {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 5e-2)


def require_close(
    given: Tensor, wanted: Tensor, part: Any, promise: str, *, within: float | None = None
) -> None:
    """As `require_same`, within what a model's precision allows (or `within`, relative)."""
    allowed = tolerance(wanted) if within is None else within * (1 + float(wanted.abs().max()))
    require(given.shape == wanted.shape, part, promise, (given.shape, wanted.shape))
    worst = float(
        (given.to(wanted.device).double() - wanted.double()).abs().nan_to_num(nan=math.inf).max()
    )
    require(worst <= allowed, part, promise, f"off by {worst:.3g}")
