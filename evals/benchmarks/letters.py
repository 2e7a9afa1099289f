"""How an answer to a question with lettered choices is read: named, versioned parsers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cdkit.errors import CdkitError
from cdkit.interfaces.sample import Answer
from cdkit.registry import unknown

UNKNOWN = "unknown"
LETTERS = "ABCDE"
ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
FIRST = re.compile(r"[\s*_`\"']*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[*_]*(?:[.):,]|\s*\n))")
NAMED = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+is|\s+should\s+be|\s*:)?[\s:*_`\"'(\[]*"
    # "the answer is a dog" names no letter, and "A or B" names none either
    r"([A-Z]\b(?!['\u2019]|\s*(?:or|and|/|,)\s*[A-Z]\b)|[a-z](?=\W*$))"
)
LLAVA = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class LetterParser:
    """How an answer is read.

    Args:
        parse: (answer, how many choices there are) -> the letter of a choice, or "unknown".
        version: Changes whenever the reading of any answer changes.
    """

    parse: Callable[[str, int], str]
    version: int


def letter(text: str, choices: int) -> str:
    """Look for the letter of a choice where an answer is given.

    In this order: the answer is one letter, in any case, with or without marks around it ("b",
    "(B)"); it begins with a capital in brackets or before one of `. ) : ,` or a line's end ("B. A
    dog"); it names letters after "answer", "option" or "choice" ("the answer is B"), all of them
    the same.

    Args:
        text: The answer.
        choices: How many choices the question has.

    Returns:
        The capital letter; "unknown" where there is none, or none of these choices.
    """
    known = LETTERS[:choices]
    if (alone := ALONE.fullmatch(text)) is not None:
        return _known(alone[1].upper(), known)
    if (first := FIRST.match(text)) is not None:
        return _known(next(group for group in first.groups() if group), known)
    named = {found.upper() for found in NAMED.findall(text) if found.upper() in known}
    return named.pop() if len(named) == 1 else UNKNOWN


def llava(text: str, choices: int) -> str:
    """Read an answer as LLaVA's script for ScienceQA does.

    haotian-liu/LLaVA c121f04, llava/eval/eval_science_qa.py:28-36 and 65-75: the answer is a
    letter, begins with one and ". ", or says "The answer is X." once, to the letter.

    Args:
        text: The answer.
        choices: How many choices the question has.

    Returns:
        The capital letter; "unknown" where there is none, or none of these choices.
    """
    if text and text in tuple(LETTERS):
        return _known(text, LETTERS[:choices])
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return _known(text[0], LETTERS[:choices])
    found = LLAVA.findall(text)
    return _known(found[0], LETTERS[:choices]) if len(found) == 1 else UNKNOWN


PARSERS: Mapping[str, LetterParser] = {
    "letter": LetterParser(letter, version=1),
    "llava": LetterParser(llava, version=1),
}


def parsed_letter(parser: LetterParser, answer: Answer, choices: int) -> str:
    """How a parser reads an answer; a thought that has no end is no answer to any of them."""
    return UNKNOWN if answer.unfinished else parser.parse(answer.text, choices)


def check_letter_parsers(given: Sequence[str], benchmark: str) -> None:
    """Raise unless `given` names one parser or more, none twice."""
    if not given or len(set(given)) < len(given):
        raise CdkitError(f"parsers are {given}: name one or more, none twice")
    for name in given:
        if name not in PARSERS:
            raise CdkitError(unknown(f"parser of {benchmark} answers", name, PARSERS))


def _known(found: str, known: str) -> str:
    return found if found in known else UNKNOWN
