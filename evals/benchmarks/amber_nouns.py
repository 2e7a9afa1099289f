"""From a description to its nouns, and which of them AMBER counts as wrong, by named scorers.

The rules are those of AMBER's script (junyangwang0410/AMBER 5e1fd52, inference.py:25-37 and
90-172).
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks import wordnet
from cdkit.evals.benchmarks.object_words import Vocabulary, simple

VECTORS = "en_core_web_lg"
SIMILAR = 0.8
"""The least cosine of the vectors of two words that mean the same: the script's default."""
NEEDS = (
    "the scorer 'official' compares words by spaCy's vectors: pip install 'cdkit[amber]' and "
    f"`python -m spacy download {VECTORS}`, or take the scorer 'listed' or 'simple', whose metrics "
    "have other names, since their numbers differ"
)


@dataclass(frozen=True)
class Judged:
    """What one description says of an image.

    Args:
        nouns: How many of its nouns are objects, repeats included.
        wrong: How many of these are not in the image.
        covered: How many of the objects in the image it names.
        imagined: How many of the objects that people would imagine it names.
    """

    nouns: int
    wrong: int
    covered: int
    imagined: int


@dataclass(frozen=True)
class NounScorer:
    """How nouns are found and compared.

    Args:
        nouns: (description, the words for objects) -> nouns in order.
        alike: Whether two different words mean the same.
        version: Changes whenever the numbers of any description change.
        check: Raises a CdkitError where what it needs is not installed.
    """

    nouns: Callable[[str, Collection[str]], list[str]]
    alike: Callable[[str, str], bool]
    version: int
    check: Callable[[], object] = bool


def judge(
    nouns: Sequence[str],
    truth: Sequence[str],
    imagined: Sequence[str],
    associations: Mapping[str, Sequence[str]],
    safe: Collection[str],
    alike: Callable[[str, str], bool],
) -> Judged:
    """Judge the nouns of one description, in the order of the script's tests.

    An object that stands twice in `truth` is found once at most, and a noun that is associated with
    an earlier object is counted for that one, as in the script.

    Args:
        nouns: Its nouns that are objects.
        truth: The objects in the image.
        imagined: Objects that are not in it, and that people would imagine.
        associations: Object -> other words for it, or for a part of it.
        safe: Words that are never wrong.
        alike: Whether two different words mean the same.
    """
    there, unreal = _words(truth, associations), _words(imagined, associations)
    covered: set[int] = set()
    pictured: set[int] = set()
    wrong = 0
    for noun in nouns:
        if noun in safe:
            continue
        if (found := _first(noun, there, _equal)) is not None:
            covered.add(found)
            continue
        same = functools.partial(_same, alike)
        hits = (_first(noun, unreal, _equal), _first(noun, unreal, same))
        pictured.update(hit for hit in hits if hit is not None)
        if (found := _first(noun, there, same)) is not None:
            covered.add(found)
        else:
            wrong += 1
    return Judged(len(nouns), wrong, len(covered), len(pictured))


def tagged_nouns(text: str, objects: Collection[str]) -> list[str]:
    """The nouns by nltk's tagger as the script finds them: in their letters' case, as singulars."""
    tools = wordnet.tools()
    tags = tools.tags(tools.tokens(text))
    lemmas = [tools.lemma(word, "n") for word, tag in tags if tag.startswith("NN")]
    return [lemma for lemma in lemmas if lemma in objects]


def plain_nouns(text: str, objects: Collection[str]) -> list[str]:
    """The words for objects by CHAIR's scorer `simple`: any case, plurals by rule, no tagger."""
    words = simple(text, Vocabulary(dict.fromkeys(objects, ""), {}))
    return [word for word in words if word in objects]


@functools.cache
def vectors() -> Any:
    """spaCy's pipeline of large vectors, once loaded.

    Raises:
        CdkitError: spaCy or its model is not installed, or the model has no vectors.
    """
    try:
        loaded = importlib.import_module("spacy").load(VECTORS)
    except (ImportError, OSError):
        raise CdkitError(f"{NEEDS} (it is not installed here)") from None
    if not loaded("dog").vector_norm:
        raise CdkitError(f"{NEEDS} (the {VECTORS} that is installed has no vectors)")
    return loaded


@functools.cache
def _vector(word: str) -> Any:
    return vectors()(word)


@functools.lru_cache(maxsize=2**18)
def similar(one: str, two: str) -> bool:
    """Whether the cosine of two words' vectors is above `SIMILAR`; without a vector it is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # spaCy's, for words without a vector
        return bool(_vector(one).similarity(_vector(two)) > SIMILAR)


def _never(one: str, two: str) -> bool:
    return False


def _both() -> None:
    wordnet.tools()
    vectors()


SCORERS: Mapping[str, NounScorer] = {
    "official": NounScorer(tagged_nouns, similar, version=1, check=_both),
    "listed": NounScorer(tagged_nouns, _never, version=1, check=wordnet.tools),
    "simple": NounScorer(plain_nouns, _never, version=1),
}


def _words(
    objects: Sequence[str], associations: Mapping[str, Sequence[str]]
) -> list[tuple[str, int]]:
    """Every word and the number of its object: the associated words of all objects come first."""
    others = [(word, i) for i, name in enumerate(objects) for word in associations[name]]
    return others + [(name, i) for i, name in enumerate(objects)]


def _first(
    noun: str, words: Sequence[tuple[str, int]], same: Callable[[str, str], bool]
) -> int | None:
    return next((number for word, number in words if same(noun, word)), None)


def _equal(one: str, two: str) -> bool:
    return one == two


def _same(alike: Callable[[str, str], bool], one: str, two: str) -> bool:
    return one == two or alike(one, two)
