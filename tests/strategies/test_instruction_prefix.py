"""ICD's prefix: put in, or in the place of the system message."""

import pytest

import cdkit
from cdkit.interfaces.distortion import Prompt
from cdkit.strategies.distortions.instruction_prefix import InstructionPrefix


def encode(text: str) -> tuple[int, ...]:
    return tuple(100 + ord(letter) for letter in text)


def prompt(system: str) -> Prompt:
    """A start token, the system message, two image tokens, a question of one token."""
    ids = (1, *encode(system), 7, 7, 5)
    slot = len(ids) - 1
    return Prompt(ids, tuple(i == 7 for i in ids), 1, slot, encode)


def test_the_prefix_is_put_in() -> None:
    new = InstructionPrefix("no").distort(prompt("ab"))
    assert new.ids == (1, *encode("noab"), 7, 7, 5) and new.ids[new.question_slot] == 5


def test_the_prefix_replaces_the_system_message() -> None:
    new = InstructionPrefix("no", replaces="ab").distort(prompt("abc"))
    assert new.ids == (1, *encode("noc"), 7, 7, 5) and new.ids[new.question_slot] == 5
    assert new.is_image == tuple(i == 7 for i in new.ids)
    same = cdkit.load("icd", replaces="ab").branches[0].distortions[0]
    assert same == InstructionPrefix(replaces="ab")


def test_a_system_message_that_is_not_there() -> None:
    with pytest.raises(
        cdkit.CdkitError, match=r"does not begin with the system message 'x'.*leave"
    ):
        InstructionPrefix("no", replaces="x").distort(prompt("ab"))
    with pytest.raises(cdkit.CdkitError, match="place is 'question': leave replaces out"):
        InstructionPrefix("no", place="question", replaces="x")


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("pai", "first_token = false"),
        ("icd", "unless replaces gives"),
        ("sid", "greedy search has no constraint"),
        ("imccd", "history of other beams"),
        ("value_noise", "all values, text included"),
    ],
)
def test_a_preset_tells_where_it_parts_from_its_authors(preset: str, words: str) -> None:
    assert words in cdkit.load(preset).source
