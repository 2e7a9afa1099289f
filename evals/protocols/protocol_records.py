"""Records of protocols, as runs keep them: laid over for one model, and compared."""

from collections.abc import Iterator, Mapping
from typing import Any

from cdkit.evals.protocols.protocol_settings import EXCLUDED


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Name what differs in two records of protocols, field by field.

    Sources, summaries and names do not count: two protocols with equal settings are the same.

    Args:
        a: `Protocol.record()` of one, maybe read back from JSON; {} where a run had none.
        b: That of the other.

    Returns:
        A sentence for each difference; empty where answers and numbers are made the same way.
    """
    return [
        f"{name} is {_shown(before)} in one and {_shown(now)} in the other"
        for name, before, now in _differing("", _counted(a), _counted(b))
    ]


def applied(record: Mapping[str, Any], *, model: str, on: str) -> dict[str, Any]:
    """A record of a protocol as it is for one model and one benchmark.

    Args:
        record: `Protocol.record()`, maybe read back from JSON; {} where a run had none.
        model: The type of the model (`config.model_type`).
        on: The name of the benchmark.

    Returns:
        The record with the sections of both laid over it, and without sections.
    """
    found = {key: value for key, value in record.items() if key not in ("models", "benchmarks")}
    for of, name in (("models", model), ("benchmarks", on)):
        section = dict(record.get(of, {}).get(name, {}))
        lost = {key for setting in section for key in EXCLUDED.get(setting, ())}
        if section.get("mode") == found.get("mode"):
            lost -= {*EXCLUDED["mode"]}
        methods = dict(found.get("methods", {}))
        for preset, parameters in section.pop("methods", {}).items():
            methods[preset] = {**methods.get(preset, {}), **parameters}
        found = {key: value for key, value in found.items() if key not in lost} | section
        found |= {"methods": methods} if methods else {}
    return found


ABOUT = ("name", "summary", "paper", "source", "unmatched")
"""Fields that change no number."""


def _counted(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _by_content(key, value) for key, value in record.items() if key not in ABOUT}


def _by_content(key: str, value: Any) -> Any:
    """A list of images counts by its content, whatever its name."""
    if not isinstance(value, Mapping):
        return value
    if key == "image_list":
        return value.get("sha256") or value.get("file")
    return {name: _by_content(name, item) for name, item in value.items()}


def _differing(
    place: str, a: Mapping[str, Any], b: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*a, *b}):
        before, now = a.get(key), b.get(key)
        name = f"{place}{key}"
        tables = [value if value is not None else {} for value in (before, now)]
        if before == now:
            continue
        if all(isinstance(table, Mapping) for table in tables):
            inner = list(_differing(f"{name}.", *tables))
            yield from inner or [(name, before, now)]
        else:
            yield name, before, now


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return "a table" if isinstance(value, Mapping) else repr(value)
