"""A part is a value, and its functions are pure; see `cdkit.testing`."""

import dataclasses
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cdkit.probing.promises import name_of, require

STATELESS = (
    "keep no state between calls (a counter, a cache, self.x = ...): compute from the arguments "
    "alone"
)
NEW_TENSORS = (
    "make new tensors: x + y instead of x.add_(y), torch.where instead of x[mask] = y, "
    "dataclasses.replace instead of assigning"
)
PASSED_RANDOMNESS = (
    "draw from the generator that is passed, or from cdkit.functional.cell_uniform and "
    "cell_normal with the rows' rng_keys"
)

ROWS_FIRST = "state tensors begin with the rows"
ROWS_FIRST_TODO = "the engine reorders state with the beams, so give it one entry a row"


def pure(part: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function twice, and require that it is pure.

    Args:
        part: The part whose function it is.
        function: What to call.
        args: Its arguments; none may change.
        kwargs: Its arguments by name.

    Returns:
        What it returns.

    Raises:
        AssertionError: Where it writes into an argument, draws from torch's global generator, or
            returns something else the second time.
    """
    before = pickle.dumps([*tensors_in(args), *tensors_in(kwargs)])
    generator = torch.get_rng_state()
    first = function(*args, **kwargs)
    require(
        pickle.dumps([*tensors_in(args), *tensors_in(kwargs)]) == before,
        part,
        "nothing is written into what it is passed",
        todo=NEW_TENSORS,
    )
    require(
        generator.equal(torch.get_rng_state()),
        part,
        "no random number comes from torch's global generator",
        todo=PASSED_RANDOMNESS,
    )
    torch.rand(1)  # a call that depends on the global generator would now differ
    second = function(*args, **kwargs)
    torch.set_rng_state(generator)
    for a, b in zip(tensors_in(first), tensors_in(second), strict=True):
        same = a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        promise = "equal arguments give equal results, to the bit"
        require(same, part, promise, todo=STATELESS)
    return first


@contextmanager
def takes(part: Any, what: str, *, todo: str) -> Iterator[None]:
    """State what must run, and raise an AssertionError that names it where it fails.

    Args:
        part: The part that runs; the message begins with its name.
        what: What it is given, in words.
        todo: What its author should do; the message ends with it.

    Raises:
        AssertionError: Where an error of torch or Python is raised inside.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise AssertionError(
            f"{name_of(part)}: it takes {what}. Got: {type(error).__name__}: {error} "
            f"What to do: {todo}"
        ) from error


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a value, except what a segment keeps for later layers and steps."""
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
            "memory",
        }
        return [tensor for name in sorted(names) for tensor in tensors_in(getattr(value, name))]
    return []


def normal(seed: int, *shape: int) -> Tensor:
    """Normally distributed float64 numbers, the same for the same seed."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def check_value(part: Any) -> None:
    """Require a value: frozen, documented, hashable, picklable, equal where its parameters are."""
    cls = type(part)
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    todo = "write @dataclass(frozen=True) before the class, its parameters as fields"
    require(bool(frozen), part, "it is a frozen dataclass", todo=todo)
    todo = "say in it what the part does, its formula and its parameters"
    require(bool((cls.__doc__ or "").strip()), part, "its class has a docstring", todo=todo)
    # dataclass() writes the signature where a class has no docstring
    written = not (cls.__doc__ or "").startswith(f"{cls.__name__}(")
    require(written, part, "it has a docstring", todo=todo)
    twin = dataclasses.replace(part)
    todo = "leave __eq__ to the dataclass: no eq=False, no fields with compare=False"
    require(twin == part, part, "equal parameters make equal parts", todo=todo)
    try:
        equal_hash = hash(twin) == hash(part)
    except TypeError as error:
        raise AssertionError(
            f"{name_of(part)}: it can be hashed. Got: {error}. What to do: use tuples and "
            "frozensets for the values of its fields, no lists, dicts or tensors"
        ) from error
    require(
        equal_hash,
        part,
        "equal parts have equal hashes",
        todo="leave __hash__ to the dataclass",
    )
    try:
        copy = pickle.loads(pickle.dumps(part))
    except Exception as error:  # pickle raises many kinds of errors
        raise AssertionError(
            f"{name_of(part)}: it can be pickled. Got: {error}. What to do: define its class at "
            "the top of a module, and hold no function and no open file in it"
        ) from error
    require(
        copy == part,
        part,
        "pickling returns an equal part",
        todo="let fields hold plain values: numbers, text, tuples",
    )
