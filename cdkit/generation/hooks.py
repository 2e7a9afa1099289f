"""Attributes set on one model and taken back again: nothing is patched globally."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

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

    def before(self, module: nn.Module, see: Callable[[Any], None], *, first: bool = False) -> None:
        """Show what the module is given first; `first`: before what other hooks see."""

        def hook(module: nn.Module, given: Any, named: Any) -> None:
            see(given or named["hidden_states"])

        handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)
        self._undo.append(handle.remove)

    def change_input(self, module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Replace the tensor that the module is given first."""

        def hook(module: nn.Module, given: Any) -> Any:
            new = change(given[0], given[0])
            return None if new is given[0] else (new, *given[1:])

        self._undo.append(module.register_forward_pre_hook(hook, prepend=True).remove)

    def change_output(self, module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Replace the first tensor that the module gives, before other hooks see it; `change` gets
        it, and what the module was given."""

        def hook(module: nn.Module, given: Any, named: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            new = change(states, given[0] if given else next(iter(named.values())))
            if new is states:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)
        self._undo.append(handle.remove)

    def undo(self) -> None:
        """Put everything back, the latest first."""
        while self._undo:
            self._undo.pop()()
