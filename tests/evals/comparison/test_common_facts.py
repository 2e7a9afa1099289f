"""Manifests of several runs, taken apart and laid over each other again."""

from collections.abc import Mapping
from typing import Any

from cdkit.evals.comparison.common_facts import split

MODEL = {"name": "m"}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"name": "a", "model": {**MODEL, "files": {"w": "1"}}, "pieces": [1], "x": {}},
    "cmac": {"name": "a", "model": {**MODEL, "files": {"w": "2"}}, "pieces": [1], "x": {"y": 1}},
    "vcd": {"name": "b", "model": {**MODEL, "files": {}}, "pieces": [1], "x": {"y": 1}, "z": 0},
}


def over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One laid over the other, table in table."""
    found = {**common, **own}
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(common.get(key), Mapping):
            found[key] = over(common[key], value)
    return found


def test_what_all_say_stands_once() -> None:
    common, own = split(RUNS)
    assert common == {"model": MODEL, "pieces": [1]}
    assert own["cmac"] == {"name": "a", "model": {"files": {"w": "2"}}, "x": {"y": 1}}
    assert {name: over(common, rest) for name, rest in own.items()} == RUNS


def test_equal_manifests_leave_nothing() -> None:
    common, own = split({"one": RUNS["vcd"], "two": RUNS["vcd"]})
    assert common == RUNS["vcd"] and own == {"one": {}, "two": {}}
