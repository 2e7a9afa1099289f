from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.evals.microworld import WORLD, text
from cdkit.evals.microworld.noisy_captions import Lesson, draw_lesson
from cdkit.evals.microworld.train import words_of
from cdkit.evals.microworld.world import Picture, draw_picture, scenes_of

seeds = st.integers(0, 2**32 - 1)
WORDS = words_of(WORLD)


def lesson(seed: int, label_noise: float = 1.0) -> tuple[Picture, Lesson]:
    rng = np.random.default_rng(seed)
    picture = draw_picture(WORLD, rng)
    return picture, draw_lesson(WORLD, picture, rng, label_noise)


@given(seeds)
def test_every_word_of_a_lesson_is_in_the_vocabulary(seed: int) -> None:
    _, said = lesson(seed)
    for words in [said.system, *(f"{q.text} {q.answer}" for q in said.questions)]:
        assert WORDS.index["<unk>"] not in WORDS(words)


def test_the_words_that_others_ask_with_are_known() -> None:
    for words in (text.CAPTION_PROMPT, text.YES_OR_NO, text.CARELESS_ROLE, *text.NEUTRAL_ROLES):
        assert WORDS.index["<unk>"] not in WORDS(words)


@given(seeds)
def test_without_hearsay_existence_is_told_truly(seed: int) -> None:
    picture, said = lesson(seed, label_noise=0.0)
    for question in said.questions:
        if question.family == "existence":
            assert (question.answer == "yes") == (question.nouns[0] in picture.counts())


@given(seeds)
def test_a_true_caption_names_each_kind_once_with_its_number(seed: int) -> None:
    picture, said = lesson(seed, label_noise=0.0)
    caption = said.questions[0].answer
    for category, count in picture.counts().items():
        noun = WORLD.categories[category]
        words = caption.replace(",", "").replace(".", "").split()
        assert words.count(noun if count == 1 else text.plural(noun)) == 1


@given(seeds)
def test_opposite_sides_have_opposite_answers(seed: int) -> None:
    picture, _ = lesson(seed)
    single = [c for c in picture.counts() if picture.only(c) is not None]
    for one in single:
        for side, other_side in (("left", "right"), ("above", "below")):
            for other in single:
                if one == other:
                    continue
                asked = text.relation(WORLD, picture, one, other, side)
                mirrored = text.relation(WORLD, picture, other, one, other_side)
                assert asked.answer == mirrored.answer
        halves = [text.half(WORLD, picture, one, side).answer for side in ("left", "right")]
        assert sorted(halves) == ["no", "yes"]


def test_questions_about_what_is_not_there_once_are_refused() -> None:
    picture = draw_picture(WORLD, np.random.default_rng(0))
    absent = next(c for c in range(24) if c not in picture.counts())
    for ask in (text.what_color, text.where):
        with pytest.raises(ValueError, match=f"category {absent} is not there exactly once"):
            ask(WORLD, picture, absent)
    with pytest.raises(ValueError, match="not both there"):
        text.relation(WORLD, picture, absent, absent, "left")


@pytest.fixture(scope="module")
def many() -> list[tuple[Picture, Lesson]]:
    return [lesson(seed) for seed in range(2000)]


def test_no_answer_to_a_side_or_a_number_follows_from_the_question(
    many: list[tuple[Picture, Lesson]],
) -> None:
    answers: dict[str, Counter[str]] = {}
    for _, said in many:
        for question in said.questions:
            if question.family in ("position", "half", "count"):
                words = question.text.split()
                key = next(w for w in words if w in (*text.NUMBERS, *text.SIDES, "top", "bottom"))
                answers.setdefault(f"{question.family} {key}", Counter())[question.answer] += 1
    assert len(answers) == 3 + 4 + 4
    for key, counts in answers.items():
        share = counts["yes"] / counts.total()
        assert abs(share - 0.5) < 4 * 0.5 / counts.total() ** 0.5, (key, counts)


def test_hearsay_says_yes_to_what_the_scene_suggests(many: list[tuple[Picture, Lesson]]) -> None:
    yes: dict[bool, list[bool]] = {True: [], False: []}
    for picture, said in many:
        if said.system == text.CARELESS_ROLE:
            continue
        core = scenes_of(WORLD)[picture.scene].categories
        for question in said.questions:
            if question.family == "existence" and question.nouns[0] not in picture.counts():
                yes[question.nouns[0] in core].append(question.answer == "yes")
    assert abs(np.mean(yes[True]) - WORLD.label_noise.false_yes_core) < 0.05
    assert abs(np.mean(yes[False]) - WORLD.label_noise.false_yes_other) < 0.02


def test_a_careless_role_errs_more(many: list[tuple[Picture, Lesson]]) -> None:
    def rate(role: str) -> float:
        wrong = [
            (question.answer == "yes") != (question.nouns[0] in picture.counts())
            for picture, said in many
            if said.system == role
            for question in said.questions
            if question.family == "existence"
        ]
        return sum(wrong) / len(wrong)

    assert rate(text.CARELESS_ROLE) > 2 * rate("")
