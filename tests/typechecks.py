"""beartype for the tests, once for each signature.

jaxtyping's import hook decorates a function where it is defined, so one inside another function
anew in every call: beartype wrote its checks as often, which took a third of the tests' time. What
jaxtyping hands over is a stand-in that does nothing but take the arguments (and give the result
back), so the stand-ins of one function can share their checks.
"""

import inspect
from collections.abc import Callable
from typing import Any

from beartype import beartype

_KNOWN: dict[tuple[str, str, str], Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments and its result checked."""
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    # in words: the annotations of a function inside another are evaluated anew, and never equal
    key = (function.__module__, function.__qualname__, str(inspect.signature(function)))
    if key not in _KNOWN:
        _KNOWN[key] = beartype(function)
    return _KNOWN[key]
