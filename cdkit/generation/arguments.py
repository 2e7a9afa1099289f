"""What a call of a wrapped function passes, by name."""

import inspect
from collections.abc import Callable
from typing import Any

Forward = Callable[..., Any]


def arguments(function: Forward, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call, by name, as Hugging Face's wrappers need them, too."""
    if not args:
        return dict(kwargs)
    signature = inspect.signature(function)
    given: dict[str, Any] = signature.bind_partial(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return given
