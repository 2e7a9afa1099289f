"""Which objects are in which image, for CHAIR: from COCO's files, from a cache, or as given."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import digest, read_source
from cdkit.evals.benchmarks.coco import read_captions, read_instances
from cdkit.evals.benchmarks.object_words import SCORERS, Synonyms
from cdkit.interfaces.benchmark import sha256

FORMAT = "ground truth of CHAIR, as cdkit keeps it, 1"


@dataclass(frozen=True, eq=False)
class ObjectTruth:
    """The objects of each image id, the id of each image file, the hash of each file read."""

    objects: Mapping[str, frozenset[str]]
    id_of: Mapping[str, str]
    sources: Mapping[str, str]


class AnnotatedObjects(Mapping[str, frozenset[str]]):
    """The objects of each image, its captions read when it is first asked for.

    COCO has 600,000 reference captions, and a run asks for those of a few hundred images.
    """

    def __init__(
        self,
        annotated: Mapping[str, frozenset[str]],
        captions: Mapping[str, Sequence[str]],
        synonyms: Synonyms,
        scorer: str,
    ) -> None:
        self._annotated, self._captions = annotated, captions
        self._synonyms, self._scorer = synonyms, scorer
        self._found: dict[str, frozenset[str]] = {}

    def __getitem__(self, image: str) -> frozenset[str]:
        if image not in self._found:
            nodes = SCORERS[self._scorer].nodes
            mentioned = (nodes(text, self._synonyms) for text in self._captions[image])
            self._found[image] = self._annotated[image].union(*mentioned)
        return self._found[image]

    def __contains__(self, image: object) -> bool:
        return image in self._annotated

    def __iter__(self) -> Iterator[str]:
        return iter(self._annotated)

    def __len__(self) -> int:
        return len(self._annotated)


def given_truth(path: Path, synonyms: Synonyms) -> ObjectTruth:
    """From JSON `{image id: [objects]}`."""
    source = read_source(path)
    value = source.json(unique=True)
    if not isinstance(value, dict) or not value:
        raise CdkitError(f"{path} holds no {{image id: [objects]}}: give such a JSON object")
    objects: dict[str, frozenset[str]] = {}
    for image, names in value.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CdkitError(f"{path}: image {image} has {names!r}: it needs a list of names")
        objects[image] = frozenset(_node(name, synonyms, path) for name in names)
    return ObjectTruth(objects, {}, {str(path): source.sha256})


def coco_truth(
    instances: Sequence[Path], captions: Sequence[Path], synonyms: Synonyms, scorer: str
) -> ObjectTruth:
    """From COCO's instances and reference captions (several files of each, say train and val).

    The objects of an image are its annotated categories and what `scorer` finds in its captions.
    """
    sources: dict[str, str] = {}
    id_of: dict[str, str] = {}
    annotated: dict[str, frozenset[str]] = {}
    for path in instances:
        source = read_source(path)
        sources[str(path)] = source.sha256
        found = read_instances(source)
        _new(path, found.categories, annotated)
        _new(path, found.id_of, id_of)
        id_of |= found.id_of
        for image, names in found.categories.items():
            annotated[image] = frozenset(_node(name, synonyms, path) for name in names)
    references: dict[str, Sequence[str]] = {}
    for path in captions:
        source = read_source(path)
        sources[str(path)] = source.sha256
        texts = read_captions(source)
        _new(path, texts, references)
        references |= texts
    for image in annotated:
        if image not in references:
            files = ", ".join(map(str, captions))
            raise CdkitError(f"{files} has no caption of image {image}: give its own")
    return ObjectTruth(AnnotatedObjects(annotated, references, synonyms, scorer), id_of, sources)


def cached_truth(
    cache: Path,
    instances: Sequence[Path],
    captions: Sequence[Path],
    synonyms: tuple[str, Synonyms],
    scorer: str,
) -> ObjectTruth:
    """As `coco_truth`, kept as JSON in the folder `cache`; `synonyms`: their file's hash, and they.

    The file's name and its head are made of the hash of every file, the scorer and its version:
    where one of them changes, another file is written, and one with another head or of another
    shape is written anew.
    """
    hashes = {str(path): digest(path) for path in (*instances, *captions)}
    key = {
        "format": FORMAT,
        "scorer": f"{scorer} {SCORERS[scorer].version}",
        "synonyms": synonyms[0],
        "instances": [hashes[str(path)] for path in instances],
        "captions": [hashes[str(path)] for path in captions],
    }
    place = cache / f"chair_truth_{sha256(json.dumps(key).encode())[:16]}.json"
    if (kept := _kept(place, key)) is not None:
        return ObjectTruth(kept.objects, kept.id_of, hashes)
    made = coco_truth(instances, captions, synonyms[1], scorer)
    if dict(made.sources) != hashes:
        raise CdkitError(f"{', '.join(hashes)} changed while they were read: try again")
    objects = {image: sorted(found) for image, found in made.objects.items()}
    _write(place, json.dumps({"key": key, "objects": objects, "files": dict(made.id_of)}))
    return made


def _kept(place: Path, key: Mapping[str, object]) -> ObjectTruth | None:
    """What the cache holds, or None where it is not whole and of this key."""
    if not place.is_file():
        return None
    try:
        value = read_source(place).json()
    except CdkitError:
        return None  # cut off or damaged: it is only a cache
    if not isinstance(value, dict) or value.get("key") != key:
        return None
    objects, files = value.get("objects"), value.get("files")
    if not isinstance(objects, dict) or not isinstance(files, dict):
        return None
    lists = all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in objects.values()
    )
    if not lists or not all(isinstance(image, str) for image in files.values()):
        return None
    truth = {image: frozenset(names) for image, names in objects.items()}
    return ObjectTruth(truth, files, {})


def _write(place: Path, text: str) -> None:
    """Whole or not at all, also where another process writes the same."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            fresh = Path(folder) / place.name
            fresh.write_text(text, encoding="utf-8", newline="\n")
            os.replace(fresh, place)
    except OSError as error:
        raise CdkitError(
            f"{place.parent} cannot hold the cache ({error}): name a folder that can be written"
        ) from None


def _new(path: Path, here: Mapping[str, object], before: Mapping[str, object]) -> None:
    if twice := here.keys() & before.keys():
        raise CdkitError(f"{path} has {min(twice)}, which another file has too: give each once")


def _node(name: str, synonyms: Synonyms, path: Path) -> str:
    node = synonyms.node_of.get(name.lower())
    if node is None:
        raise CdkitError(
            f"{path} has the object {name!r}, which stands in no line of the synonyms file: add it"
        )
    return node
