"""The files of AMBER's release that both of its parts read."""

from collections.abc import Mapping
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import Source, rows, text_of

ANNOTATIONS = "annotations.json"


def near(query: Path, name: str, given: Path | None, what: str) -> Path:
    """Find a file of the release.

    Args:
        query: The query file.
        name: The file's name in the release.
        given: Its path, if the user gave one.
        what: What errors call it.

    Returns:
        `given`, or the file beside the query file or in the folder above.

    Raises:
        CdkitError: It is in neither place.
    """
    places = [folder / name for folder in (query.parent, query.parent.parent)]
    found = given or next((place for place in places if place.is_file()), None)
    if found is None:
        raise CdkitError(
            f"{query} has no {name} beside it or in the folder above: name AMBER's file of {what}"
        )
    return found


def rows_by_id(source: Source) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Read rows that have an `id`.

    Args:
        source: JSON lines or one JSON list of objects.

    Returns:
        Id -> (place, row), in the file's order.

    Raises:
        CdkitError: A row has no id, or an id stands twice.
    """
    found: dict[str, tuple[str, Mapping[str, object]]] = {}
    for where, row in rows(source):
        name = text_of(row, "id", where=where)
        if name in found:
            raise CdkitError(f"{where} has the id {name} again: each id stands once")
        found[name] = where, row
    return found
