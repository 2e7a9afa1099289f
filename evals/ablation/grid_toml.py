"""Grids from TOML files and back."""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError, check_file
from cdkit.evals.ablation.grid import (
    BenchmarkSpec,
    CostSpec,
    GallerySpec,
    Grid,
    MethodSpec,
    Position,
    Sweep,
    WorldSpec,
)
from cdkit.evals.ablation.grid_checks import as_table, as_tuple, check_names, check_text
from cdkit.registry import UnknownNameError, unknown

CONFIGS = Path(__file__).parent / "configs"
DEFAULT = "default"

Table = Mapping[str, Any]  # what TOML holds; every key that we read is checked by name and type


def packaged() -> dict[str, Path]:
    """The grids that come with cdkit, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def find(grid: str | Path) -> Path:
    """A packaged grid's file by its name, or any other file by its path."""
    files, path = packaged(), Path(grid)
    if str(grid) in files:
        return files[str(grid)]
    if path.suffix != ".toml" and path.parent == Path(".") and not path.is_file():
        raise UnknownNameError(
            f"{unknown('packaged grid', str(grid), files)} A grid of your own is a path to a .toml "
            "file"
        )
    return path


def read_grid(grid: str | Path = DEFAULT, *, quick: bool = False) -> Grid:
    """A packaged grid by its name, or a file's; `quick` lays its [quick] keys over it."""
    path = find(grid)
    try:
        check_file(path)
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CdkitError(f"cannot read the grid {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CdkitError(f"{path} is not TOML: {error}") from None
    try:
        short = as_table("[quick]", table.pop("quick", {}))
        if quick and not short:
            raise CdkitError("no [quick] section, which --quick asks for")
        return parse(_laid_over(table, short) if quick else table)
    except CdkitError as error:
        raise CdkitError(f"{path}: {error}") from None


def parse(table: Table) -> Grid:
    """A grid from what a TOML file holds. `only` names the benchmarks to keep."""
    given = dict(table)
    only = as_tuple("only", given.pop("only", ()))
    check_names("the grid", given, [f.name for f in fields(Grid)] + ["only", "quick"], "key")
    for key in {"decode", "seeds"} & given.keys():
        given[key] = as_tuple(key, given[key])
    if isinstance(given.get("temperature"), int):
        given["temperature"] = float(given["temperature"])
    for key, kind in KINDS.items():
        if key in given:
            given[key] = _section(f"[{key}]", kind, given[key])
    if "left_out" in given:
        given["left_out"] = as_table("[left_out]", given["left_out"])
    for key, reader in READERS.items():
        items = as_table(f"[{key}]", given.get(key, {}))
        given[key] = {name: reader(name, value) for name, value in items.items()}
    check_names("only", only, given["benchmarks"], "benchmark of the grid")
    given["benchmarks"] = {n: b for n, b in given["benchmarks"].items() if not only or n in only}
    return Grid(**given)


def dumps(grid: Grid) -> str:
    """TOML that `read_grid` turns into an equal grid."""
    table = {f.name: _as_toml(getattr(grid, f.name)) for f in fields(Grid)}
    return "\n".join(_lines((), table)) + "\n"


def _method(name: str, table: object) -> MethodSpec:
    given = dict(as_table(f"[methods.{name}]", table))
    return MethodSpec(given.pop("preset", name), given)


def _benchmark(name: str, table: object) -> BenchmarkSpec:
    where = f"[benchmarks.{name}]"
    given = dict(as_table(where, table))
    for key in ("type", "image_folder"):
        if key not in given:
            raise CdkitError(f"{where} needs the key {key!r}")
    return BenchmarkSpec(
        type=given.pop("type"),
        image_folder=given.pop("image_folder"),
        decode=as_tuple(f"decode of {where}", given.pop("decode", ())),
        show=as_tuple(f"show of {where}", given.pop("show", ())),
        options=given,
    )


def _sweep(name: str, table: object) -> Sweep:
    where = f"[sweeps.{name}]"
    given = dict(as_table(where, table))
    if "benchmarks" not in given:
        raise CdkitError(f"{where} needs the key 'benchmarks': a list of names")
    benchmarks = as_tuple(f"benchmarks of {where}", given.pop("benchmarks"))
    return Sweep({k: as_tuple(f"{k} of {where}", v) for k, v in given.items()}, benchmarks)


def _table(name: str, names: object) -> tuple[str, ...]:
    return as_tuple(f"{name} of [tables]", names)


READERS: Mapping[str, Callable[[str, object], object]] = {
    "benchmarks": _benchmark,
    "methods": _method,
    "tables": _table,
    "sweeps": _sweep,
}


Section = WorldSpec | Position | GallerySpec | CostSpec
KINDS: Mapping[str, type[Section]] = {
    "world": WorldSpec,
    "position": Position,
    "gallery": GallerySpec,
    "cost": CostSpec,
}


def _section(where: str, kind: type[Section], table: object) -> Section:
    given: dict[str, Any] = dict(as_table(where, table))
    check_names(where, given, (f.name for f in fields(kind)), "key")
    for key in (f.name for f in fields(kind) if f.default is MISSING):
        if key not in given:
            raise CdkitError(f"{where} needs the key {key!r}")
    for field in fields(kind):
        if field.type is str and given.get(field.name, field.default) != field.default:
            check_text(f"{field.name} of {where}", given[field.name])
    if "methods" in given:
        given["methods"] = as_tuple(f"methods of {where}", given["methods"])
    return kind(**given)


def _laid_over(table: Table, short: Table) -> dict[str, Any]:
    """`short` replaces keys; tables that both have are merged key by key, an empty one replaces."""
    merged = dict(table)
    for key, value in short.items():
        if isinstance(value, dict) and value and isinstance(merged.get(key), dict):
            merged[key] = _laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _as_toml(section: object) -> object:
    """Sections of a grid as the plain tables that the readers above take."""
    match section:
        case MethodSpec(preset, overrides):
            return {"preset": preset, **overrides}
        case BenchmarkSpec(kind, folder, options, decode, show):
            lists = {"decode": decode, "show": show}
            return {"type": kind, "image_folder": folder, **options} | {
                k: v for k, v in lists.items() if v
            }
        case Sweep(values, benchmarks):
            return {**values, "benchmarks": benchmarks}
        case WorldSpec() | Position() | GallerySpec() | CostSpec():
            return {f.name: getattr(section, f.name) for f in fields(section)}
        case Mapping():
            return {key: _as_toml(value) for key, value in section.items()}
    return section


def _lines(path: tuple[str, ...], table: Table) -> Iterator[str]:
    leaves = {k: v for k, v in table.items() if v is not None and not isinstance(v, Mapping)}
    if path and (leaves or not table):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in leaves.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines((*path, key), value)


def _key(key: str) -> str:
    return (
        key if key.replace("_", "a").replace("-", "a").isalnum() and key.isascii() else _value(key)
    )


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers and booleans are TOML's, but for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
