"""Names in a list with commas, some of which may have commas of their own."""

from collections.abc import Collection
from pathlib import Path

from cdkit.registry import in_any_case


def listed_names(given: str, known: Collection[str] = ()) -> list[str]:
    """Split a list with commas between its names.

    A known name, or a .toml file that is there, may have commas in it; the longest one is meant.

    Args:
        given: The list, such as "plain,vcd,cmac".
        known: The names that there are.

    Returns:
        The names in their order: a known one as it is known, whatever the case it is given in; any
        other as it is given. One is empty where nothing stands between two commas.
    """
    words = given.split(",")
    found = []
    while words:
        for length in range(len(words), 0, -1):
            name = ",".join(words[:length]).strip()
            meant = in_any_case(name, known)
            if meant is None and length > 1 and not _is_toml(name):
                continue
            found.append(meant or name)
            words = words[length:]
            break
    return found


def _is_toml(name: str) -> bool:
    return name.endswith(".toml") and Path(name).is_file()
