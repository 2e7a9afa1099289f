"""AMBER's generative part: the official script's numbers, its rules by hand, each fault of a file.

The golden numbers were printed by junyangwang0410/AMBER 534babf, inference.py, on the files below,
with stand-ins for nltk and spaCy that do what the scorer of these tests does.
"""

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from amber_files import RELATION, SAFE, SHOWN, write_amber, write_amber_generative
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks import amber_nouns, wordnet
from cdkit.evals.benchmarks.amber_generative import AMBERGenerative, amber_score
from cdkit.evals.benchmarks.amber_nouns import Judged, NounScorer, judge, similar
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.benchmarks.score_captions import score_amber_generative
from cdkit.interfaces.sample import Answer

PAIRS = (("puppy", "dog"), ("seat", "table"), ("water", "ship"), ("mug", "cloud"), ("boat", "bird"))
ALIKE = {frozenset(pair) for pair in PAIRS}
SINGULAR = {"boats": "boat", "trees": "tree"}
TEXTS = (
    "a man and a woman in a tree , bush and light , a puppy , cloud and sun",
    "boats on water near a seat and a ship , a dog , Sky hill",
    "a table and a seat on a line",
)
DENIED = ("Yes", "No", "Yes", "No", "No", "no", "Perhaps", "No")
OFFICIAL = {"chair": 33.3, "cover": 62.5, "hal": 66.7, "cog": 60.0}
OFFICIAL_F1 = 66.7


def split_nouns(text: str, objects: Collection[str]) -> list[str]:
    words = [SINGULAR.get(word, word) for word in text.split() if word != "desk"]
    return [word for word in words if word in objects]


