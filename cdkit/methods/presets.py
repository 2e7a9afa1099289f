"""Methods from presets and files: `cdkit.load("cmac", alpha=1.0)`."""

import dataclasses
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.metadata import EntryPoint
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from cdkit.errors import CdkitError, CdkitWarning, check_file
from cdkit.interfaces.part import Part
from cdkit.methods.composition import compose
from cdkit.methods.method import NO_CONSTRAINT, REGISTRIES, Branch, Method, kind_of
from cdkit.registry import (
    BrokenPlugin,
    Registry,
    UnknownNameError,
    broken_plugin,
    in_any_case,
    load_plugins,
    unknown,
)

PRESET_GROUP = "cdkit.presets"
"""The group of entry points in which other packages name a package with preset files."""


def load(name_or_path: str | Path | Mapping[str, Any], **overrides: Any) -> Method:
    """Load a method from a preset or a TOML file: `cdkit.load("cmac", alpha=1.0, gamma=3.0)`.

    Where two parts of a method have a parameter of the same name, a dotted name says which is
    meant: `**{"noise.diffusion_noise.step": 999}`, or a shorter form that is unique, such as
    `"noise.step"`. The value of a parameter that is itself a part is a kind or a table:
    `selector="random_cells"`, `selector={"kind": "top_share", "share": 0.2}`.

    Names with "+" between them are one method, as `cdkit.compose` makes it: `"cmac+vcd"`. A TOML
    file says the same by `compose = ["cmac", "vcd"]`; in the place of a name it may have a table
    with parameters: `{ method = "vcd", alpha = 0.5 }`.

    Args:
        name_or_path: The name of a preset, the path of a TOML file, or several with "+" between;
            or what such a file says, as `Method.to_dict` writes it.
        **overrides: New values of parameters, by name.

    Returns:
        The method.

    Raises:
        UnknownNameError: If no preset, kind or parameter has a name that is given.
        CdkitError: If the file cannot be read, a value is not allowed, or a name fits more than
            one parameter.
    """
    if isinstance(name_or_path, Mapping):
        source = str(name_or_path.get("name", "the method"))
        method = _of_tables(name_or_path, source)
        return override(method, overrides) if overrides else method
    if not isinstance(name_or_path, str | Path):
        raise CdkitError(f"a method is a preset's name or a path, got {name_or_path!r}")
    source = str(name_or_path)
    if "+" in source and source not in _preset_files()[0] and not Path(source).is_file():
        method = compose(*map(load, _names(source)))
        return override(method, overrides) if overrides else method
    try:
        method = _of_tables(_read(name_or_path), source)
    except CdkitError as error:
        if source in str(error):
            raise
        raise CdkitError(f"{source}: {error}") from None
    return override(method, overrides) if overrides else method


def method_files(name_or_path: str | Path) -> tuple[Path, ...]:
    """The files of a user's that a method is read from.

    Args:
        name_or_path: As `load` takes it.

    Returns:
        Their paths, each once; none for presets.

    Raises:
        CdkitError: If a file cannot be read.
    """
    source, path = str(name_or_path), Path(name_or_path)
    found, inner = list[Path](), list[Any]()
    if path.is_file() and source not in _preset_files()[0]:
        entries = _read(source).get("compose", [])
        inner = [e if isinstance(e, str) else e["method"] for e in entries]
        found = [path]
    elif "+" in source:
        inner = list(_names(source))
    found += [path for name in inner for path in method_files(name)]
    return tuple(dict.fromkeys(found))


def _names(source: str) -> list[str]:
    names = [name.strip() for name in source.split("+")]
    if not all(names):
        raise CdkitError(f"methods are put together as NAME+NAME, got {source!r}")
    return names


def _of_tables(data: Mapping[str, Any], source: str) -> Method:
    return _composed(data, source) if "compose" in data else parse_method(data, source=source)


