"""Record the calls of a model's modules while it runs."""

import functools
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """One call of a function of the model."""

    name: str
    arguments: Mapping[str, Any]
    keywords_only: bool
    """Whether no argument was passed by its position."""
    output: Any


@contextmanager
def recording_calls(
    methods: Mapping[str, tuple[Any, str]], *, names_only: Collection[str] = ()
) -> Iterator[list[RecordedCall]]:
    """Record every call of some methods while the block runs.

    Args:
        methods: The name to record a call under -> (object, name of its method).
        names_only: Of these, arguments and output are not kept: the states of all layers of a
            large model would fill the memory.

    Yields:
        The calls so far, in the order in which they returned.
    """
    calls: list[RecordedCall] = []

    def recorded(name: str, method: Any) -> Any:
        @functools.wraps(method)  # generate reads the signature
        def call(*args: Any, **kwargs: Any) -> Any:
            output = method(*args, **kwargs)
            if name in names_only:
                calls.append(RecordedCall(name, {}, not args, None))
                return output
            bound = inspect.signature(method).bind(*args, **kwargs).arguments
            arguments = {**bound, **bound.get("kwargs", {})}
            calls.append(RecordedCall(name, arguments, not args, output))
            return output

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in methods.items():
            method = getattr(owner, attribute)
            stack.enter_context(mock.patch.object(owner, attribute, recorded(name, method)))
        yield calls
