"""From a caption to the objects it mentions, by CHAIR's rules; the lemmatiser is a named choice."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cdkit.errors import CdkitError
from cdkit.evals.files import Source

# The animals of COCO (and two words that stand for one): a "baby bear" is a bear and no person.
ANIMALS = (
    "animal bear bird cat cow cub dog elephant giraffe horse sheep zebra"  # one word each
).split()
# Pairs that mean one thing, beside the two-word names that stand in the synonyms file. What a pair
# becomes is looked up like any word, so "home plate" and "train track" mention nothing, on purpose.
PAIRS: Mapping[tuple[str, str], str] = {
    **{(age, animal): animal for age in ("adult", "baby") for animal in ANIMALS},
    ("passenger", "jet"): "jet",
    ("passenger", "train"): "train",
    ("bow", "tie"): "tie",
    ("toilet", "seat"): "toilet",
    ("home", "plate"): "home plate",
    ("train", "track"): "train track",
}
IRREGULAR: Mapping[str, str] = {
    "calves": "calf",
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "knives": "knife",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "policemen": "policeman",
    "servicemen": "serviceman",
    "women": "woman",
}


@dataclass(frozen=True, eq=False)
class Synonyms:
    """Which object (node) a word means: one line an object, its node first, commas between."""

    node_of: Mapping[str, str]

    @cached_property
    def pairs(self) -> Mapping[tuple[str, str], str]:
        """Two words in a row, and the word they are read as."""
        names = {(first, second): f"{first} {second}" for first, second in self._split}
        return {**names, **PAIRS}

    @cached_property
    def words(self) -> Collection[str]:
        """Every single word that can be (a part of) an object: a plural is led back to these."""
        parts = (word for pair in self.pairs for word in pair)
        return frozenset((*(word for word in self.node_of if " " not in word), *parts))

    @property
    def _split(self) -> Iterator[tuple[str, str]]:
        for name in self.node_of:
            if len(parts := name.split()) == 2:
                yield parts[0], parts[1]


def read_synonyms(source: Source) -> Synonyms:
    """The synonyms of a file; a word that stands under two objects belongs to the later one."""
    node_of: dict[str, str] = {}
    for where, line in source.lines():
        names = [" ".join(name.lower().split()) for name in line.split(",")]
        if not names[0]:
            raise CdkitError(f"{where} names no object: a line is OBJECT, SYNONYM, SYNONYM ...")
        node_of |= {name: names[0] for name in names if name}
    return Synonyms(node_of)


def mentions(words: Sequence[str], synonyms: Synonyms) -> list[str]:
    """The node of each mention, in order, from a caption's lemmas.

    Pairs are merged from left to right, each word in one pair at most; where both "toilet" and
    "seat" are left, every "seat" is dropped; the synonyms are kept.
    """
    merged: list[str] = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        pair = synonyms.pairs.get((word, rest[-1])) if rest else None
        if pair is not None:
            rest.pop()
        merged.append(word if pair is None else pair)
    if "toilet" in merged:
        merged = [word for word in merged if word != "seat"]
    return [synonyms.node_of[word] for word in merged if word in synonyms.node_of]


def simple(caption: str, synonyms: Synonyms) -> list[str]:
    """Lemmas without any data: a regular expression for words, and naive rules for plurals.

    A word with hyphens is one word; punctuation marks are words of their own, so that no pair
    reaches over one. A word becomes the first of these that a synonym consists of: itself, its
    irregular singular, itself without -s, without -es (after ch, o, s, sh, x, z), with -y for -ies.
    Parts of speech are not looked at: "trains" is a train where it is a verb, "tied" is no tie.
    """
    tokens = re.findall(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]", caption.lower())
    return [_singular(token, synonyms.words) for token in tokens]


@dataclass(frozen=True)
class Scorer:
    """How a caption becomes lemmas; the version changes where any caption's lemmas do."""

    lemmas: Callable[[str, Synonyms], list[str]]
    version: int


SCORERS: Mapping[str, Scorer] = {"simple": Scorer(simple, version=1)}


def _singular(word: str, known: Collection[str]) -> str:
    candidates = [word, IRREGULAR.get(word, word)]
    if word.endswith("s"):
        candidates.append(word[:-1])
    if word.endswith(("ches", "oes", "ses", "shes", "xes", "zes")):  # "skies" are no "ski"
        candidates.append(word[:-2])
    if word.endswith("ies"):
        candidates.append(word[:-3] + "y")
    return next((candidate for candidate in candidates if candidate in known), word)