def _composed(data: Mapping[str, Any], source: str) -> Method:
    """The method of a file that lists others."""
    _check_keys(data, ("name", "summary", "source", "compose"), f"{source}, which has compose")
    listed = data["compose"]
    if not isinstance(listed, list) or not listed:
        raise CdkitError(f"{source}: compose must be a list of methods, got {listed!r}")
    methods = []
    for entry in listed:
        given = {"method": entry} if isinstance(entry, str) else entry
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            raise CdkitError(
                f"{source}: compose has names, or tables such as "
                f"{{ method = 'vcd', alpha = 0.5 }}, got {entry!r}"
            )
        methods.append(load(given["method"], **{k: v for k, v in given.items() if k != "method"}))
    made = compose(*methods)
    words: dict[str, Any] = {
        key: str(data[key]) for key in ("name", "summary", "source") if key in data
    }
    return dataclasses.replace(made, **{"name": Path(source).stem, **words})


def presets() -> dict[str, str]:
    """List the presets, those of other packages included.

    Returns:
        The name of each preset -> its one-line summary; without those of `broken_presets`.
    """
    return _summaries()[0]


def broken_presets() -> tuple[str, ...]:
    """What is wrong with each plug-in or file of presets that cannot be read."""
    return tuple(str(each) for each in (*_preset_files()[1], *_summaries()[1]))


def _summaries() -> tuple[dict[str, str], list[CdkitError]]:
    found: dict[str, str] = {}
    broken: list[CdkitError] = []
    for name, file in sorted(_preset_files()[0].items()):
        try:
            found[name] = str(_preset(name, file).get("summary", ""))
        except CdkitError as error:
            broken.append(error)
    return found, broken


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
    _check_keys(data, [field.name for field in dataclasses.fields(Method)], source)
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
        _check_keys(table, ("name", "distortions"), where)
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
        _warn(
            f"{where}: {', '.join(strange)} of [combiner] belongs to [constraint] now: write "
            f"[constraint] with {_as_toml({'kind': kind, **strange})}"
        )
        combiner = {key: value for key, value in combiner.items() if key in fields}
        given = {"kind": kind, **strange, **(given or {})}
    parsed = parse_part("combiner", combiner, where)
    if given is None and parsed.constrained_before:
        _warn(
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
        _warn(
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
    _check_keys(values, names, where)
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
            _warn(
                f"{where}: {', '.join(taken)} belongs to the {table} now: write "
                f"{_as_toml({field.name: moved[field.name]})}"
            )
    return moved


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


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
            _warn(f"{method.name}: {name} is now called {'.'.join(moved)}; write that")
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


def _warn(message: str) -> None:
    warnings.warn(message, CdkitWarning, stacklevel=2)


def _read(name_or_path: str | Path) -> dict[str, Any]:
    name = str(name_or_path)
    files, broken = _preset_files()
    name = in_any_case(name, files) or name
    if name in files:
        return {"name": name} | _preset(name, files[name])
    path = Path(name_or_path)
    if path.suffix != ".toml" and path.parent == Path("."):
        raise UnknownNameError(unknown("method", name, files, broken))
    try:
        check_file(path)
        return _toml(path.read_text("utf-8-sig"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise CdkitError(f"cannot read the method file {name}: {error}") from None


def _preset(name: str, files: Sequence[Traversable]) -> dict[str, Any]:
    if len(files) > 1:
        raise CdkitError(
            f"the preset {name!r} is there twice: {' and '.join(map(str, files))}; rename or "
            "uninstall one"
        )
    try:
        return _toml(files[0].read_text("utf-8-sig"), f"the preset {files[0]}")
    except (OSError, UnicodeDecodeError) as error:
        raise CdkitError(f"cannot read the preset {files[0]}: {error}") from None


def _preset_files() -> tuple[dict[str, list[Traversable]], list[BrokenPlugin]]:
    """Each name's files, which should be one, and the plug-ins whose folder cannot be read."""
    files: dict[str, list[Traversable]] = {}
    packages, broken = load_plugins(PRESET_GROUP)
    own = resources.files("cdkit.strategies") / "presets"
    every: list[tuple[EntryPoint | None, Any]] = [(None, None), *packages]
    for entry, package in every:
        try:
            folder = own if entry is None else resources.files(package)
            listed = [file for file in folder.iterdir() if file.name.endswith(".toml")]
        except Exception as error:  # another package's loader may raise anything
            if entry is None:
                raise
            broken.append(broken_plugin(entry, error))
            continue
        for file in listed:
            files.setdefault(file.name.removesuffix(".toml"), []).append(file)
    return files, broken


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
