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
    """A read-only mapping from names to the classes that implement one interface.

    Nothing is imported before the first look-up. Then the modules of one folder are imported, and
    those that other packages list as entry points; each registers its classes as it is imported.
    The name of an entry point has no meaning.
    """

    def __init__(self, base: type[T], *, what: str, folder: str, group: str) -> None:
        """Make an empty registry.

        Args:
            base: The interface that every registered class implements.
            what: What an error message calls an entry, such as "distortion strategy".
            folder: The package whose modules register classes, such as
                "cdkit.strategies.distortions".
            group: The group of entry points in which other packages list their modules.
        """
        self.base, self.what = base, what
        self._folder, self._group = folder, group
        self._classes: dict[str, type[T]] = {}
        self._former: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._loaded = False

    def register(
        self, name: str, *, replaces: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Callable[[Class], Class]:
        """Register a class under a name; used as a class decorator.

        Args:
            name: What configurations call the class.
            replaces: Names of removed classes -> the parameters with which this class does the
                same, as plain data. Configurations that use them are read with a warning.

        Returns:
            The decorator, which returns the class unchanged.

        Raises:
            ValueError: When the decorator is applied, if the name is taken.
            TypeError: When the decorator is applied, if the class is no subclass of the base.
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
        """Find the name under which a class is registered.

        Args:
            cls: The class.

        Returns:
            Its name.

        Raises:
            LookupError: If the class is not registered.
        """
        for name, known in self.items():
            if known is cls:
                return name
        raise LookupError(f"{_where(cls)} is not registered as a {self.what}")

    def replacement(self, name: str) -> tuple[str, Mapping[str, Any]] | None:
        """Find the class that replaces a removed one.

        Args:
            name: The name of the removed class.

        Returns:
            (name, parameters) of the class that does the same now; None if no class was removed
            under that name, or a class is registered under it.
        """
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
        """Import the folder and the entry points, once; every look-up calls it first."""
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
    """An unknown name: no registry entry, preset, parameter or branch is called so."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Write the message of an unknown name.

    Args:
        what: What was searched for, such as "preset".
        given: The unknown name.
        known: All names that exist.

    Returns:
        `no WHAT is called GIVEN`, with the most similar name and the list of all names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {what} is called {given!r}.{hint} There is: {', '.join(names) or 'none'}."


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
