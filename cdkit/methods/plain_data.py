"""A method, or one part of it, from plain data: tables, as a TOML file holds them."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from cdkit.errors import CdkitError, CdkitWarning
from cdkit.interfaces.part import Part
from cdkit.methods.branch import Branch
from cdkit.methods.method import NO_CONSTRAINT, Method
from cdkit.methods.part_kinds import REGISTRIES, kind_of
from cdkit.registry import Registry, UnknownNameError, unknown


def parse_method(data: Mapping[str, Any], *, source: str = "the method") -> Method:
    """Make a method from plain data, as `Method.to_dict` writes it.

    Args:
        data: The tables of the configuration.
        source: What messages call it: a preset's name or a path.

    Returns:
        The method.

    Raises:
        CdkitError: If the data is no method; UnknownNameError if a key or a kind is unknown.
    """
    check_keys(data, [field.name for field in dataclasses.fields(Method)], source)
    if "combiner" not in data:
        raise CdkitError(f"{source} has no [combiner]; give it one, such as kind = 'contrast'")
    for key in ("name", "summary", "source"):
        if not isinstance(data.get(key, ""), str):
            raise CdkitError(f"{source}: {key} must be a text, got {data[key]!r}")
    branches = _branches(data, "branches", "distorted", source)
    combiner, constraint = _combiner_and_constraint(data, source)
    return Method(
        name=str(data.get("name", Path(source).stem)),
        summary=str(data.get("summary", "")),
        source=str(data.get("source", "")),
        combiner=combiner,
        constraint=constraint,
        calibrator=parse_part("calibrator", data["calibrator"], source)
        if "calibrator" in data
        else None,
        readout=parse_part("readout", data["readout"], source) if "readout" in data else None,
        loop=parse_part("loop", data["loop"], source) if "loop" in data else None,
        schedules=tuple(
            parse_part("schedules", part, source) for part in _tables(data, "schedules", source)
        ),
        interventions=tuple(
            parse_part("interventions", part, source)
            for part in _tables(data, "interventions", source)
        ),
        state_interventions=tuple(
            parse_part("state_interventions", part, source)
            for part in _tables(data, "state_interventions", source)
        ),
        branches=branches,
        prompt_branches=_branches(data, "prompt_branches", "prompt", source),
    )


def _branches(data: Mapping[str, Any], key: str, default: str, source: str) -> tuple[Branch, ...]:
    """The branches in a list of tables; the first one without a name is called `default`."""
    branches = []
    for index, table in enumerate(_tables(data, key, source)):
        where = f"{source}, {'' if key == 'branches' else 'prompt '}branch {index + 1}"
        check_keys(table, ("name", "distortions"), where)
        name = default if index == 0 else f"{default}_{index + 1}"
        distortions = _tables(table, "distortions", where)
        parts = tuple(parse_part("distortions", part, where) for part in distortions)
        branches.append(Branch(str(table.get("name", name)), parts))
    return tuple(branches)


def _combiner_and_constraint(data: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Both parts; keys of the constraint are also accepted in the combiner's table.

    They stood there before the constraint became a separate part.
    """
    combiner, given = data["combiner"], data.get("constraint")
    cls, combiner = _class_of("combiner", combiner, where)
    fields = {field.name for field in dataclasses.fields(cls)} | {"kind"}
    strange = {key: value for key, value in combiner.items() if key not in fields}
    if strange and (kind := _constraint_with(strange, given)):
        warn_of_former(
            f"{where}: {', '.join(strange)} of [combiner] belongs to [constraint] now: write "
            f"[constraint] with {_as_toml({'kind': kind, **strange})}"
        )
        combiner = {key: value for key, value in combiner.items() if key in fields}
        given = {"kind": kind, **strange, **(given or {})}
    parsed = parse_part("combiner", combiner, where)
    if given is None and parsed.constrained_before:
        warn_of_former(
            f"{where} has no [constraint], so every token stays a candidate; kind = "
            f"{combiner['kind']!r} once had one with beta = 0.1 by default. Write [constraint] to "
            f"have it again, or constraint = {NO_CONSTRAINT!r}"
        )
    none = given is None or given == NO_CONSTRAINT
    constraint = None if none else parse_part("constraint", given, where)
    return parsed, constraint


def _constraint_with(keys: Mapping[str, Any], given: Any) -> str | None:
    """The kind of the given constraint, or of the first one that has all these parameters.

    None where there is none, and where a parameter would be given twice.
    """
    registry = REGISTRIES["constraint"]
    if given is not None and (not isinstance(given, Mapping) or keys.keys() & given.keys()):
        return None
    for kind in [*registry] if given is None else [str(given.get("kind"))]:
        if kind in registry:
            names = {field.name for field in dataclasses.fields(registry[kind])}
            if keys.keys() <= names:
                return kind
    return None


def parse_part(table: str, data: Any, where: str) -> Any:
    """Make a part from its table `{kind = ..., parameter = ...}`.

    Args:
        table: The name of the table, a key of `REGISTRIES`.
        data: The table.
        where: What messages call the place where it stands.

    Returns:
        The part.

    Raises:
        CdkitError: If the table or a value is wrong; UnknownNameError if its kind or a parameter
            is unknown.
    """
    cls, data = _class_of(table, data, where)
    values = {key: value for key, value in data.items() if key != "kind"}
    return build(cls, values, f"{where}, {data['kind']}")


