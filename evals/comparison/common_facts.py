"""The manifests of several runs, what all of them say written once."""

from collections.abc import Mapping
from typing import Any


def split(
    manifests: Mapping[str, Mapping[str, object]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Take apart what is equal in all manifests and what differs.

    A comparison shows the manifest of each of its runs. Runs that may be compared have most of it
    in common: the benchmarks, the model, the versions. Methods of one folder have all but a few
    lines of it.

    Args:
        manifests: Run -> its manifest.

    Returns:
        What all say, and run -> what else it says. The two laid over each other, table in table,
        are the run's manifest again.
    """
    tables = list(manifests.values())
    first = tables[0]
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in manifests}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = {name: table[key] for name, table in manifests.items() if key in table}
        everywhere = len(values) == len(tables)
        if everywhere and all(value == first[key] for value in values.values()):
            common[key] = first[key]
            continue
        inner = {name: value for name, value in values.items() if isinstance(value, Mapping)}
        if everywhere and len(inner) == len(tables):
            alike, rest = split(inner)
            if alike:
                common[key] = alike
            for name, differs in rest.items():
                # an empty table stays one, unless the common part already says that it is there
                if differs or not alike:
                    own[name][key] = differs
            continue
        for name, value in values.items():
            own[name][key] = value
    return common, own
