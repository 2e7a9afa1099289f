"""MME's questions about pictures: four skills, two questions an image, one of them true."""

from collections.abc import Callable, Iterator

import numpy as np

from cdkit.evals.microworld import text
from cdkit.evals.microworld.text import WorldQuestion
from cdkit.evals.microworld.world import Picture, World, draw_picture

Pair = tuple[WorldQuestion, WorldQuestion]


def draw_mme_questions(
    world: World, subset: str, images: int, rng: np.random.Generator
) -> Iterator[tuple[Picture, Pair]]:
    """`images` fresh pictures that allow this subset's questions, each with its pair: yes, no."""
    ask = SUBSETS[subset]
    found = 0
    while found < images:
        picture = draw_picture(world, rng)
        pair = ask(world, picture, found, rng)
        if pair is not None:
            found += 1
            yield picture, pair


def _existence(world: World, picture: Picture, turn: int, rng: np.random.Generator) -> Pair:
    present = list(picture.counts())
    absent = [c for c in range(len(world.categories)) if c not in present]
    return (
        text.existence(world, int(rng.choice(present)), True),
        text.existence(world, int(rng.choice(absent)), False),
    )


def _count(world: World, picture: Picture, turn: int, rng: np.random.Generator) -> Pair | None:
    """True counts take turns, so do the wrong ones: no answer follows from the asked number."""
    most = len(world.copies)
    truth = 1 + turn % most
    pool = [c for c, n in picture.counts().items() if n == truth]
    if not pool:
        return None
    category = int(rng.choice(pool))
    wrong = 1 + (truth + turn // most % (most - 1)) % most
    return (
        text.number(world, picture, category, truth),
        text.number(world, picture, category, wrong),
    )


def _position(world: World, picture: Picture, turn: int, rng: np.random.Generator) -> Pair | None:
    """Left/right and above/below take turns; the things stand in different columns or rows."""
    sides = (("left", "right"), ("above", "below"))[turn % 2]
    single = [c for c in picture.counts() if picture.only(c) is not None]
    if len(single) < 2:
        return None
    first, second = (int(c) for c in rng.permutation(single)[:2])
    asked = [text.relation(world, picture, first, second, side) for side in sides]
    if asked[0].answer == asked[1].answer:
        return None
    yes, no = sorted(asked, key=lambda question: question.answer != "yes")
    return yes, no


def _color(world: World, picture: Picture, turn: int, rng: np.random.Generator) -> Pair:
    thing = picture.things[int(rng.integers(len(picture.things)))]
    shown = {t.color for t in picture.things if t.category == thing.category}
    others = [c for c in range(len(world.colors)) if c not in shown]
    return (
        text.tone(world, picture, thing.category, thing.color),
        text.tone(world, picture, thing.category, int(rng.choice(others))),
    )


SUBSETS: dict[str, Callable[[World, Picture, int, np.random.Generator], Pair | None]] = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
}
