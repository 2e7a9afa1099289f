"""Parts by the name under which their class is registered, and as plain data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cdkit.interfaces.combiner import COMBINERS
from cdkit.interfaces.constraint import CONSTRAINTS
from cdkit.interfaces.decoding_loop import LOOPS
from cdkit.interfaces.distortion import DISTORTIONS
from cdkit.interfaces.intervention import INTERVENTIONS
from cdkit.interfaces.part import Part, inner_parts
from cdkit.interfaces.position_calibrator import CALIBRATORS
from cdkit.interfaces.readout import READOUTS
from cdkit.interfaces.schedule import SCHEDULES
from cdkit.interfaces.selector import SELECTORS
from cdkit.interfaces.state_intervention import STATE_INTERVENTIONS
from cdkit.registry import Registry

REGISTRIES: Mapping[str, Registry[Any]] = {
    "combiner": COMBINERS,
    "constraint": CONSTRAINTS,
    "calibrator": CALIBRATORS,
    "readout": READOUTS,
    "loop": LOOPS,
    "schedules": SCHEDULES,
    "interventions": INTERVENTIONS,
    "state_interventions": STATE_INTERVENTIONS,
    "distortions": DISTORTIONS,
    "selector": SELECTORS,
}
"""The name of a table in a method's configuration, or of a parameter that is a part -> the registry
in which its `kind` is searched."""


def kind_of(part: object) -> str:
    """Find the name of a part's class.

    Args:
        part: The part.

    Returns:
        The name under which the class is registered; the Python name of a class that is not.
    """
    for registry in REGISTRIES.values():
        if type(part) in registry.values():
            return registry.name_of(type(part))
    return type(part).__name__


def with_inner(place: str, part: Any) -> Iterator[tuple[str, Any]]:
    yield place, part
    for name, inner in inner_parts(part):
        yield from with_inner(f"{place}.{name}", inner)


def numbered(place: str, parts: Sequence[object]) -> Iterator[tuple[str, Any]]:
    """`place.kind` of each part; the second of a kind is `place.kind_2`."""
    seen: dict[str, int] = {}
    for part in parts:
        kind = kind_of(part)
        seen[kind] = seen.get(kind, 0) + 1
        yield f"{place}.{kind}" + (f"_{seen[kind]}" if seen[kind] > 1 else ""), part


def describe(part: object) -> dict[str, Any]:
    """Write a part as plain data.

    Args:
        part: The part, a frozen dataclass.

    Returns:
        Its `kind` and all of its parameters, by name.

    Raises:
        TypeError: If the part is no dataclass.
    """
    if not is_dataclass(part):
        raise TypeError(f"{type(part).__name__} must be a frozen dataclass to be described")
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {"kind": kind_of(part)} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return describe(value)
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