def _class_of(table: str, data: Any, where: str) -> tuple[type[Any], Mapping[str, Any]]:
    """The registered class that a table's `kind` names, and the table with its present name."""
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
        raise CdkitError(f"{where}: {table} must be a table with a kind, got {data!r}")
    registry: Registry[Any] = REGISTRIES[table]
    kind = data["kind"]
    if (replacement := registry.replacement(kind)) is not None:
        now, parameters = replacement
        data = {**parameters, **data, "kind": now}
        warn_of_former(
            f"{where}: kind = {kind!r} is gone; write kind = {now!r} with {_as_toml(parameters)}, "
            "which does the same"
        )
        kind = now
    if kind not in registry:
        missing = unknown(registry.what, kind, registry, registry.broken)
        raise UnknownNameError(f"{where}: {missing}")
    return registry[kind], data


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """Make an instance of a part's class from plain data.

    Args:
        cls: The class, a dataclass.
        values: Its parameters, by name.
        where: What messages call the place where they stand.

    Returns:
        The instance.

    Raises:
        CdkitError: If a value is wrong; UnknownNameError if a parameter is unknown.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    hints = get_type_hints(cls)
    values = _moved_inside(cls, values, where)
    check_keys(values, names, where)
    try:
        return cls(**{name: _convert(value, hints[name], name) for name, value in values.items()})
    except CdkitError as error:
        raise CdkitError(f"{where}: {error}") from None
    except TypeError as error:
        raise CdkitError(f"{where}: {error}; it needs {', '.join(names)}") from None


def _moved_inside(cls: type, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Move keys of an inner part, such as a selector, into its table, and warn.

    They stood in the outer table before the inner part became a part.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    strange = [key for key in values if key not in names]
    if not strange:
        return values
    hints, moved = get_type_hints(cls), dict(values)
    for field in dataclasses.fields(cls):
        table = _table_of(hints[field.name])
        if table is None:
            continue
        inner = _as_table(values.get(field.name, _default(field)))
        if not isinstance(inner, Mapping):
            continue
        known = {f.name for f in dataclasses.fields(_class_of(table, inner, where)[0])}
        taken = {key: moved.pop(key) for key in strange if key in known and key not in inner}
        if taken:
            moved[field.name] = {**inner, **taken}
            warn_of_former(
                f"{where}: {', '.join(taken)} belongs to the {table} now: write "
                f"{_as_toml({field.name: moved[field.name]})}"
            )
    return moved


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _table_of(hint: Any) -> str | None:
    """The table whose registry holds the parts that a field of this type takes; None for data."""
    if isinstance(hint, UnionType):
        members = [kind for kind in get_args(hint) if kind is not NoneType]
        hint = members[0] if len(members) == 1 else None
    if not isinstance(hint, type) or not issubclass(hint, Part):
        return None
    return next((t for t, registry in REGISTRIES.items() if issubclass(hint, registry.base)), None)


def _as_table(value: Any) -> Any:
    """A part's table; a kind alone is a table with defaults."""
    if isinstance(value, Part):
        return {"kind": kind_of(value)}
    return {"kind": value} if isinstance(value, str) else value


def _as_toml(values: Mapping[str, Any]) -> str:
    """`key = value` pairs, a table inside them in braces."""
    shown = (
        f"{key} = {{ {_as_toml(value)} }}" if isinstance(value, Mapping) else f"{key} = {value!r}"
        for key, value in values.items()
    )
    return ", ".join(shown)


def warn_of_former(message: str) -> None:
    """Warn that a configuration says something in a former way."""
    warnings.warn(message, CdkitWarning, stacklevel=2)


def _tables(data: Mapping[str, Any], key: str, where: str) -> Sequence[Mapping[str, Any]]:
    tables = data.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):
        raise CdkitError(f"{where}: {key} must be a list of tables, got {tables!r}")
    return tables


def check_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise an UnknownNameError for a key that is not known."""
    for key in data:
        if key not in known:
            raise UnknownNameError(unknown(f"key of {where}", key, known))


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Convert plain data to the type that a field declares.

    A text becomes a path and an int a float where the field declares one; a text or a bool is never
    taken for a number.
    """
    if isinstance(hint, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        members = [kind for kind in get_args(hint) if kind is not NoneType]
        listed = isinstance(value, list | tuple)  # of "one or several" a list means several
        hint = next((kind for kind in members if (get_origin(kind) is tuple) == listed), members[0])
    if isinstance(value, np.generic):
        value = value.item()  # a sweep by numpy hands these over; a method is plain data
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (table := _table_of(hint)) is not None and not isinstance(value, Part):
        return parse_part(table, _as_table(value), name)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, list | tuple):
            raise CdkitError(f"{name} must be a list, got {value!r}")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise CdkitError(f"{name} must have {len(kinds)} items, got {value!r}")
        item = f"each item of {name}"
        return tuple(
            _convert(v, kind, item if get_origin(kind) is tuple else name)
            for v, kind in zip(value, kinds, strict=True)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    )
    if wrong:
        raise CdkitError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value
