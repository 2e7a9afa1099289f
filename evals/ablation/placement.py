"""Where in the image sequence the objects stand that a yes/no benchmark asks about."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdkit.errors import CdkitError, check_file
from cdkit.interfaces.sample import Sample

FORM = '{"IMAGE": {"image_tokens": 64, "objects": [{"category": "cat", "tokens": [0, 1]}]}}'
"""A placement file; `image_tokens` may be missing."""


@dataclass(frozen=True)
class PlacedQuestion:
    """Of a yes question about an object that stands once in its image: where it stands, 0..1."""

    sample: Sample
    at: float


@dataclass(frozen=True)
class PlacedObject:
    """An object of an image: its category and the image tokens that it covers."""

    category: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class PlacedImage:
    """An image's objects, and how many tokens the whole image has if the file says so."""

    objects: tuple[PlacedObject, ...]
    image_tokens: int | None


def placed(samples: Sequence[Sample], placement: Path) -> tuple[PlacedQuestion, ...]:
    """The yes questions whose object the placement file shows exactly once in the image.

    Where the file does not tell an image's tokens, the largest token in it counts as the last.
    """
    images = read_placement(placement)
    tokens = [t for image in images.values() for thing in image.objects for t in thing.tokens]
    largest = max(tokens, default=0)
    found = []
    for sample in samples:
        if sample.target != "yes" or sample.image not in images:
            continue
        image = images[sample.image]
        asked = [thing for thing in image.objects if _asks(sample, thing.category)]
        if len(asked) == 1:
            last = largest if image.image_tokens is None else image.image_tokens - 1
            found.append(PlacedQuestion(sample, float(np.mean(asked[0].tokens)) / (last or 1)))
    return tuple(found)


def read_placement(placement: Path) -> Mapping[str, PlacedImage]:
    """What a placement file shows, by image; a CdkitError where it has another form."""
    try:
        check_file(placement)
        content: object = json.loads(placement.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CdkitError(f"cannot read the placement file {placement}: {error}") from None
    if not isinstance(content, dict):
        raise CdkitError(f"{placement} must hold one JSON object: {FORM}")
    return {name: _image(f"{placement}, {name}", image) for name, image in content.items()}


def _image(where: str, given: object) -> PlacedImage:
    objects = given.get("objects") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(objects, list):
        raise CdkitError(f"{where}: the image needs a list 'objects': {FORM}")
    count = given.get("image_tokens")
    if count is not None and not (_whole(count) and count > 0):
        raise CdkitError(f"{where}: image_tokens must be a whole number from 1 on, got {count!r}")
    things = tuple(_things(where, objects))
    if count is not None and any(max(thing.tokens) >= count for thing in things):
        raise CdkitError(f"{where}: an object has a token that is not below image_tokens {count}")
    return PlacedImage(things, count)


def _things(where: str, objects: list[object]) -> Iterator[PlacedObject]:
    for given in objects:
        category = given.get("category") if isinstance(given, dict) else None
        tokens = given.get("tokens") if isinstance(given, dict) else None
        named = isinstance(category, str) and category
        if not named or not isinstance(tokens, list) or not tokens or not all(map(_whole, tokens)):
            raise CdkitError(
                f"{where}: each object needs its category, a text, and its image tokens, a list "
                f"of whole numbers from 0 on; got {given!r}"
            )
        yield PlacedObject(str(category), tuple(tokens))


def _whole(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 0


def _asks(sample: Sample, category: str) -> bool:
    return re.search(rf"\b{re.escape(category)}\b", sample.prompt) is not None
