"""POPE's questions from annotations: half about what is there, half about what is not.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (EMNLP 2023).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cdkit.errors import CdkitError

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Poll:
    """One image's part: the categories asked about that are there, and those that are not."""

    image: str
    present: tuple[str, ...]
    absent: tuple[str, ...]


def build_polls(
    contents: Mapping[str, Sequence[str]],
    categories: Sequence[str],
    split: str,
    seed: int,
    each: int = 3,
) -> tuple[Poll, ...]:
    """Polls of the images with at least `each` categories; frequencies are those of all `contents`.

    `contents` maps an image to the distinct categories in it. Absent categories: `random`, uniform;
    `popular`, those in most images; `adversarial`, those with the highest sum over the present
    categories of P(absent one | present one). Ties go to the earlier name in `categories`. The
    present ones are the same in every split.
    """
    if split not in SPLITS:
        raise CdkitError(f"There is no POPE split {split!r}: choose one of {', '.join(SPLITS)}.")
    counts = Counter(name for names in contents.values() for name in set(names))
    together = Counter(
        (a, b) for names in contents.values() for a in set(names) for b in set(names) if a != b
    )
    polls = []
    for number, (image, names) in enumerate(contents.items()):
        missing = [name for name in categories if name not in names]
        if len(set(names)) < each or len(missing) < each:
            continue
        asked = np.random.default_rng([seed, number, 0])
        present = tuple(str(n) for n in asked.permutation(sorted(set(names)))[:each])
        if split == "random":
            drawn = np.random.default_rng([seed, number, 1])
            absent = [str(name) for name in drawn.permutation(missing)]
        elif split == "popular":
            absent = sorted(missing, key=lambda name: -counts[name])
        else:
            near = {a: sum(together[a, b] / counts[b] for b in sorted(set(names))) for a in missing}
            absent = sorted(missing, key=lambda name: -near[name])
        polls.append(Poll(image, present, tuple(absent[:each])))
    return tuple(polls)


def pope_rows(polls: Sequence[Poll]) -> list[dict[str, object]]:
    """POPE's rows: yes and no take turns, ids count from 1."""
    rows: list[dict[str, object]] = []
    for poll in polls:
        for pair in zip(poll.present, poll.absent, strict=True):
            for name, label in zip(pair, ("yes", "no"), strict=True):
                text = f"Is there a {name} in the image?"
                rows.append(
                    {
                        "question_id": len(rows) + 1,
                        "image": poll.image,
                        "text": text,
                        "label": label,
                    }
                )
    return rows