def close(one: str, two: str) -> bool:
    return frozenset((one, two)) in ALIKE


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official scorer, with other nouns and vectors."""
    scorer = NounScorer(split_nouns, close, version=1)
    monkeypatch.setitem(amber_nouns.SCORERS, "official", scorer)


def answers(*texts: str) -> dict[str, Answer]:
    return {str(i): Answer(text) for i, text in enumerate(texts, start=1)}


@pytest.mark.usefixtures("stand_in")
def test_the_official_numbers(tmp_path: Path) -> None:
    benchmark = AMBERGenerative(write_amber_generative(tmp_path), scorer="official")
    score = benchmark.score(answers(*TEXTS))
    rounded = {name: score[name] * 100 for name in OFFICIAL}
    # the script adds .001 to each denominator, and rounds
    assert rounded == pytest.approx(OFFICIAL, abs=0.08)
    assert (score["unknown"], score["truncated"]) == (0, 0)
    assert benchmark.versions() == {"official": 1}
    assert [s.prompt for s in benchmark.samples()] == ["Describe this image."] * 3
    assert len(benchmark.sources()) == 4


@pytest.mark.usefixtures("stand_in")
def test_the_amber_score_of_both_parts(tmp_path: Path) -> None:
    write_amber(tmp_path)
    benchmark = AMBERGenerative(write_amber_generative(tmp_path), scorer="official")
    rows = [{"id": i, "response": text} for i, text in enumerate(TEXTS, start=1)]
    rows += [{"id": 1005 + i, "response": text} for i, text in enumerate(DENIED)]
    path = tmp_path / "answers.json"  # one file for all questions, as the script takes it
    path.write_text(json.dumps(rows))
    scored = score_amber_generative(benchmark, path, discriminative=path)
    found = {name: value for name, value in scored.metrics.items() if value is not None}
    assert found["discriminative.f1"] * 100 == pytest.approx(OFFICIAL_F1, abs=0.05)
    golden = (100 - OFFICIAL["chair"] + OFFICIAL_F1) / 2
    assert found["amber_score"] * 100 == pytest.approx(golden, abs=0.08)
    assert found["amber_score"] == amber_score(found["chair"], found["discriminative.f1"])
    assert scored.counted == {"descriptions": 3, "images": 3, "yes/no questions": 8}


def test_only_the_official_scorer_has_the_official_names(tmp_path: Path) -> None:
    benchmark = AMBERGenerative(write_amber_generative(tmp_path))
    score = benchmark.score(answers("Two men, SEAS and trees", "a dog", "<think>a table"))
    # "men" is the man of a person; "trees" is found as the forest's first; "sea" and "dog" are not
    # there; a thought without an end names nothing
    assert score == pytest.approx(
        {
            "simple.chair": 2 / 4,
            "simple.cover": 2 / 8,
            "simple.hal": 2 / 3,
            "simple.cog": 0,
            "unknown": 1,
            "truncated": 0,
        }
    )


def by_the_script(
    nouns: list[str], truth: list[str], imagined: list[str], safe: Collection[str]
) -> Judged:
    """The rules once more, with a flag for each word, in plain loops."""
    sides = []
    for names in (truth, imagined):
        words, owner = [], []
        for place, name in enumerate(names):
            for other in RELATION[name]:
                words.append(other)
                owner.append(place)
        for place, name in enumerate(names):
            words.append(name)
            owner.append(place)
        sides.append((words, owner, [False] * len(names)))
    (there, there_owner, there_flag), (unreal, unreal_owner, unreal_flag) = sides
    wrong = 0
    for noun in nouns:
        if noun in safe:
            pass
        elif noun in there:
            there_flag[there_owner[there.index(noun)]] = True
        else:
            if noun in unreal:
                unreal_flag[unreal_owner[unreal.index(noun)]] = True
            for place, word in enumerate(unreal):
                if word == noun or close(noun, word):
                    unreal_flag[unreal_owner[place]] = True
                    break
            like = [place for place, word in enumerate(there) if close(noun, word)]
            if like:
                there_flag[there_owner[like[0]]] = True
            else:
                wrong += 1
    return Judged(len(nouns), wrong, sum(there_flag), sum(unreal_flag))


NAMES = st.sampled_from(sorted(RELATION))
WORDS = st.sampled_from(sorted({*RELATION, *(w for words in RELATION.values() for w in words)}))


@given(
    st.lists(WORDS, max_size=8),
    st.lists(NAMES, max_size=5),
    st.lists(NAMES, max_size=4),
)
def test_the_rules_in_plain_loops(nouns: list[str], truth: list[str], imagined: list[str]) -> None:
    relation: Mapping[str, list[str]] = RELATION
    found = judge(nouns, truth, imagined, relation, SAFE, close)
    assert found == by_the_script(nouns, truth, imagined, SAFE)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("tree", (1, 0, 1, 0)),  # the forest's tree, since associated words come first
        ("light", (1, 0, 0, 0)),  # a safe word, though the imagined sun has it
        ("sun", (1, 1, 0, 1)),
        ("dog", (1, 1, 0, 0)),
    ],
)
def test_one_noun(noun: str, expected: tuple[int, int, int, int]) -> None:
    truth, imagined = SHOWN[0]
    assert judge([noun], truth, imagined, RELATION, SAFE, close) == Judged(*expected)


def test_an_object_that_stands_twice_is_found_once() -> None:
    truth, imagined = SHOWN[1]
    assert judge(["ship", "boat", "ship"], truth, imagined, RELATION, SAFE, close).covered == 1


def test_nouns_by_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags that begin with NN, letters as they are, lemmas of nouns."""
    tags = {"Sky": "NNP", "trees": "NNS", "sea": "VB"}
    lemmas: list[tuple[str, str]] = []

    def lemma(word: str, part: str) -> str:
        lemmas.append((word, part))
        return word.removesuffix("s")

    tools = wordnet.NltkTools(str.split, lambda ts: [(t, tags.get(t, "DT")) for t in ts], lemma)
    monkeypatch.setattr(wordnet, "tools", lambda: tools)
    assert amber_nouns.tagged_nouns("a Sky trees sea", {"sky", "tree", "sea"}) == ["tree"]
    assert lemmas == [("Sky", "n"), ("trees", "n")]


