"""A packed lesson must be the ordinary prompts of its questions: what is taught is asked."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from cdkit.evals.microworld import WORLD
from cdkit.evals.microworld.checkpoint import build_model, build_processor
from cdkit.evals.microworld.drawing import render
from cdkit.evals.microworld.noisy_captions import Lesson, draw_lesson
from cdkit.evals.microworld.packing import IGNORED, PackedLessons, pack, pixels, visible
from cdkit.evals.microworld.stages import language_logits, see
from cdkit.evals.microworld.text import NEUTRAL_ROLES
from cdkit.evals.microworld.train import words_of
from cdkit.evals.microworld.world import Picture, draw_picture

WORDS = words_of(WORLD)


def lessons(count: int) -> list[tuple[Picture, Lesson]]:
    rng = np.random.default_rng(1)
    pictures = [draw_picture(WORLD, rng) for _ in range(count)]
    drawn = [(picture, draw_lesson(WORLD, picture, rng)) for picture in pictures]
    picture, lesson = drawn[0]
    return [(picture, Lesson(NEUTRAL_ROLES[0], lesson.questions)), *drawn[1:]]


def prompt(lesson: Lesson, question: str) -> str:
    system = f"{lesson.system} " if lesson.system else ""
    return f"{system}USER: <image>\n{question} ASSISTANT:"


@torch.no_grad()
def test_each_block_equals_the_ordinary_prompt_of_its_question() -> None:
    taught = lessons(2)
    batch = pack(WORLD, WORDS, taught)
    model = build_model(WORLD, seed=3).train(False)
    processor: Any = build_processor(WORLD)
    projected = model.model.multi_modal_projector(see(model, batch.pixel_values))
    packed = model.lm_head(language_logits(model, batch, projected, WORDS.index["<image>"])[-1])
    for row, (picture, lesson) in enumerate(taught):
        image = Image.fromarray(render(WORLD, picture))
        for number, question in enumerate(lesson.questions, 1):
            text = prompt(lesson, question.text)
            inputs = processor(images=[image], text=[text], return_tensors="pt")
            assert torch.allclose(inputs["pixel_values"], batch.pixel_values[row], atol=1e-5)
            alone = model(**inputs).logits[0, -1]
            places = ((batch.block[row] == number) & (batch.target[row] != IGNORED)).nonzero()
            assert torch.allclose(packed[row, places[0, 0]], alone, atol=1e-3)


def test_targets_spell_the_answers() -> None:
    taught = lessons(4)
    batch = pack(WORLD, WORDS, taught)
    for row, (_, lesson) in enumerate(taught):
        for number, question in enumerate(lesson.questions, 1):
            block = batch.block[row] == number
            told = batch.target[row][block & (batch.target[row] != IGNORED)].tolist()
            assert told == [*WORDS(question.answer), WORDS.index["<eos>"]]
            assert (batch.weight[row][block] > 0).sum() == len(told)


def test_a_noun_line_points_at_the_noun_and_knows_the_thing() -> None:
    taught = lessons(6)
    batch = pack(WORLD, WORDS, taught)
    assert len(batch.nouns) > 0
    for row, place, line, column, count, color in batch.nouns.tolist():
        picture = taught[row][0]
        word = int(batch.input_ids[row, place])
        plurals = {WORDS.index[_plural(name)]: i for i, name in enumerate(WORLD.categories)}
        singulars = {WORDS.index[name]: i for i, name in enumerate(WORLD.categories)}
        category = (singulars | plurals)[word]
        assert picture.counts()[category] == count + 1
        thing = picture.only(category)
        if thing is None:
            assert {line, column, color} == {IGNORED}
        else:
            assert (line, column, color) == (thing.row, thing.column, thing.color)


def test_a_question_sees_the_image_and_itself_only() -> None:
    block = torch.tensor([[0, 0, 1, 1, 2, 2, -1, -1]])
    seen = visible(block)[0, 0].int().tolist()
    assert seen[1] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert seen[3] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert seen[5] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert seen[7] == [0, 0, 0, 0, 0, 0, 1, 1]


def test_pixels_lie_in_the_processor_s_range() -> None:
    picture = draw_picture(WORLD, np.random.default_rng(0))
    values = pixels(WORLD, [picture])
    assert values.shape == (1, 3, 64, 64)
    assert -1 <= values.min() < values.max() <= 1


def test_packing_is_pure() -> None:
    first, again = (pack(WORLD, WORDS, lessons(3)) for _ in range(2))
    assert isinstance(first, PackedLessons)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def _plural(noun: str) -> str:
    return "people" if noun == "person" else noun + "s"
