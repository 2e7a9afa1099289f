"""How the contract suite of model adapters looks on while a model works."""

import functools
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True, eq=False)
class Seen:
    """One call of a function of the model."""

    name: str
    given: Mapping[str, Any]
    by_name: bool
    output: Any


@contextmanager
def watching(
    places: Mapping[str, tuple[Any, str]], *, dropped: Collection[str] = ()
) -> Iterator[list[Seen]]:
    """Notes every call of the methods that are named, in the order in which they end.

    Of those dropped only the name is kept: the states of all layers would fill the memory.
    """
    seen: list[Seen] = []

    def watched(name: str, inner: Any) -> Any:
        @functools.wraps(inner)  # generate reads the signature
        def call(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            if name in dropped:
                seen.append(Seen(name, {}, not args, None))
                return output
            given = inspect.signature(inner).bind(*args, **kwargs).arguments
            seen.append(Seen(name, {**given, **given.get("kwargs", {})}, not args, output))
            return output

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            inner = getattr(owner, attribute)
            stack.enter_context(mock.patch.object(owner, attribute, watched(name, inner)))
        yield seen