class Word:
    vector_norm = 1.0

    def __init__(self, text: str) -> None:
        self.text = text

    def similarity(self, other: "Word") -> float:
        return {"near": 0.81, "edge": 0.8}.get(other.text, 0.0)


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("spacy")
    monkeypatch.setitem(sys.modules, "spacy", module)
    for cache in (amber_nouns.vectors, amber_nouns._vector, similar):
        cache.cache_clear()
        monkeypatch.setattr(cache, "__doc__", cache.__doc__)
    return module


def test_words_are_alike_above_the_threshold(spacy: Any) -> None:
    spacy.load = lambda name: {"en_core_web_lg": Word}[name]
    assert similar("x", "near") and not similar("x", "edge") and not similar("x", "far")
    for cache in (amber_nouns.vectors, amber_nouns._vector, similar):
        cache.cache_clear()


def test_without_vectors_the_official_scorer_refuses(
    spacy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordnet, "tools", lambda: None)
    path = write_amber_generative(tmp_path)
    todo = (
        r"the scorer 'official' compares words by spaCy's vectors: "
        r"pip install 'cdkit\[amber\]' and `python -m spacy download en_core_web_lg`, "
        r"or take the scorer 'listed' or 'simple'"
    )

    def missing(name: str) -> None:
        raise OSError(f"can't find {name}")

    spacy.load = missing
    with pytest.raises(CdkitError, match=todo):
        AMBERGenerative(path, scorer="official")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(CdkitError, match=todo):
        AMBERGenerative(path, scorer="official")
    bare = type("Bare", (Word,), {"vector_norm": 0.0})
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    spacy.load = lambda name: bare
    with pytest.raises(CdkitError, match="the en_core_web_lg that is installed has no vectors"):
        AMBERGenerative(path, scorer="official")
    with pytest.raises(CdkitError, match=r"no scorer of AMBER's descriptions is called 'oficial'"):
        AMBERGenerative(path, scorer="oficial")


def test_empty_descriptions_are_warned_of(tmp_path: Path) -> None:
    benchmark = AMBERGenerative(write_amber_generative(tmp_path))
    said = answers("", "", "a ship")
    assert "2 of 3 answers (67%) are empty" in doubts(benchmark.tally(said), said)[0]


QUERY, TRUTH = "query/query_generative.json", "annotations.json"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (TRUTH, '"sky",', '"moon",', r"\[0\] has the object 'moon', which is not in"),
        (TRUTH, '"generative"', '"relation"', r"\[0\] asks for no description \(id 1 is"),
        (TRUTH, '"id": 1,', '"id": 77,', r"\[0\]: .*annotations.json has no annotation of"),
        (TRUTH, '"hallu"', '"halu"', r"\[0\] has None as 'hallu': it needs a list"),
        (QUERY, '"id": 2', '"id": 1', r"\[1\] has the id 1 again"),
        (QUERY, "AMBER_1.jpg", "../x.jpg", r"\[0\]: the image name '../x.jpg'"),
        (QUERY, '"query"', '"q"', r"\[0\]: .*lacks 'query'"),
        ("relation.json", "[", "3, [", "relation.json is not valid JSON"),
        ("safe_words.txt", "light\nline", "", "safe_words.txt is empty"),
    ],
)  # fmt: skip
def test_faults_of_files(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    query = write_amber_generative(tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CdkitError, match=message):
        AMBERGenerative(query)


def test_a_file_of_the_release_that_is_not_there(tmp_path: Path) -> None:
    query = write_amber_generative(tmp_path)
    (tmp_path / "relation.json").unlink()
    with pytest.raises(
        CdkitError, match=r"has no relation.json beside it .* file of associated wo"
    ):
        AMBERGenerative(query)
