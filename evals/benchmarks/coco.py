"""COCO-2014-style annotations: which images there are, and which objects are in each."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import Source


@dataclass(frozen=True, eq=False)
class Instances:
    """An instances file: the id of each image file, the categories annotated in each image by its
    id, and the names of all categories in the file's order."""

    id_of: Mapping[str, str]
    categories: Mapping[str, frozenset[str]]
    names: tuple[str, ...]


def read_instances(source: Source) -> Instances:
    """The keys `images` (id, file_name), `categories` (id, name), `annotations` (image_id,
    category_id) of an instances file; all else is passed over."""
    value = source.json()
    named = {
        _id(row, "id", where): _text(row, "name", where)
        for where, row in _rows(source.path, value, "categories")
    }
    id_of: dict[str, str] = {}
    found: dict[str, set[str]] = {}
    for where, row in _rows(source.path, value, "images"):
        name, image = _text(row, "file_name", where), _id(row, "id", where)
        if name in id_of or image in found:
            raise CdkitError(f"{where} is there a second time (id {image}, {name}): keep one")
        id_of[name], found[image] = image, set()
    for where, row in _rows(source.path, value, "annotations"):
        image, category = _id(row, "image_id", where), _id(row, "category_id", where)
        if image not in found or category not in named:
            raise CdkitError(
                f"{where} is of image {image} and category {category}, and one of them does not "
                "stand in the file's images and categories: use the file as it was published"
            )
        found[image].add(named[category])
    categories = {image: frozenset(names) for image, names in found.items()}
    return Instances(id_of, categories, tuple(dict.fromkeys(named.values())))


def read_captions(source: Source) -> Mapping[str, tuple[str, ...]]:
    """The reference captions of each image: `annotations` (image_id, caption)."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for where, row in _rows(source.path, source.json(), "annotations"):
        found[_id(row, "image_id", where)].append(_text(row, "caption", where))
    return {image: tuple(captions) for image, captions in found.items()}


def _rows(path: Path, value: object, key: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    rows = value.get(key) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise CdkitError(f"{path} has no list {key!r}: give a COCO annotation file")
    for i, row in enumerate(rows):
        where = f"{path}: {key}[{i}]"
        if not isinstance(row, dict):
            raise CdkitError(f"{where} is no object: give a COCO annotation file")
        yield where, row


def _id(row: Mapping[str, object], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise CdkitError(f"{where} has {value!r} as {key!r}: an id is a number or a name")
    return str(value)


def _text(row: Mapping[str, object], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise CdkitError(f"{where} has {value!r} as {key!r}: it must be text")
    return value
