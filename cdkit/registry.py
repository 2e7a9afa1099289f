"""Find classes by name: the files of one folder, then other packages' entry points."""

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from cdkit.errors import CdkitError
from cdkit.html_table import html_table

T = TypeVar("T")
Class = TypeVar("Class", bound=type[Any])  # so that a decorated class keeps its own type

LOADING = threading.RLock()
"""Held by the thread that imports plug-ins. One for all kinds: a plug-in of one kind may look
another kind up while it is imported, and two locks taken in both orders would wait for ever."""


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point of another package that could not be used, and why."""

    distribution: str
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return (
            f"the plug-in {self.entry_point} of the package {self.distribution} cannot be used "
            f"({self.reason}); mend or uninstall that package"
        )


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
        self._loaded = self._loading = False
        self._broken: tuple[BrokenPlugin, ...] = ()

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

    @property
    def broken(self) -> tuple[BrokenPlugin, ...]:
        """The entry points that could not be imported; all others are there."""
        self.load()
        return self._broken

    def __getitem__(self, name: str) -> type[T]:
        self.load()
        if name not in self._classes:
            raise UnknownNameError(unknown(self.what, name, self._classes, self._broken))
        return self._classes[name]

    def __repr__(self) -> str:
        return f"<registry of {len(self)} {self.what}: {', '.join(sorted(self))}>"

    def _repr_html_(self) -> str:
        first = ((name, inspect.cleandoc(cls.__doc__ or "")) for name, cls in self.items())
        rows = ((name, " ".join(words.split("\n\n")[0].split())) for name, words in first)
        return html_table(f"Registered: {self.what}", ("name", "what it is"), rows)

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self.load()
        return len(self._classes)

    def load(self) -> None:
        """Import the folder and the entry points, once; every look-up does it by itself.

        Other threads wait until all is imported. An entry point that fails is left out and kept in
        `broken`; a file of the folder that fails raises, now and at the next look-up.
        """
        if self._loaded:
            return
        with LOADING:
            if self._loaded or self._loading:  # a file may look names up while it is imported
                return
            self._loading = True
            try:
                for module in pkgutil.iter_modules(importlib.import_module(self._folder).__path__):
                    importlib.import_module(f"{self._folder}.{module.name}")
                self._broken = tuple(load_plugins(self._group)[1])
                self._loaded = True
            finally:
                self._loading = False


_FAILED: dict[tuple[str, EntryPoint], BrokenPlugin] = {}


def load_plugins(group: str) -> tuple[list[tuple[EntryPoint, Any]], list[BrokenPlugin]]:
    """What the entry points of a group name, and those that cannot be had.

    One that failed is not tried again in this process: what it had registered before it failed
    would be in its own way, and the reason would be another.
    """
    found: list[tuple[EntryPoint, Any]] = []
    broken: list[BrokenPlugin] = []
    with LOADING:
        for entry in installed_entries(group, _search_path()):
            key = (distribution_of(entry), entry)
            if key not in _FAILED:
                try:
                    found.append((entry, entry.load()))
                    continue
                except (Exception, SystemExit) as error:  # its code may raise anything
                    _FAILED[key] = broken_plugin(entry, error)
            broken.append(_FAILED[key])
    return found, broken


@cache
def installed_entries(group: str, path: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a group, kept: to read them opens a file of each installed package."""
    return tuple(entry_points(group=group))


def _search_path() -> tuple[tuple[str, int], ...]:
    """Python's search path, with the time of each folder's last change, such as an install."""
    return tuple((p, os.stat(p).st_mtime_ns if os.path.exists(p) else 0) for p in sys.path)


def broken_plugin(entry: EntryPoint, error: BaseException) -> BrokenPlugin:
    """The record of an entry point that failed."""
    name = distribution_of(entry)
    words = " ".join(str(error).split())
    reason = type(error).__name__ + (f": {words}" if words else "")
    return BrokenPlugin(name, f"{entry.name} = {entry.value} [{entry.group}]", reason)


def distribution_of(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    dist = getattr(entry, "dist", None)
    return "of unknown name" if dist is None else f"{dist.name} {dist.version}"


class UnknownNameError(CdkitError, KeyError):
    """An unknown name: no registry entry, preset, parameter or branch is called so."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


def in_any_case(given: str | None, known: Iterable[str]) -> str | None:
    """Find a name without regard to upper and lower case; a hyphen is an underscore.

    Args:
        given: What a user wrote, such as "VCD" or "cmac-imd".
        known: The names that exist.

    Returns:
        The name itself where it exists, else the one that it can mean; None where there is none,
        or more than one.
    """
    if given is None:
        return None
    names = [str(name) for name in known]
    found = [name for name in names if _folded(name) == _folded(given)]
    return given if given in names else found[0] if len(found) == 1 else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def unknown(
    what: str, given: str, known: Iterable[str], broken: Sequence[BrokenPlugin] = ()
) -> str:
    """Write the message of an unknown name.

    Args:
        what: What was searched for, such as "preset".
        given: The unknown name.
        known: All names that exist.
        broken: Plug-ins that could not be imported: they may have it.

    Returns:
        `no WHAT is called GIVEN`, with the most similar name and the list of all names; of more
        than 100, the command that prints them.
    """
    names = sorted(known)
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(given.casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    missing = "".join(f" Also, {each}." for each in broken)
    there = (
        f"There is: {', '.join(names) or 'none'}."
        if len(names) <= 100
        else f"There are {len(names)} names; `cdkit list` prints them."
    )
    return f"no {what} is called {given!r}.{hint} {there}{missing}"


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
