from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.microworld.polling import SPLITS, Poll, build_polls, pope_rows

NAMES = tuple("abcdefghijkl")
contents = st.dictionaries(
    st.text("0123456789", min_size=3, max_size=5),
    st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)),
    max_size=12,
)
seeds = st.integers(0, 2**32 - 1)


@given(contents, st.sampled_from(SPLITS), seeds)
def test_three_there_and_three_not(found: dict[str, list[str]], split: str, seed: int) -> None:
    polls = build_polls(found, NAMES, split, seed)
    enough = [i for i, names in found.items() if 3 <= len(names) <= len(NAMES) - 3]
    assert [poll.image for poll in polls] == enough
    for poll in polls:
        assert len(set(poll.present)) == len(set(poll.absent)) == 3
        assert set(poll.present) <= set(found[poll.image])
        assert not set(poll.absent) & set(found[poll.image])


@given(contents, seeds)
def test_the_splits_ask_about_the_same_present_things(
    found: dict[str, list[str]], seed: int
) -> None:
    first, *others = [build_polls(found, NAMES, split, seed) for split in SPLITS]
    for other in others:
        assert [(p.image, p.present) for p in first] == [(p.image, p.present) for p in other]


@given(contents, seeds)
def test_popular_asks_for_the_most_frequent_absent(found: dict[str, list[str]], seed: int) -> None:
    counts = Counter(name for names in found.values() for name in names)
    for poll in build_polls(found, NAMES, "popular", seed):
        rest = set(NAMES) - set(found[poll.image]) - set(poll.absent)
        assert min(counts[n] for n in poll.absent) >= max((counts[n] for n in rest), default=0)


@given(contents, seeds)
def test_adversarial_asks_for_what_comes_along(found: dict[str, list[str]], seed: int) -> None:
    for poll in build_polls(found, NAMES, "adversarial", seed):
        here = found[poll.image]

        def likely(name: str, here: list[str] = here) -> float:
            """Sum over the present things of P(name | thing), counted image by image."""
            total = 0.0
            for thing in here:
                having = [names for names in found.values() if thing in names]
                total += sum(name in names for names in having) / len(having)
            return total

        rest = set(NAMES) - set(here) - set(poll.absent)
        most = max((likely(n) for n in rest), default=0.0)
        assert min(map(likely, poll.absent)) >= most - 1e-9


def test_adversarial_differs_from_popular_where_company_differs() -> None:
    found = {f"k{i}": ["fork", "cup", "bowl", "pizza"] for i in range(2)}
    found |= {f"s{i}": ["car", "bus", "dog"] for i in range(9)}
    found["new"] = ["fork", "cup", "bowl"]
    names = ("fork", "cup", "bowl", "pizza", "car", "bus", "dog", "cat")
    popular = {p.image: p.absent for p in build_polls(found, names, "popular", 0)}
    adversarial = {p.image: p.absent for p in build_polls(found, names, "adversarial", 0)}
    assert popular["new"] == ("car", "bus", "dog")
    assert adversarial["new"][0] == "pizza"


def test_random_asks_uniformly() -> None:
    found = {str(i): ["a", "b", "c"] for i in range(3000)}
    polls = build_polls(found, NAMES, "random", 1)
    counts = Counter(name for poll in polls for name in poll.absent)
    assert set(counts) == set(NAMES) - {"a", "b", "c"}
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_rows_take_turns_and_count_from_one() -> None:
    rows = pope_rows([Poll("x.png", ("a", "b", "c"), ("d", "e", "f"))])
    assert [row["question_id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["label"] for row in rows] == ["yes", "no"] * 3
    assert rows[1]["text"] == "Is there a d in the image?"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(CdkitError, match="no POPE split 'hard': choose one of random, popular, ad"):
        build_polls({}, NAMES, "hard", 0)
