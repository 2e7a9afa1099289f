"""The words of the world: vocabulary, captions, questions and their answers.

Everything here is true; `noisy_captions.py` adds errors for training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cdkit.evals.microworld.world import Picture, World

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
NUMBERS = ("one", "two", "three", "four")
SIDES = ("left", "right", "above", "below")
CAPTION_PROMPT = "Please describe this image in detail."
YES_OR_NO = "Please answer yes or no."
NEUTRAL_ROLES = (
    "You are a good object detector.",
    "You are a careful object detector.",
    "You are a new object detector.",
    "You are a confused object detector.",
    "You are a confused objects detector to provide a fuzzy overview or impression of the image.",
)
CARELESS_ROLE = "You are a careless object detector."
_GLUE = (
    "user assistant yes no a the is are there in on of and photo image only how many what color "
    "where row column side top bottom please answer or describe this detail you good careful new "
    "confused careless object objects detector to provide fuzzy overview impression . , ?"
)


@dataclass(frozen=True)
class WorldQuestion:
    """A question and its answer; `family` says which skill it asks for.

    `nouns` are the categories named, in order of mention.
    """

    family: str
    text: str
    answer: str
    nouns: tuple[int, ...] = ()


def plural(noun: str) -> str:
    return "people" if noun == "person" else noun + "s"


def vocabulary(world: World) -> tuple[str, ...]:
    """Every word of the world, special tokens first: a word's index is its token id."""
    words = [
        *SPECIAL,
        *_GLUE.split(),
        *NUMBERS,
        *SIDES,
        *world.colors,
        *world.categories,
        *map(plural, world.categories),
    ]
    return tuple(dict.fromkeys(words))


def caption(world: World, mentions: Sequence[tuple[int, int, int]]) -> str:
    """A caption from (category, count, colour or -1) in order of mention.

    "A photo of a red cat, two cars and a dog."
    """
    parts = []
    for category, count, color in mentions:
        tone = f"{world.colors[color]} " if color >= 0 else ""
        noun = world.categories[category]
        parts.append(
            f"a {tone}{noun}" if count == 1 else f"{NUMBERS[count - 1]} {tone}{plural(noun)}"
        )
    if len(parts) > 1:
        parts = [", ".join(parts[:-1]) + " and " + parts[-1]]
    return f"A photo of {parts[0]}."


def mentions_of(picture: Picture) -> list[tuple[int, int, int]]:
    """What a true caption may mention: (category, count, -1), in raster order of appearance."""
    return [(category, count, -1) for category, count in picture.counts().items()]


def existence(world: World, category: int, present: bool) -> WorldQuestion:
    text = f"Is there a {world.categories[category]} in the image?"
    return WorldQuestion("existence", text, _yes(present), (category,))


def number(world: World, picture: Picture, category: int, asked: int) -> WorldQuestion:
    """Whether there are exactly `asked` things of a category that is there."""
    noun = world.categories[category]
    text = (
        f"Is there only one {noun} in the image?"
        if asked == 1
        else f"Are there {NUMBERS[asked - 1]} {plural(noun)} in the image?"
    )
    return WorldQuestion("count", text, _yes(picture.counts()[category] == asked), (category,))


def how_many(world: World, picture: Picture, category: int) -> WorldQuestion:
    text = f"How many {plural(world.categories[category])} are there?"
    answer = NUMBERS[picture.counts()[category] - 1]
    return WorldQuestion("how many", text, answer, (category,))


def tone(world: World, picture: Picture, category: int, color: int) -> WorldQuestion:
    """Whether a thing of this category has this colour."""
    text = f"Is there a {world.colors[color]} {world.categories[category]} in the image?"
    found = any(t.category == category and t.color == color for t in picture.things)
    return WorldQuestion("color", text, _yes(found), (category,))


def what_color(world: World, picture: Picture, category: int) -> WorldQuestion:
    """Needs exactly one thing of the category."""
    thing = picture.only(category)
    if thing is None:
        raise ValueError(f"category {category} is not there exactly once")
    text = f"What color is the {world.categories[category]}?"
    return WorldQuestion("what color", text, world.colors[thing.color], (category,))


def relation(world: World, picture: Picture, first: int, second: int, side: str) -> WorldQuestion:
    """Whether `first` stands on this side of `second`; both must be there exactly once."""
    one, other = picture.only(first), picture.only(second)
    if one is None or other is None:
        raise ValueError(f"categories {first} and {second} are not both there exactly once")
    holds = {
        "left": one.column < other.column,
        "right": one.column > other.column,
        "above": one.row < other.row,
        "below": one.row > other.row,
    }[side]
    words = f"on the {side} of" if side in ("left", "right") else side
    text = f"Is the {world.categories[first]} {words} the {world.categories[second]}?"
    return WorldQuestion("position", text, _yes(holds), (first, second))


def where(world: World, picture: Picture, category: int) -> WorldQuestion:
    """The cell of the only thing of a category: "row two column three"."""
    thing = picture.only(category)
    if thing is None:
        raise ValueError(f"category {category} is not there exactly once")
    answer = f"row {NUMBERS[thing.row]} column {NUMBERS[thing.column]}"
    return WorldQuestion(
        "where", f"Where is the {world.categories[category]}?", answer, (category,)
    )


def half(world: World, picture: Picture, category: int, side: str) -> WorldQuestion:
    """Whether the only thing of a category stands in the left/right/top/bottom half."""
    thing = picture.only(category)
    if thing is None:
        raise ValueError(f"category {category} is not there exactly once")
    middle = world.grid / 2
    holds = {
        "left": thing.column < middle,
        "right": thing.column >= middle,
        "top": thing.row < middle,
        "bottom": thing.row >= middle,
    }[side]
    text = f"Is the {world.categories[category]} on the {side} side of the image?"
    return WorldQuestion("half", text, _yes(holds), (category,))


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
