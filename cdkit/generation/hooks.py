"""Attributes set on one model and taken back again: nothing is patched globally."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn

from cdkit.errors import CdkitError


class BoundToModel:
    """What an attached model carries: it belongs to that very model, and to no copy of it."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise CdkitError("leave the block of cdkit.attach before the model is copied or pickled")

    def __reduce__(self) -> NoReturn:
        self.__deepcopy__(None)


@dataclass(eq=False)
class Hooks:
    """Instance attributes that were set, and how to put back what was there."""

    _undo: list[Callable[[], None]] = field(default_factory=list)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of the instance."""
        if name in owner.__dict__:
            old = owner.__dict__[name]
            self._undo.append(lambda: owner.__dict__.__setitem__(name, old))
        else:
            self._undo.append(lambda: owner.__dict__.pop(name, None))
        owner.__dict__[name] = value

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Put `around(inner, ...)` in the place of a bound method, with its signature."""
        inner = getattr(owner, name)
        # a partial adds no Python call, and the signature is read from what it wraps
        self.set(owner, name, functools.update_wrapper(functools.partial(around, inner), inner))

    def after(self, module: nn.Module, see: Callable[[Any], None]) -> None:
        """Show what the module gives."""

        def hook(module: nn.Module, given: object, output: Any) -> None:
            see(output)

        self._undo.append(module.register_forward_hook(hook).remove)

    def before(self, module: nn.Module, see: Callable[[Any], None]) -> None:
        """Show what the module is given first."""

        def hook(module: nn.Module, given: Any, named: Any) -> None:
            see(given or named["hidden_states"])

        self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def undo(self) -> None:
        """Put everything back, the latest first."""
        while self._undo:
            self._undo.pop()()
