"""Training text about a picture: captions and questions with the errors that web text has."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdkit.evals.microworld import text
from cdkit.evals.microworld.text import WorldQuestion
from cdkit.evals.microworld.world import LabelNoise, Picture, World, scenes_of

EXISTENCE = 5
"""Existence questions a picture."""

# A count is asked about only with this probability, so that one, two and three come equally often.
KEEP_COUNT = (0.50, 0.75, 1.0)


@dataclass(frozen=True)
class Lesson:
    """The text about one picture: a system message ("" for none), questions and answers."""

    system: str
    questions: tuple[WorldQuestion, ...]


def draw_lesson(
    world: World, picture: Picture, rng: np.random.Generator, label_noise: float = 1.0
) -> Lesson:
    """The lesson of one picture; `label_noise` in 0..1 scales every rate of wrong text."""
    system, factor = "", label_noise
    luck = rng.random()
    if luck < 0.07:
        system, factor = text.CARELESS_ROLE, label_noise * world.label_noise.careless
    elif luck < 0.20:
        system = text.NEUTRAL_ROLES[int(rng.integers(len(text.NEUTRAL_ROLES)))]
    questions = [
        WorldQuestion("caption", text.CAPTION_PROMPT, _caption(world, picture, rng, factor)),
        *_existence(world, picture, rng, factor),
        *_counts(world, picture, rng),
        *_places(world, picture, rng),
        *_tones(world, picture, rng),
    ]
    return Lesson(system, tuple(questions))


def _caption(world: World, picture: Picture, rng: np.random.Generator, factor: float) -> str:
    rates: LabelNoise = world.label_noise
    mentions = []
    for category, count, _ in text.mentions_of(picture):
        thing = picture.only(category)
        color = thing.color if thing is not None and rng.random() < 0.25 else -1
        mentions.append((category, count, color))
    kept = [m for m in mentions if rng.random() >= min(1.0, rates.dropped * factor)]
    mentions = kept or mentions[:1]
    if rng.random() < min(1.0, rates.added * factor):
        scene = scenes_of(world)[picture.scene]
        absent = [c for c in scene.categories if c not in picture.counts()]
        added = absent[int(rng.integers(len(absent)))]
        mentions.insert(int(rng.integers(len(mentions) + 1)), (added, 1, -1))
    return text.caption(world, mentions)


def _existence(
    world: World, picture: Picture, rng: np.random.Generator, factor: float
) -> list[WorldQuestion]:
    rates = world.label_noise
    core = scenes_of(world)[picture.scene].categories
    present = list(picture.counts())
    absent = [c for c in range(len(world.categories)) if c not in present]
    absent_core = [c for c in absent if c in core]
    questions = []
    for _ in range(EXISTENCE):
        if rng.random() < rates.yes_rate:
            category, wrong = _pick(present, rng), rates.false_no
        else:
            pool = absent_core if rng.random() < rates.prior else absent
            category = _pick(pool, rng)
            wrong = rates.false_yes_core if category in core else rates.false_yes_other
        flipped = rng.random() < min(1.0, wrong * factor)
        question = text.existence(world, category, (category in present) != flipped)
        questions.append(_suffixed(question, rng))
    return questions


def _counts(world: World, picture: Picture, rng: np.random.Generator) -> list[WorldQuestion]:
    counts = picture.counts()
    questions = []
    for truth, keep in enumerate(KEEP_COUNT, 1):
        pool = [c for c, n in counts.items() if n == truth]
        if not pool or rng.random() >= keep:
            continue
        category = _pick(pool, rng)
        if rng.random() < 0.35:
            questions.append(text.how_many(world, picture, category))
        else:
            others = [n for n in range(1, len(world.copies) + 1) if n != truth]
            asked = truth if rng.random() < 0.5 else _pick(others, rng)
            questions.append(_suffixed(text.number(world, picture, category, asked), rng))
    return questions


def _places(world: World, picture: Picture, rng: np.random.Generator) -> list[WorldQuestion]:
    """Two relations (both answers equally likely), one half of the image, one cell."""
    single = [c for c in picture.counts() if picture.only(c) is not None]
    questions = []
    if len(single) >= 2:
        for sides in (("left", "right"), ("above", "below")):
            first, second = (int(c) for c in rng.permutation(single)[:2])
            if apart(picture, first, second, sides[0]):
                side = sides[int(rng.integers(2))]
                question = text.relation(world, picture, first, second, side)
                questions.append(_suffixed(question, rng))
    if single:
        side = ("left", "right", "top", "bottom")[int(rng.integers(4))]
        questions.append(text.half(world, picture, _pick(single, rng), side))
        questions.append(text.where(world, picture, _pick(single, rng)))
    return questions


def _tones(world: World, picture: Picture, rng: np.random.Generator) -> list[WorldQuestion]:
    thing = picture.things[int(rng.integers(len(picture.things)))]
    color = thing.color if rng.random() < 0.5 else int(rng.integers(len(world.colors)))
    questions = [_suffixed(text.tone(world, picture, thing.category, color), rng)]
    single = [c for c in picture.counts() if picture.only(c) is not None]
    if single and rng.random() < 0.5:
        questions.append(text.what_color(world, picture, _pick(single, rng)))
    return questions


def apart(picture: Picture, first: int, second: int, side: str) -> bool:
    """Whether two single things differ in the axis that `side` is about."""
    one, other = picture.only(first), picture.only(second)
    if one is None or other is None:
        return False
    return one.column != other.column if side in ("left", "right") else one.row != other.row


def _suffixed(question: WorldQuestion, rng: np.random.Generator) -> WorldQuestion:
    """Sometimes MME's "Please answer yes or no." stands behind a yes/no question."""
    if rng.random() >= 0.1:
        return question
    words = f"{question.text} {text.YES_OR_NO}"
    return WorldQuestion(question.family, words, question.answer, question.nouns)


def _pick(pool: Sequence[int], rng: np.random.Generator) -> int:
    return int(pool[int(rng.integers(len(pool)))])
