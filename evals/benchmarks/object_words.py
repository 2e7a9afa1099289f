"""From a caption to the objects it mentions, by CHAIR's rules; the lemmatiser is a named choice."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks import wordnet
from cdkit.evals.benchmarks.benchmark_files import Source

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
IRREGULAR: tuple[tuple[str, str], ...] = (
    ("men", "man"),
    ("children", "child"),
    ("people", "person"),
    ("feet", "foot"),
    ("teeth", "tooth"),
    ("geese", "goose"),
    ("mice", "mouse"),
    ("oxen", "ox"),
    ("ves", "f"),
    ("ves", "fe"),
    ("sses", "s"),
    ("zzes", "z"),
)
"""How plurals end, and their singulars: of "gentlemen" and "pocketknives" too."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words that mention an object: its node by word, and pairs of words read as one."""

    node_of: Mapping[str, str]
    pairs: Mapping[tuple[str, str], str]

    @cached_property
    def words(self) -> Collection[str]:
        """Every single word that can be (a part of) an object: a plural is led back to these."""
        parts = (word for pair in self.pairs for word in pair)
        return frozenset((*(word for word in self.node_of if " " not in word), *parts))


@dataclass(frozen=True, eq=False)
class Synonyms:
    """The words for each object: one line an object, its node first, commas between.

    `node_of` has every name made plain (lower case, single blanks). `published` has the names as
    the published script cuts a line, at comma and one blank: there ",  motor bike" is a name that
    starts with a blank and "iPhone" one with a capital, and no caption is found to hold either.
    """

    node_of: Mapping[str, str]
    published: Mapping[str, str]

    @cached_property
    def plain(self) -> Vocabulary:
        """For scorers that mean what the file says."""
        return Vocabulary(self.node_of, {**self._names, **PAIRS})

    @cached_property
    def as_published(self) -> Vocabulary:
        """For the published lineage; its pair for a "wine glas" is from an older lemmatiser."""
        older = {("wine", "glas"): "wine glass"}
        return Vocabulary(self.published, {**self._names, **PAIRS, **older})

    @property
    def _names(self) -> dict[tuple[str, str], str]:
        split = (name.split() for name in self.node_of)
        return {(parts[0], parts[1]): " ".join(parts) for parts in split if len(parts) == 2}


SYNONYMS = Path(__file__).with_name("chair_synonyms.txt")
"""The synonyms that ship with cdkit: those of CHAIR's authors."""


def read_synonyms(source: Source) -> Synonyms:
    """The synonyms of a file; a word that stands under two objects belongs to the later one.

    A line that starts with # is a comment.
    """
    node_of: dict[str, str] = {}
    published: dict[str, str] = {}
    for where, line in source.lines():
        if line.startswith("#"):
            continue
        names = [" ".join(name.lower().split()) for name in line.split(",")]
        if not names[0]:
            raise CdkitError(f"{where} names no object: a line is OBJECT, SYNONYM, SYNONYM ...")
        node_of |= {name: names[0] for name in names if name}
        published |= {name.removeprefix(" "): names[0] for name in line.strip().split(",")}
    if not node_of:
        raise CdkitError(f"{source.path} names no object: a line is OBJECT, SYNONYM, SYNONYM ...")
    return Synonyms(node_of, published)


def mentions(words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """The node of each mention, in order, from a caption's lemmas.

    Pairs are merged from left to right, each word in one pair at most; where both "toilet" and
    "seat" are left, every "seat" is dropped; the synonyms are kept.
    """
    merged: list[str] = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        pair = vocabulary.pairs.get((word, rest[-1])) if rest else None
        if pair is not None:
            rest.pop()
        merged.append(word if pair is None else pair)
    if "toilet" in merged:
        merged = [word for word in merged if word != "seat"]
    return [vocabulary.node_of[word] for word in merged if word in vocabulary.node_of]


def simple(caption: str, vocabulary: Vocabulary) -> list[str]:
    """Lemmas without any data: a regular expression for words, and naive rules for plurals.

    A word with hyphens is one word; punctuation marks are words of their own, so that no pair
    reaches over one. A word becomes the first of these that a synonym consists of: itself, its
    singular by `IRREGULAR` (also where that ends a compound), itself without -s, without -es (after
    ch, o, s, sh, x, z), with -y for -ies. Parts of speech do not matter: "trains" is a train where
    it is a verb, "tied" is no tie.
    """
    tokens = re.findall(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]", caption.lower())
    return [_singular(token, vocabulary.words) for token in tokens]


@dataclass(frozen=True)
class Scorer:
    """How a caption becomes lemmas; the version changes where any caption's mentions do.

    `vocabulary` picks how the synonyms file is understood.
    """

    lemmas: Callable[[str, Vocabulary], list[str]]
    vocabulary: Callable[[Synonyms], Vocabulary]
    version: int

    def nodes(self, caption: str, synonyms: Synonyms) -> list[str]:
        """The node of each mention of a caption, in order."""
        vocabulary = self.vocabulary(synonyms)
        return mentions(self.lemmas(caption, vocabulary), vocabulary)


SCORERS: Mapping[str, Scorer] = {
    "simple": Scorer(simple, lambda synonyms: synonyms.plain, version=2),
    "wordnet": Scorer(
        lambda caption, _: wordnet.lemmas(caption), lambda s: s.as_published, version=1
    ),
}


def _singular(word: str, known: Collection[str]) -> str:
    candidates = [word]
    candidates += [
        word.removesuffix(plural) + singular
        for plural, singular in IRREGULAR
        if word.endswith(plural)
    ]
    if word.endswith("s"):
        candidates.append(word[:-1])
    if word.endswith(("ches", "oes", "ses", "shes", "xes", "zes")):  # "skies" are no "ski"
        candidates.append(word[:-2])
    if word.endswith("ies"):
        candidates.append(word[:-3] + "y")
    return next((candidate for candidate in candidates if candidate in known), word)
