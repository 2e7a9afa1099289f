"""beartype and jaxtyping for the tests: some calls of each function in each test.

jaxtyping's import hook decorates every function of cdkit, those inside others anew in every call,
and checks each call twice. That took more than half of the tests' time, nearly all of it for steps
and layers after the first ones, which call the same functions with the same types. So a test checks
the calls 1, 2, 8, 64, 512 and so on of a function: some of the prompt, and some of later steps.
"""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import beartype

_CALLS: Counter[CodeType] = Counter()  # of this test; for a function inside another, definitions
_KNOWN: dict[tuple[str, str, str], Callable[..., Any]] = {}
_in_every_call = jaxtyping.jaxtyped


def begin_a_test() -> None:
    """Count the calls from 1 again."""
    _CALLS.clear()


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments and its result checked.

    What jaxtyping hands over is a stand-in that does nothing but take the arguments (and give the
    result back), so the stand-ins of a function inside another can share their checks.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    # in words: the annotations of a function inside another are evaluated anew, and never equal
    key = (function.__module__, function.__qualname__, str(inspect.signature(function)))
    if key not in _KNOWN:
        _KNOWN[key] = beartype(function)
    return _KNOWN[key]


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """In place of jaxtyping's decorator of this name, as its import hook calls it."""
    full = _in_every_call(typechecker=typechecker)

    def decorate(made: Any) -> Any:
        if isinstance(made, FunctionType):
            if "<locals>" in made.__qualname__:
                return full(made) if _is_due(made.__code__) else made
            return _in_some_calls(made, full(made))
        init = vars(made).get("__init__") if inspect.isclass(made) else None
        done = full(made)
        if isinstance(init, FunctionType) and done.__init__ is not init:  # a dataclass
            done.__init__ = _in_some_calls(init, done.__init__)
        return done

    return decorate


def _in_some_calls(function: FunctionType, checking: Callable[..., Any]) -> Callable[..., Any]:
    code = function.__code__

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable or not _is_due(code):
            return function(*args, **kwargs)
        return checking(*args, **kwargs)

    return call


def _is_due(code: CodeType) -> bool:
    _CALLS[code] = count = _CALLS[code] + 1
    return count == 2 or (count.bit_count() == 1 and count.bit_length() % 3 == 1)


jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]
