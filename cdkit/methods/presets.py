"""Methods from presets and files: `cdkit.load("cmac", alpha=1.0)`."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from cdkit.errors import CdkitError
from cdkit.methods.method import REGISTRIES, Branch, Method, kind_of
from cdkit.registry import Registry, UnknownNameError, unknown

PRESET_GROUP = "cdkit.presets"
"""Entry points of other packages: each names a package whose folder holds preset files."""


def load(name_or_path: str | Path, **overrides: Any) -> Method:
    """A method from a preset's name or a TOML file, with parameters overridden by name.

    `cdkit.load("cmac", alpha=1.0, gamma=3.0, scope="row")`. Where two parts of a method have a
    parameter of that name, a dotted name tells which: `**{"noise.diffusion_noise.step": 999}`, or
    any end of it that is unique.
    """
    if not isinstance(name_or_path, str | Path):
        raise CdkitError(f"a method is a preset's name or a path, got {name_or_path!r}")
    method = parse_method(_read(name_or_path), source=str(name_or_path))
    return override(method, overrides) if overrides else method


def presets() -> dict[str, str]:
    """Each preset's name and its one-line summary."""
    return {
        name: str(_toml(file.read_text("utf-8"), name).get("summary", ""))
        for name, file in sorted(_preset_files().items())
    }


def parse_method(data: Mapping[str, Any], *, source: str = "the method") -> Method:
    """A method from plain data, as `Method.to_dict` writes it; every key is checked."""
    _check_keys(data, [field.name for field in dataclasses.fields(Method)], source)
    if "combiner" not in data:
        raise CdkitError(f"{source} has no [combiner]; give it one, such as kind = 'contrast'")
    branches = []
    for index, table in enumerate(_tables(data, "branches", source)):
        where = f"{source}, branch {index + 1}"
        _check_keys(table, ("name", "distortions"), where)
        branches.append(
            Branch(
                str(table.get("name", "distorted" if index == 0 else f"distorted_{index + 1}")),
                tuple(
                    parse_part("distortions", part, where)
                    for part in _tables(table, "distortions", where)
                ),
            )
        )
    return Method(
        name=str(data.get("name", Path(source).stem)),
        summary=str(data.get("summary", "")),
        source=str(data.get("source", "")),
        combiner=parse_part("combiner", data["combiner"], source),
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
        branches=tuple(branches),
    )


def parse_part(table: str, data: Any, where: str) -> Any:
    """One part from `{kind = ..., parameter = ...}`."""
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
        raise CdkitError(f"{where}: {table} must be a table with a kind, got {data!r}")
    registry: Registry[Any] = REGISTRIES[table]
    kind = data["kind"]
    if kind not in registry:
        raise UnknownNameError(f"{where}: {unknown(registry.what, kind, registry)}")
    cls = registry[kind]
    return build(cls, {k: v for k, v in data.items() if k != "kind"}, f"{where}, {kind}")


def build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a parameter dataclass from plain data, names and types checked."""
    names = [field.name for field in dataclasses.fields(cls)]
    _check_keys(values, names, where)
    hints = get_type_hints(cls)
    try:
        return cls(**{name: _convert(value, hints[name], name) for name, value in values.items()})
    except CdkitError as error:
        raise CdkitError(f"{where}: {error}") from None
    except TypeError as error:
        raise CdkitError(f"{where}: {error}; it needs {', '.join(names)}") from None


def override(method: Method, overrides: Mapping[str, Any]) -> Method:
    """The method with parameters replaced; every name must fit exactly one part."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        place, parameter = _find(method, name)
        changes.setdefault(place, {})[parameter] = value

    def changed(place: str, part: Any) -> Any:
        if place not in changes:
            return part
        old = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        return build(type(part), old | changes[place], f"{method.name}, {place}")

    parts = iter([changed(place, part) for place, part in method.parts()])
    return dataclasses.replace(
        method,
        combiner=next(parts),
        calibrator=next(parts) if method.calibrator is not None else None,
        readout=next(parts) if method.readout is not None else None,
        loop=next(parts) if method.loop is not None else None,
        schedules=tuple(next(parts) for _ in method.schedules),
        interventions=tuple(next(parts) for _ in method.interventions),
        branches=tuple(
            Branch(branch.name, tuple(next(parts) for _ in branch.distortions))
            for branch in method.branches
        ),
    )


def _find(method: Method, name: str) -> tuple[str, str]:
    """(place of the part, parameter) that `name` is a unique dotted end of."""
    named: list[tuple[str, tuple[str, str]]] = []
    for place, part in method.parts():
        owner = place.partition(".")[0]
        for field in dataclasses.fields(part):
            target = (place, field.name)
            named.append((f"{place}.{field.name}", target))
            if "." not in place:  # combiner, calibrator, readout, loop: their kind names them too
                named.append((f"{place}.{kind_of(part)}.{field.name}", target))
            elif name == f"{owner}.{field.name}":  # a branch and a parameter of one part of it
                named.append((name, target))
    found = {
        target: full
        for full, target in reversed(named)
        if full == name or full.endswith(f".{name}")
    }
    if len(found) == 1:
        return next(iter(found))
    if found:
        places = ", ".join(sorted(".".join(target) for target in found))
        raise CdkitError(f"{method.name} has {name!r} more than once; say which: {places}")
    known = {full for full, _ in named} if "." in name else {target[1] for _, target in named}
    raise UnknownNameError(unknown(f"parameter of {method.name}", name, known))


def _read(name_or_path: str | Path) -> dict[str, Any]:
    name = str(name_or_path)
    files = _preset_files()
    if name in files:
        return {"name": name} | _toml(files[name].read_text("utf-8"), name)
    path = Path(name_or_path)
    if path.suffix != ".toml" and path.parent == Path("."):
        raise UnknownNameError(unknown("method", name, files))
    try:
        return _toml(path.read_text("utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise CdkitError(f"cannot read the method file {name}: {error}") from None


def _preset_files() -> dict[str, Traversable]:
    folders = [resources.files("cdkit.strategies") / "presets"]
    folders += [resources.files(entry.load()) for entry in entry_points(group=PRESET_GROUP)]
    files: dict[str, Traversable] = {}
    for folder in folders:
        for file in folder.iterdir():
            name = file.name.removesuffix(".toml")
            if name == file.name:
                continue
            if name in files:
                raise ValueError(f"the preset {name!r} is there twice: {files[name]} and {file}")
            files[name] = file
    return files


def _toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CdkitError(f"{source} is not valid TOML: {error}") from None


def _tables(data: Mapping[str, Any], key: str, where: str) -> Sequence[Mapping[str, Any]]:
    tables = data.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):
        raise CdkitError(f"{where}: {key} must be a list of tables, got {tables!r}")
    return tables


def _check_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise UnknownNameError(unknown(f"key of {where}", key, known))


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Plain data to the type that a field declares.

    A text is a path where a path is wanted and an int is a float too; nothing else bends.
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
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, list | tuple):
            raise CdkitError(f"{name} must be a list, got {value!r}")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise CdkitError(f"{name} must have {len(kinds)} items, got {value!r}")
        return tuple(_convert(v, kind, name) for v, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    )
    if wrong:
        raise CdkitError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value
