"""How much a caption repeats itself: distinct words and pairs of words, and repeated 4-grams.

Distinct-n is counted within each caption. Li et al. (2016) count it over all texts together: that
number falls with the number of texts, and falls again where texts are resampled, so it would have
no valid interval.
"""

from collections.abc import Mapping, Sequence

from cdkit.evals.benchmarks.column_metrics import share_of
from cdkit.evals.benchmarks.yes_no import WORD
from cdkit.interfaces.tally import OfSums

COLUMNS = ("distinct_1", "grams_1", "distinct_2", "grams_2", "repeated_4", "grams_4")
SPAN = 4
"""Words of the n-grams whose repetition is counted, as in Welleck et al. (2020)."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation marks."""
    return WORD.findall(text.lower())


def grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every sequence of `n` words that follow one another."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repetition(text: str) -> dict[str, float]:
    """Count the n-grams of one text.

    Args:
        text: The caption.

    Returns:
        For each of `COLUMNS` its number: different words and all words, different and all pairs,
        4-grams that stood in the text before and all 4-grams.
    """
    words = words_of(text)
    pairs, spans = grams(words, 2), grams(words, SPAN)
    counts = (len(set(words)), len(words), len(set(pairs)), len(pairs))
    values = (*counts, len(spans) - len(set(spans)), len(spans))
    return dict(zip(COLUMNS, map(float, values), strict=True))


METRICS: Mapping[str, OfSums] = {
    "distinct_1": share_of("distinct_1", "grams_1"),
    "distinct_2": share_of("distinct_2", "grams_2"),
    "repetition_4": share_of("repeated_4", "grams_4"),
}
"""Summed over captions: n-grams that are new in their caption, in all; repeated 4-grams in all."""
