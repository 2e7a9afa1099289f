"""Find classes by name: the files of one folder, then other packages' entry points."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from cdkit.errors import CdkitError

T = TypeVar("T")
Class = TypeVar("Class", bound=type[Any])  # so that a decorated class keeps its own type


class Registry(Mapping[str, type[T]], Generic[T]):
    """Names to final subclasses of `base`, found in `folder` and in the entry points of `group`.

    `what` is how an error calls an entry ("distortion strategy"). Nothing is imported before the
    first look-up. An entry point is a module that registers classes when it is imported; its own
    name says nothing.
    """

    def __init__(self, base: type[T], *, what: str, folder: str, group: str) -> None:
        self.base, self.what = base, what
        self._folder, self._group = folder, group
        self._classes: dict[str, type[T]] = {}
        self._former: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._loaded = False

    def register(
        self, name: str, *, replaces: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Callable[[Class], Class]:
        """A class decorator.

        Args:
            name: What configurations call the class.
            replaces: Names of classes that are gone -> the parameters with which this one does the
                same, as plain data. Configurations that use them are read with a warning.

        Raises:
            ValueError: The name is taken.
            TypeError: The class is no subclass of `base`.
        """

        def add(cls: Class) -> Class:
            self._add(name, cls)
            for former, values in (replaces or {}).items():
                self._former[former] = (name, values)
            return cls

        return add

    def _add(self, name: str, cls: type[Any]) -> None:
        if name in self._classes:
            taken = _where(self._classes[name])
            raise ValueError(f"{name!r} is taken by {taken}; give {_where(cls)} another name")
        if not issubclass(cls, self.base):
            raise TypeError(f"{_where(cls)} must be a subclass of {_where(self.base)}")
        self._classes[name] = cls

    def name_of(self, cls: type[T]) -> str:
        """The name a class is registered under; a LookupError for a class that is not."""
        for name, known in self.items():
            if known is cls:
                return name
        raise LookupError(f"{_where(cls)} is not registered as a {self.what}")

    def replacement(self, name: str) -> tuple[str, Mapping[str, Any]] | None:
        """(name, parameters) of the class that does what a former one did; None for other names."""
        self.load()
        return None if name in self._classes else self._former.get(name)

    def __getitem__(self, name: str) -> type[T]:
        self.load()
        if name not in self._classes:
            raise UnknownNameError(unknown(self.what, name, self._classes))
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self.load()
        return len(self._classes)

    def load(self) -> None:
        """Import the folder and the entry points, once; every look-up does it by itself."""
        if self._loaded:
            return
        self._loaded = True  # first: a file that looks a name up while it is imported must not loop
        try:
            for module in pkgutil.iter_modules(importlib.import_module(self._folder).__path__):
                importlib.import_module(f"{self._folder}.{module.name}")
            for entry in entry_points(group=self._group):
                entry.load()
        except BaseException:
            self._loaded = (
                False  # else a broken file would look like an empty registry from here on
            )
            raise


class UnknownNameError(CdkitError, KeyError):
    """A name that no registry entry, preset, parameter or branch has."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """`no WHAT is called GIVEN`, with the near name and all that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {what} is called {given!r}.{hint} There is: {', '.join(names) or 'none'}."


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
