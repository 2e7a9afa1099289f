"""New values of a method's parameters, by their names."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdkit.errors import CdkitError
from cdkit.interfaces.part import Part
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of
from cdkit.methods.plain_data import build, warn_of_former
from cdkit.registry import UnknownNameError, unknown


def override(method: Method, overrides: Mapping[str, Any]) -> Method:
    """Replace parameters of a method.

    Args:
        method: The method.
        overrides: New values of parameters, by name, as in `load`.

    Returns:
        The new method.

    Raises:
        UnknownNameError: If no parameter has a name that is given.
        CdkitError: If a name fits more than one parameter, or a value is not allowed.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        place, parameter = _find(method, name)
        changes.setdefault(place, {})[parameter] = value

    def changed(place: str, part: Any) -> Any:
        if not any(f"{at}.".startswith(f"{place}.") for at in changes):
            return part
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        where = f"{method.name}, {place}"
        part = build(type(part), values | changes.get(place, {}), where)
        inner = {
            name: changed(f"{place}.{name}", getattr(part, name))
            for name, value in values.items()
            if isinstance(value, Part)
        }
        return dataclasses.replace(part, **inner)

    return method.with_parts(changed)


def _find(method: Method, name: str) -> tuple[str, str]:
    """The (place of the part, parameter) that `name` means.

    `name` is a dotted end of the parameter's full name. Where no full name ends so, it may leave
    out names in between, such as the kind of a branch's distortion.
    """
    named = list(_full_names(method))
    wanted = name.split(".")
    fits = [target for full, target in named if full[-len(wanted) :] == wanted]
    fits = fits or [target for full, target in named if _leaves_out(wanted, full)]
    found = list(dict.fromkeys(fits))
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(sorted(".".join(target) for target in found))
        raise CdkitError(f"{method.name} has {name!r} more than once; say which: {places}")
    if wanted[0] == "combiner" and method.constraint is not None:  # where beta stood before
        moved = ("constraint", wanted[-1])
        if any(target == moved for _, target in named):
            warn_of_former(f"{method.name}: {name} is now called {'.'.join(moved)}; write that")
            return moved
    known = {".".join(full) for full, _ in named} if "." in name else {t[1] for _, t in named}
    raise UnknownNameError(unknown(f"parameter of {method.name}", name, known))


def _full_names(method: Method) -> Iterator[tuple[list[str], tuple[str, str]]]:
    """The dotted names of every parameter, with its part's kind and without, and what they mean."""
    for place, part in method.parts():
        at, kind = place.split("."), kind_of(part)
        for field in dataclasses.fields(part):
            target = (place, field.name)
            yield [*at, field.name], target
            if re.sub(r"_\d+$", "", at[-1]) != kind:  # else the place ends in the kind already
                yield [*at, kind, field.name], target


def _leaves_out(short: Sequence[str], full: Sequence[str]) -> bool:
    """Whether `short` is `full` with names before the last one left out."""
    rest = iter(full[:-1])
    return short[-1] == full[-1] and all(name in rest for name in short[:-1])
