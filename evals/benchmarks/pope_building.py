"""POPE's questions from annotations: half about what is there, half about what is not.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (EMNLP 2023),
and its script. The rules of `PUBLISHED` are the script's: by the counts that were published with
the first files (COCO), no absent object in them contradicts these rules.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import located
from cdkit.evals.benchmarks.coco import Instances
from cdkit.interfaces.sample import Sample

EACH = 3
"""Questions about present objects of an image; as many are about absent ones."""


@dataclass(frozen=True)
class Poll:
    """The questions about one image: categories that are there, and categories that are not."""

    image: str
    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ObjectCounts:
    """In how many images a category is, and two categories are together."""

    of: Counter[str]
    together: Counter[tuple[str, str]]


@dataclass(frozen=True)
class PolledImage:
    """An image: all its categories, those asked about in order, and those it lacks.

    `missing` stands in the order of all categories, which breaks ties.
    """

    here: tuple[str, ...]
    present: tuple[str, ...]
    missing: tuple[str, ...]


Rule = Callable[[ObjectCounts, PolledImage, np.random.Generator], Sequence[str]]
"""The absent categories to ask about, best first; one for each of `present` is taken."""


def random(counts: ObjectCounts, asked: PolledImage, rng: np.random.Generator) -> Sequence[str]:
    """Uniform among the absent, without replacement."""
    return [str(name) for name in rng.permutation(asked.missing)]


def popular(counts: ObjectCounts, asked: PolledImage, rng: np.random.Generator) -> Sequence[str]:
    """Those in most images."""
    return sorted(asked.missing, key=lambda name: -counts.of[name])


def adversarial(
    counts: ObjectCounts, asked: PolledImage, rng: np.random.Generator
) -> Sequence[str]:
    """For each present category asked about, the one that is together with it most often.

    The one asked about before it in the file, that is; none is taken twice. POPE's script draws at
    random if nothing is left that was ever together with it; here ties decide (`PolledImage`).
    """
    chosen: list[str] = []
    for thing in asked.present:
        left = [name for name in asked.missing if name not in chosen]
        chosen.append(max(left, key=lambda name: counts.together[name, thing]))
    return chosen


def adversarial_to_all(
    counts: ObjectCounts, asked: PolledImage, rng: np.random.Generator
) -> Sequence[str]:
    """Those with the highest sum over ALL present categories of P(absent one | present one)."""

    def likely(name: str) -> float:
        return sum(counts.together[name, b] / counts.of[b] for b in asked.here)

    near = {name: likely(name) for name in asked.missing}
    return sorted(asked.missing, key=lambda name: -near[name])


PUBLISHED: Mapping[str, Rule] = {
    "random": random,
    "popular": popular,
    "adversarial": adversarial,
}


def build_polls(
    contents: Mapping[str, Sequence[str]],
    categories: Sequence[str],
    rule: Rule,
    seed: int,
    each: int = EACH,
) -> tuple[Poll, ...]:
    """Polls of the images with at least `each` categories; frequencies are those of all `contents`.

    `contents` maps an image to the distinct categories in it. Ties go to the earlier name in
    `categories`. The present ones are drawn by the seed, the same under every rule.
    """
    counts = ObjectCounts(
        Counter(name for names in contents.values() for name in set(names)),
        Counter(
            (a, b) for names in contents.values() for a in set(names) for b in set(names) if a != b
        ),
    )
    polls = []
    for number, (image, names) in enumerate(contents.items()):
        here = tuple(sorted(set(names)))
        missing = tuple(name for name in categories if name not in here)
        if len(here) < each or len(missing) < each:
            continue
        drawn = np.random.default_rng([seed, number, 0]).permutation(here)[:each]
        asked = PolledImage(here, tuple(str(name) for name in drawn), missing)
        absent = rule(counts, asked, np.random.default_rng([seed, number, 1]))
        polls.append(Poll(image, asked.present, tuple(absent[:each])))
    return tuple(polls)


def pope_rows(polls: Sequence[Poll]) -> list[dict[str, object]]:
    """POPE's rows: yes and no take turns, ids count from 1."""
    rows: list[dict[str, object]] = []
    for poll in polls:
        for pair in zip(poll.present, poll.absent, strict=True):
            for name, label in zip(pair, ("yes", "no"), strict=True):
                article = "an" if name[0] in "aeiou" else "a"
                text = f"Is there {article} {name} in the image?"
                rows.append(
                    {
                        "question_id": len(rows) + 1,
                        "image": poll.image,
                        "text": text,
                        "label": label,
                    }
                )
    return rows


def write_polls(path: Path, polls: Sequence[Poll]) -> None:
    """The file that POPE is read from: one JSON object a line."""
    rows = pope_rows(polls)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def polls_of_instances(
    instances: Instances, *, images: int = 500, seed: int = 0, each: int = EACH
) -> dict[str, tuple[Poll, ...]]:
    """The published splits from COCO's annotations: `images` images, drawn by the seed.

    Drawn are images with `each` categories or more. As in POPE's script, frequencies are those of
    the drawn images. Which of the present objects are asked about is drawn too; the script takes
    the first in the annotations.
    """
    if images < 1 or each < 1 or seed < 0:
        raise CdkitError(
            f"{images=}, objects={each} and {seed=}: the first two must be 1 or more, the seed 0 "
            "or more"
        )
    names = sorted(instances.id_of)
    contents = {name: sorted(instances.categories[instances.id_of[name]]) for name in names}
    total = len(instances.names)
    fit = [name for name in names if each <= len(contents[name]) <= total - each]
    if len(fit) < images:
        raise CdkitError(
            f"{len(fit)} of {len(names)} images show {each} or more of the {total} categories and "
            f"lack {each} or more: ask for at most as many images, not for {images}"
        )
    drawn = [fit[i] for i in np.random.default_rng([seed]).permutation(len(fit))[:images]]
    for name in drawn:
        with located(f"the image of id {instances.id_of[name]}"):
            Sample("1", name, "", group=name)  # a name that leaves the folder is refused here
    chosen = {name: contents[name] for name in drawn}
    return {
        split: build_polls(chosen, instances.names, rule, seed, each)
        for split, rule in PUBLISHED.items()
    }
