"""What a reader must know before believing a table: answers that are none, or are cut off."""

from collections.abc import Iterator, Mapping

from cdkit.interfaces.answer_text import has_thought
from cdkit.interfaces.sample import Answer
from cdkit.interfaces.tally import Tally

MOST = 0.05
"""The share of answers above which a warning is given."""
ADVICE: Mapping[str, str] = {
    "unknown": "they count as wrong, or in a caption as no mention: see what the model says before "
    "you read the other numbers",
    "empty": "they mention nothing wrong: a low share of wrong ones says nothing about the model",
    "truncated": "the token limit ended them: a higher --max-new-tokens may change the numbers",
}
"""Columns of a tally that hold 1 for such an answer -> what to do."""
SHOWN = 80  # characters of an answer


def doubts(tally: Tally, answers: Mapping[str, Answer]) -> tuple[str, ...]:
    """Warnings about the answers of a tally.

    Args:
        tally: The tally; of its columns, those that `ADVICE` names are looked at.
        answers: Sample id -> answer, as the model gave it.

    Returns:
        A text for each kind of which there are more than `MOST`, with one such answer; and one
        where some answers have no yes score.
    """
    return (*_many(tally, answers), *_unscored(tally, answers))


def _many(tally: Tally, answers: Mapping[str, Answer]) -> Iterator[str]:
    total = len(tally.samples)
    for kind, advice in ADVICE.items():
        column = tally.columns.get(kind)
        if column is None or (count := int(column.sum())) <= MOST * total:
            continue
        first = tally.samples[int(column.argmax())].id
        yield (
            f"{count:,} of {total:,} answers ({count / total:.0%}) are {kind}, such as that to "
            f"{first}: {_short(answers[first].text)}; {advice}"
        )


def _unscored(tally: Tally, answers: Mapping[str, Answer]) -> Iterator[str]:
    mine = [answers[sample.id] for sample in tally.samples]
    bare = [answer for answer in mine if answer.yes_score is None]
    if any(s.target for s in tally.samples) and any(has_thought(a.text) for a in bare):
        yield (
            f"{len(bare):,} of {len(mine):,} answers have no yes score, since a thought stands "
            "before them: no metric is made of yes scores"
        )


def _short(text: str) -> str:
    """In quotes, so that an empty answer is seen; the end of a long one, where it was cut off."""
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}")
