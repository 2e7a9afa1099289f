"""Options of the command line, laid over what a file says of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_toml import SHORT, Table, find, parse, read_table
from cdkit.evals.protocols.protocol import SETTINGS
from cdkit.evals.runner.modes import BEAM, SAMPLE

BEAMS = 5
SINGLE_RUN: Table = {
    "decode": ["greedy"],
    "seeds": [0],
    "num_beams": BEAMS,
    "batch": 8,
    "first_token": False,
}
"""What `cdkit eval` assumes where neither a file nor an option says otherwise."""
OF_MODE: Mapping[str, tuple[str, ...]] = {
    SAMPLE: ("seeds", "temperature", "top_k", "top_p"),
    BEAM: ("beams",),
}
"""Decode mode -> the options that belong to it."""
EITHER = ("mode", "temperature", "top_k", "top_p", "beams", "max_new_tokens")
"""Settings of a protocol that a grid has, too: they change the grid where there is no protocol."""
FROM_FILES = ("world", "benchmarks", "position", "sweeps")
"""Keys of a grid that name files, and what refers to those."""


def with_options(table: Table, options: Mapping[str, Any], where: str) -> Grid:
    """A run from a file's keys and the options that were given beside it.

    Args:
        table: The file's keys; empty where there is none.
        options: Option -> value, without those that were not given.
        where: What errors call it.

    Returns:
        The run.

    Raises:
        CdkitError: A value is not allowed, or does not belong to the decode mode.
    """
    merged = {key: value for key, value in table.items() if key not in options}
    for short, whole in SHORT.items():
        if short in options:
            merged.pop(whole, None)
    if "method" in options or "set" in options:
        before = merged.pop("methods", None)
        if "method" not in options and before is not None:
            merged["methods"] = _presets(before)
    if "bench" in options:
        merged = {key: value for key, value in merged.items() if key not in FROM_FILES}
    if "data" in options and not ("bench" in merged or "bench" in options):
        raise CdkitError(
            f"{where} names its files itself ([benchmarks]), so no --data can be given: leave it "
            "out, or take a grid with [bench]"
        )
    merged |= _of_protocol(merged, options)
    modes = merged.get("mode", merged.get("decode", ()))
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if "mode" in options and "mode" in merged:
        merged = _narrowed(merged, modes)
    for mode, names in OF_MODE.items():
        for name in names:
            if name in options and name in merged and mode not in modes:
                option = f"--{name.replace('_', '-')}"
                raise CdkitError(
                    f"{option} belongs to --mode {mode}, and the mode is {', '.join(modes)}: "
                    f"leave {option} out, or give --mode {mode}"
                )
    return parse(merged)


def _of_protocol(table: Table, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, those that a protocol decides as changes of it."""
    found = dict(options)
    changes = dict(table.get("protocol_changes", {}))
    under = "protocol" in options or "protocol" in table
    for option in options:
        if option in SETTINGS and (under or option not in EITHER):
            changes[option] = found.pop(option)
    given = changes.get("mode")
    if under and isinstance(given, list | tuple):
        modes = [str(mode) for mode in given]
        if len(modes) != 1:
            raise CdkitError(
                f"--mode {','.join(modes)}: a protocol decodes in one mode; give one, or leave "
                "--protocol out"
            )
        changes["mode"] = modes[0]
    return found | ({"protocol_changes": changes} if changes else {})


def grid_with_options(name: str | Path, options: Mapping[str, Any], *, quick: bool = False) -> Grid:
    """A packaged grid or a grid's file, with options laid over it.

    Args:
        name: The packaged grid's name, or the file's path.
        options: Option -> value, without those that were not given.
        quick: Whether to run its short form.

    Returns:
        The run.

    Raises:
        CdkitError: The file cannot be read, or a value is not allowed.
    """
    path, table = find(name), read_table(name, quick=quick)
    try:
        return with_options(table, options, str(name))
    except CdkitError as error:
        raise CdkitError(f"{path}: {error}") from None


def _presets(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Methods without the parameters that an option replaces."""
    return {str(table.get("preset", name)): {} for name, table in methods.items()}


def _narrowed(table: Table, modes: tuple[str, ...]) -> dict[str, Any]:
    """The table for fewer decode modes: benchmarks that ask in none of them go."""
    found = dict(table)
    for key in ("benchmarks", "bench"):
        specs = found.get(key)
        if not isinstance(specs, dict):
            continue
        kept = {}
        for name, spec in specs.items():
            given = spec.get("decode") if isinstance(spec, dict) else None
            asked = [mode for mode in given if mode in modes] if given else given
            if not given or asked:
                kept[name] = {**spec, "decode": asked} if given else spec
        found[key] = kept
    return found
