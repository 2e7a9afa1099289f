"""Repetition of captions: counted by hand, and by plain counting on random words."""

from hypothesis import given
from hypothesis import strategies as st

from cdkit.evals.benchmarks.repetition import METRICS, repetition


def test_counts_by_hand() -> None:
    found = repetition("A dog runs. A dog runs, a dog's ball!")
    # a dog runs a dog runs a dog's ball
    assert found == {
        "distinct_1": 5,  # "dog's" is a word of its own
        "grams_1": 9,
        "distinct_2": 5,  # a dog, dog runs, runs a, a dog's, dog's ball
        "grams_2": 8,
        "repeated_4": 1,  # a dog runs a
        "grams_4": 6,
    }
    assert repetition("go on and on " * 3)["repeated_4"] == 9 - 4
    assert set(repetition("").values()) == {0}


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_by_plain_counting(letters: list[str]) -> None:
    found = repetition(" ".join(letters))
    for n, new, whole in ((1, "distinct_1", "grams_1"), (2, "distinct_2", "grams_2")):
        seen: list[str] = []
        for i in range(len(letters) - n + 1):
            seen.append("".join(letters[i : i + n]))
        assert (found[new], found[whole]) == (len(set(seen)), len(seen))
    spans = ["".join(letters[i : i + 4]) for i in range(len(letters) - 3)]
    again = sum(span in spans[:i] for i, span in enumerate(spans))
    assert (found["repeated_4"], found["grams_4"]) == (again, len(spans))
    assert set(METRICS) == {"distinct_1", "distinct_2", "repetition_4"}
