"""Methods from presets and files: `cdkit.load("cmac", alpha=1.0)`."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import EntryPoint
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError, check_file
from cdkit.methods.composition import compose
from cdkit.methods.method import Method
from cdkit.methods.overrides import override
from cdkit.methods.plain_data import check_keys, parse_method
from cdkit.registry import (
    BrokenPlugin,
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
    check_keys(data, ("name", "summary", "source", "compose"), f"{source}, which has compose")
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
