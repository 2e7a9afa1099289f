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
    BenchSpec,
    CostSpec,
    GallerySpec,
    Grid,
    MethodSpec,
    Position,
    Sweep,
    WorldSpec,
)
from cdkit.evals.ablation.grid_checks import (
    as_number,
    as_table,
    as_tuple,
    check_names,
    check_text,
    check_twice,
)
from cdkit.evals.ablation.published import Published
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
    table = read_table(grid, quick=quick)
    try:
        return parse(table)
    except CdkitError as error:
        raise CdkitError(f"{find(grid)}: {error}") from None


def read_table(grid: str | Path, *, quick: bool = False) -> dict[str, Any]:
    """What a grid's file holds; `quick` lays its [quick] keys over it."""
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
    except CdkitError as error:
        raise CdkitError(f"{path}: {error}") from None
    return _laid_over(table, short) if quick else table


SHORT: Mapping[str, str] = {"model": "models", "mode": "decode", "beams": "num_beams"}
"""Keys that may stand for others, as the options of the command line are called."""
LISTS = ("models", "decode", "seeds", "only")
"""Keys that hold lists; one text may stand for a list of one."""


def parse(table: Table) -> Grid:
    """A grid from what a TOML file holds. `only` names the benchmarks and parts to keep."""
    given = named_whole(table)
    check_names("the grid", given, [f.name for f in fields(Grid)] + ["quick"], "key")
    for key in LISTS:
        if key in given:
            one = isinstance(given[key], str)
            given[key] = (given[key],) if one else as_tuple(key, given[key])
    for key in ("temperature", "top_p"):
        if isinstance(given.get(key), int) and not isinstance(given[key], bool):
            given[key] = float(given[key])
    for key, kind in KINDS.items():
        if key in given:
            given[key] = _section(f"[{key}]", kind, given[key])
    if "published" in given:
        tables = as_tuple("[[published]]", given["published"])
        given["published"] = tuple(_published(table) for table in tables)
    for key in ("left_out", "protocol_changes"):
        if key in given:
            given[key] = as_table(f"[{key}]", given[key])
    if isinstance(given.get("bench"), list | tuple | str):
        names = (given["bench"],) if isinstance(given["bench"], str) else given["bench"]
        check_twice("bench", names)
        given["bench"] = {str(name): {} for name in names}
    for key, reader in READERS.items():
        items = as_table(f"[{key}]", given.get(key, {}))
        given[key] = {name: reader(name, value) for name, value in items.items()}
    _keep_only(given)
    return Grid(**given)


def named_whole(table: Table) -> dict[str, Any]:
    """The table with each key under its own name, and `method` with `set` as [methods]."""
    given = dict(table)
    for short, whole in SHORT.items():
        if short in given and whole in given:
            raise CdkitError(f"{short} and {whole} are one key: give one of them")
        if short in given:
            given[whole] = given.pop(short)
    if "method" in given:
        if "methods" in given:
            raise CdkitError("method and [methods] are both given: give one of them")
        names = given.pop("method")
        names = (names,) if isinstance(names, str) else as_tuple("method", names)
        check_twice("method", names)
        given["methods"] = {str(name): {} for name in names}
    if changed := given.pop("set", None):
        given["methods"] = _set(dict(given.get("methods", {})), as_table("set", changed))
    return given


def _set(methods: dict[str, Any], parameters: Table) -> dict[str, Any]:
    """The one method with its parameters, under a name that says them."""
    if len(methods) != 1:
        names = ", ".join(methods) or "none"
        raise CdkitError(
            f"--set belongs to one method, and the run has {names}: write several with their "
            "parameters into a grid (docs/ablate.md)"
        )
    ((name, table),) = methods.items()
    words = ", ".join(f"{key} {value}" for key, value in parameters.items())
    return {f"{name}, {words}": {"preset": name, **table, **parameters}}


def _keep_only(given: dict[str, Any]) -> None:
    """Drop the benchmarks that `only` does not name; a data folder's parts are found later."""
    only = given.get("only", ())
    if not only:
        return
    mine = [name for name in only if name in given["benchmarks"]]
    given["only"] = tuple(name for name in only if name not in mine)
    if not given["bench"]:
        check_names("only", given["only"], given["benchmarks"], "benchmark of the grid")
    given["benchmarks"] = {name: given["benchmarks"][name] for name in mine}
    if mine and not given["only"]:
        given["bench"] = {}


def dumps(grid: Grid) -> str:
    """TOML that `read_grid` turns into an equal grid."""
    return "\n".join(_lines((), as_plain(grid))) + "\n"


def as_plain(grid: Grid) -> dict[str, Any]:
    """The table that `parse` turns into an equal grid."""
    values = {f.name: getattr(grid, f.name) for f in fields(Grid)}
    return {name: _as_toml(value) for name, value in values.items() if value is not None}


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


def _bench(name: str, table: object) -> BenchSpec:
    where = f"[bench.{name}]"
    given = dict(as_table(where, table))
    lists = {key: as_tuple(f"{key} of {where}", given.pop(key, ())) for key in LISTED}
    return BenchSpec(options=given, **lists)


def _published(table: object) -> Published:
    where = "[[published]]"
    given = dict(as_table(where, table))
    check_names(where, given, (f.name for f in fields(Published)), "key")
    for key in (f.name for f in fields(Published)):
        if key not in given:
            raise CdkitError(f"{where} needs the key {key!r}")
    where = f"{where} of {given['of']}"
    values = {
        name: {
            metric: as_number(f"{metric} of {name} in {where}", number)
            for metric, number in as_table(f"values.{name} of {where}", each).items()
        }
        for name, each in as_table(f"values of {where}", given["values"]).items()
    }
    return Published(
        given["of"],
        given["source"],
        as_tuple(f"parts of {where}", given["parts"]),
        as_tuple(f"models of {where}", given["models"]),
        values,
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


LISTED = ("decode", "show", "only")
"""Keys of a [bench.NAME] that are lists of its own; the others are fields of the benchmark."""
READERS: Mapping[str, Callable[[str, object], object]] = {
    "benchmarks": _benchmark,
    "bench": _bench,
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
        if field.type is bool and not isinstance(given.get(field.name, field.default), bool):
            raise CdkitError(
                f"{field.name} of {where} must be true or false, got {given[field.name]!r}"
            )
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
        case BenchSpec(options, decode, show, only):
            lists = {"decode": decode, "show": show, "only": only}
            return {**options, **{k: v for k, v in lists.items() if v}}
        case Sweep(values, benchmarks):
            return {**values, "benchmarks": benchmarks}
        case tuple() if section and isinstance(section[0], Published):
            return tuple(map(_as_toml, section))
        case WorldSpec() | Position() | GallerySpec() | CostSpec() | Published():
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
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers and booleans are TOML's, but for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
