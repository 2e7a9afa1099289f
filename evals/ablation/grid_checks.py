"""Checks of what a grid file holds; each error names the place, what was given and what may be."""

import math
from collections.abc import Collection, Iterable
from typing import Any

from cdkit.errors import CdkitError
from cdkit.registry import unknown


def check_names(
    where: str, given: Iterable[object], known: Iterable[str], what: str = "value"
) -> None:
    """Each of `given` is one of `known`, none twice."""
    allowed, seen = tuple(known), set[object]()
    for name in given:
        if name not in allowed:
            raise CdkitError(f"{where}: {unknown(what, str(name), allowed)}")
        if name in seen:
            raise CdkitError(f"{where} holds {name!r} twice")
        seen.add(name)


def as_table(where: str, given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise CdkitError(f"{where} must be a table of keys, got {given!r}")
    return given


def as_tuple(where: str, given: object) -> tuple[Any, ...]:
    if not isinstance(given, list | tuple):
        raise CdkitError(f"{where} must be a list, got {given!r}")
    return tuple(given)


def as_number(where: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise CdkitError(f"{where} is no number: {given!r}")
    return given


def check_some(where: str, given: Collection[object], what: str) -> None:
    """An empty list would do nothing, and silently."""
    if not given:
        raise CdkitError(f"{where} is empty: name at least one {what}, or leave it out")


def check_text(where: str, given: object) -> None:
    if not isinstance(given, str) or not given:
        raise CdkitError(f"{where} must be a text, got {given!r}")


def check_twice(where: str, given: Collection[object]) -> None:
    """None of `given` stands twice."""
    seen = set[object]()
    for name in given:
        if name in seen:
            raise CdkitError(f"{where} holds {name!r} twice")
        seen.add(name)


def check_share(where: str, given: object) -> None:
    """A number above 0, and at most 1."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1:
        raise CdkitError(f"{where} must be in (0, 1], got {given!r}")


LARGEST_SEED = 2**63 - 1
MOST_THREADS = 1024
WHY_THREADS = "torch starts them all, and dies where the system has no more"


def check_integer(
    where: str, given: object, *, low: int, high: int | None = None, why: str = ""
) -> None:
    """A whole number from `low` to `high`; `why` says why there must be no more."""
    if not isinstance(given, int) or isinstance(given, bool) or given < low:
        raise CdkitError(f"{where} must be a whole number from {low} on, got {given!r}")
    if high is not None and given > high:
        raise CdkitError(f"{where} must be at most {high} ({why}), got {given!r}")
