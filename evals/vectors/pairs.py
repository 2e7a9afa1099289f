"""Demonstrations: an image, a prompt, and a truthful and a hallucinated answer to it."""

from dataclasses import dataclass
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import digest, located, read_source, rows, text_of
from cdkit.evals.runner.fingerprints import short_hash
from cdkit.interfaces.sample import check_inside

PAIRS = "pairs.jsonl"
"""The file of a folder of demonstrations: an object a line."""
KEYS = ("image", "prompt", "truthful", "hallucinated")


@dataclass(frozen=True)
class Pair:
    """One demonstration.

    Args:
        image: The image file.
        prompt: The question, without a chat template.
        truthful: An answer that holds for the image.
        hallucinated: An answer that speaks of what is not there.
    """

    image: Path
    prompt: str
    truthful: str
    hallucinated: str


@dataclass(frozen=True)
class Demonstrations:
    """The pairs of a folder, and a hash of all that they are: texts and images."""

    pairs: tuple[Pair, ...]
    sha256: str


def read_pairs(folder: Path) -> Demonstrations:
    """Read a folder of demonstrations.

    Args:
        folder: It holds `pairs.jsonl`, and the images that its rows name, relative to itself.

    Returns:
        The pairs in the file's order.

    Raises:
        CdkitError: There is no such file, it holds no pair, a row lacks a text or has two that are
            the same, or an image is missing or out of the folder.
    """
    file = folder / PAIRS
    if not file.is_file():
        raise CdkitError(
            f"{folder} holds no {PAIRS}: give a folder with that file, which has "
            f"{', '.join(KEYS)} in each line (docs/data.md)"
        )
    source = read_source(file)
    pairs = []
    for where, row in rows(source):
        name, prompt, truthful, hallucinated = (text_of(row, key, where=where) for key in KEYS)
        if truthful.strip() == hallucinated.strip():
            raise CdkitError(
                f"{where} has one text as truthful and as hallucinated: no direction leads from a "
                "text to itself; take the row out, or mend it"
            )
        image = folder / name
        with located(where):
            check_inside(image, folder)
            if not image.is_file():
                raise CdkitError(f"the image {image} is missing: add it, or take the row out")
        pairs.append(Pair(image, prompt, truthful, hallucinated))
    if not pairs:
        raise CdkitError(f"{file} holds no pair: give one in each line")
    images = {pair.image.name: digest(pair.image) for pair in pairs}
    return Demonstrations(tuple(pairs), short_hash([source.sha256, images]))
