"""Which questions the report shows: drawn by lot among those that methods answer differently.

A question is of one kind. If the base is wrong and some method is right it is "mended"; if the
base is right and some method is wrong it is "broken"; if only the words of the answers differ it is
"reworded". (Tables say gained and lost of what a metric counts, which may be mistakes.) The lot
takes the three kinds in turn, so that no side can be picked.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from cdkit.evals.reports.results import AttentionOverlay, Example, SharedAnswer, direction
from cdkit.evals.runner.modes import PLAIN
from cdkit.interfaces.benchmark import sha256
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally

KINDS = ("mended", "broken", "reworded")
THUMBNAIL = 256
"""Pixels of the longer side, at most."""
EXPLAINED = 3
"""Methods of an example whose answers its command explains, at most."""
ALL_ALIKE = "No question is answered differently by any two methods."

Answers = Mapping[str, Mapping[str, Answer]]
"""Method -> sample id -> answer, of one benchmark and one way to decode."""


@dataclass(frozen=True)
class DrawnSamples:
    """The samples that the lot chose, each with its kind, and what it chose from."""

    samples: tuple[tuple[Sample, str], ...]
    among: Mapping[str, int]
    """Kind -> how many samples are of it."""
    total: int

    def rule(self, base: str, seed: int) -> str:
        """How the samples were chosen, in words."""
        differ = sum(self.among.values())
        if not differ:
            return f"{ALL_ALIKE} ({self.total} asked.)"
        mended, broken, reworded = (self.among[kind] for kind in KINDS)
        return (
            f"{differ} of {self.total} questions are answered differently by some method: on "
            f"{mended} {base} is wrong and some method right (mended), on {broken} {base} is right "
            f"and some method wrong (broken), {reworded} differ in words alone (reworded). Shown: "
            f"{len(self.samples)}, drawn by lot (seed {seed}) from the three in turn, not by hand."
        )


def right(tally: Tally) -> Float[np.ndarray, " samples"] | None:
    """1 for each answer that is right (of a caption: with nothing wrong in it), 0 for others.

    By the tally's first share of answers that has a better side; where that is one of several
    tasks ("existence.acc"), by that of each sample's own task. None where it has none.
    """
    shares = [metric for metric in tally.binary if direction(metric)]
    if not shares:
        return None
    task, _, kind = shares[0].rpartition(".")
    alike = [m for m in shares if task and m.rpartition(".")[2] == kind] or shares[:1]
    counted: Float[np.ndarray, " samples"] = np.stack(
        [tally.columns[tally.binary[metric]] for metric in alike]
    ).sum(axis=0)
    return counted if direction(shares[0]) > 0 else 1 - counted


def draw(
    tallies: Mapping[str, Tally], answers: Answers, *, count: int, base: str = PLAIN, seed: int = 0
) -> DrawnSamples:
    """Up to `count` samples that two methods answer in different words.

    The draw follows from `seed` and the samples' ids alone: neither the methods' names nor the
    order of the questions changes what comes first within a kind.
    """
    samples = tallies[base].samples
    marks = {method: right(tally) for method, tally in tallies.items()}
    kinds: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    for place, sample in enumerate(samples):
        if len({answers[method][sample.id].text for method in tallies}) > 1:
            seen = {
                method: bool(mark[place] > 0) for method, mark in marks.items() if mark is not None
            }
            kinds[_kind(seen, base)].append(sample)
    for found in kinds.values():
        found.sort(key=lambda sample: sha256(f"{seed}\0{sample.id}".encode()))
    return DrawnSamples(
        tuple(_in_turn(kinds, count)),
        {kind: len(found) for kind, found in kinds.items()},
        len(samples),
    )


def shared_answers(
    sample: Sample, tallies: Mapping[str, Tally], answers: Answers, notes: Mapping[str, str]
) -> tuple[SharedAnswer, ...]:
    """The answers to a sample, methods with the same one together; `notes` by answer's text."""
    found: dict[tuple[str, bool | None], list[str]] = {}
    for method, tally in tallies.items():
        mark = right(tally)
        place = next(i for i, other in enumerate(tally.samples) if other.id == sample.id)
        verdict = None if mark is None else bool(mark[place] > 0)
        found.setdefault((answers[method][sample.id].text, verdict), []).append(method)
    return tuple(
        SharedAnswer(text, tuple(names), verdict, notes.get(text, ""))
        for (text, verdict), names in found.items()
    )


def one_of_each(answers: Sequence[SharedAnswer], base: str) -> tuple[str, ...]:
    """The first method of each answer that is not the base's: `EXPLAINED` of them at most."""
    return tuple(each.methods[0] for each in answers if base not in each.methods)[:EXPLAINED]


def make_example(
    sample: Sample,
    kind: str,
    picture: Image,
    answers: tuple[SharedAnswer, ...],
    overlay: AttentionOverlay | None = None,
) -> Example:
    """A sample with its picture made small."""
    data, media_type = thumbnail(picture)
    return Example(
        sample.id, kind, sample.prompt, sample.target, data, media_type, answers, overlay
    )


def thumbnail(picture: Image, most: int = THUMBNAIL) -> tuple[bytes, str]:
    """The picture in at most `most` x `most` pixels, as PNG or JPEG, and its media type."""
    small = picture.convert("RGB")
    small.thumbnail((most, most))
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 80})):
        with io.BytesIO() as file:
            small.save(file, kind.upper(), **options)
            files[f"image/{kind}"] = file.getvalue()
    media_type = min(files, key=lambda kind: len(files[kind]))
    return files[media_type], media_type


def _kind(seen: Mapping[str, bool], base: str) -> str:
    if base not in seen:
        return "reworded"
    if seen[base]:
        return "reworded" if all(seen.values()) else "broken"
    return "mended" if any(seen.values()) else "reworded"


def _in_turn(kinds: Mapping[str, Sequence[Sample]], count: int) -> list[tuple[Sample, str]]:
    longest = max(map(len, kinds.values()))
    rounds = [
        (found[turn], kind)
        for turn in range(longest)
        for kind, found in kinds.items()
        if turn < len(found)
    ]
    return rounds[:count]
