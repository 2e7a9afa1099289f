"""How an answer to a yes/no question is read: named, versioned parsers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cdkit.errors import CdkitError
from cdkit.interfaces.sample import Answer
from cdkit.registry import unknown

WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")  # "no-one" and "don't" are words of their own
ParsedAnswer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Parser:
    """How an answer is read.

    Args:
        parse: (answer, label) -> "yes", "no" or "unknown"; few parsers use the label.
        version: Changes whenever the reading of any answer changes.
    """

    parse: Callable[[str, str], ParsedAnswer]
    version: int


def strict(text: str, label: str) -> ParsedAnswer:
    """Look for yes or no as a whole word, in any case, in the first sentence.

    A sentence ends at `.`, `!`, `?` or a line break; sentences without a word are skipped.

    Args:
        text: The answer.
        label: Not used.

    Returns:
        "yes" or "no"; "unknown" if the sentence has both or neither.
    """
    sentences = (WORD.findall(part) for part in re.split(r"[.!?\n]", text))
    first = {word.lower() for word in next((words for words in sentences if words), [])}
    if ("yes" in first) == ("no" in first):
        return "unknown"
    return "yes" if "yes" in first else "no"


def anywhere(text: str, label: str) -> ParsedAnswer:
    """Look for yes or no as a whole word, in any case, anywhere in the answer.

    Args:
        text: The answer.
        label: Not used.

    Returns:
        "yes" or "no"; "unknown" if the answer has both or neither.
    """
    words = {word.lower() for word in WORD.findall(text)}
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


def parsed_answer(parser: Parser, answer: Answer, label: str) -> ParsedAnswer:
    """How a parser reads an answer; a thought that has no end is no answer to any of them."""
    return "unknown" if answer.unfinished else parser.parse(answer.text, label)


def check_parsers(given: Sequence[str], known: Mapping[str, Parser], benchmark: str) -> None:
    """Raise unless `given` names one parser or more of `known`, none twice."""
    if not given or len(set(given)) < len(given):
        raise CdkitError(f"parsers are {given}: name one or more, none twice")
    for name in given:
        if name not in known:
            raise CdkitError(unknown(f"parser of {benchmark} answers", name, known))


def parser_first(parser: object, given: Sequence[str]) -> tuple[str, ...]:
    """The parsers with one of them in front: its metrics have the plain names."""
    return (str(parser), *(name for name in given if name != parser))
