"""Former names of an interface's attributes keep working, with a DeprecationWarning."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar


class FormerNames:
    """An interface whose implementations may still use its attributes' former names."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of attributes that implementations define -> the names that they have now."""
    removed: ClassVar[Mapping[str, str]] = {}
    """Attributes that the interface no longer has -> what to do instead."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take attributes under former names for the new ones.

        It runs before Python looks for abstract methods that are still missing, so a class that
        implements the interface under its former names can be instantiated.
        """
        super().__init_subclass__(**kwargs)
        own = {*inspect.get_annotations(cls), *cls.__dict__}
        where = f"{cls.__module__}.{cls.__qualname__}"
        for base in cls.__mro__[1:]:
            for old, new in base.__dict__.get("renamed", {}).items():
                if old in own and new not in own:
                    _warn(f"{where}: {old} is now called {new}")
                    setattr(cls, new, _alias(cls, old))
            for old, advice in base.__dict__.get("removed", {}).items():
                if old in own:
                    _warn(f"{where}: {old} has no effect any more; {advice}")


def _alias(cls: type, old: str) -> Any:
    """The value or the method itself; a property where instances have values of their own."""
    value = cls.__dict__.get(old)
    declared = str(inspect.get_annotations(cls).get(old, "ClassVar"))
    return value if "ClassVar" in declared else property(lambda self: getattr(self, old))


def readable_as(cls: type, **former: str) -> None:
    """Let instances be read by former names too: `readable_as(cls, former="present")`."""
    for old, new in former.items():
        setattr(cls, old, property(_reader(cls.__name__, old, new)))


def _reader(where: str, old: str, new: str) -> Any:
    def read(self: Any) -> Any:
        _warn(f"{where}.{old} is now called {new}", stacklevel=3)
        return getattr(self, new)

    return read


def _warn(message: str, stacklevel: int = 4) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
