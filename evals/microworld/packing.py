"""Lessons as tensors: one row a picture, its questions side by side behind the shared image.

A row is `<bos> [system] user <image>*n` and then the questions as blocks. A block sees the prefix
and itself only, and its positions follow on the prefix, so that each block equals the ordinary
prompt of its question alone.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.evals.microworld.drawing import patch_labels, render
from cdkit.evals.microworld.noisy_captions import Lesson
from cdkit.evals.microworld.text import WorldQuestion, plural
from cdkit.evals.microworld.world import Picture, World

IGNORED = -100
PADDING = -1


class PackedLessons(NamedTuple):
    """A batch. `block` is 0 in the prefix, n in the n-th question, -1 in the padding.

    `target` is the token to say next (-100: not trained) and counts `weight` times. `nouns` has one
    line a trained noun: batch index, position, then row, column, count - 1, colour (-100: unknown).
    """

    pixel_values: Float[Tensor, "batch 3 height width"]
    input_ids: Int[Tensor, "batch text"]
    position_ids: Int[Tensor, "batch text"]
    block: Int[Tensor, "batch text"]
    target: Int[Tensor, "batch text"]
    weight: Float[Tensor, "batch text"]
    nouns: Int[Tensor, "nouns 6"]
    categories: Int[Tensor, "batch image"]
    colors: Int[Tensor, "batch image"]


class Words:
    """Token ids of the packing's pieces, by the real tokenizer."""

    def __init__(self, encode: Callable[[str], Sequence[int]], vocabulary: Sequence[str]) -> None:
        self._encode = lru_cache(maxsize=20_000)(lambda text: tuple(encode(text)))
        self.index = {word: i for i, word in enumerate(vocabulary)}

    def __call__(self, text: str) -> tuple[int, ...]:
        return self._encode(text)


def pixels(world: World, pictures: Sequence[Picture]) -> Float[Tensor, "batch 3 height width"]:
    """What the processor would make of the rendered photos: channels first, in -1..1."""
    images = np.stack([render(world, picture) for picture in pictures])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(world: World, words: Words, lessons: Sequence[tuple[Picture, Lesson]]) -> PackedLessons:
    """One row a lesson, padded on the right."""
    rows = [_Row(world, words, picture, lesson) for picture, lesson in lessons]
    length = max(len(row.ids) for row in rows)
    labels = [patch_labels(world, picture) for picture, _ in lessons]

    def stack(name: str, filler: int) -> np.ndarray:
        lines = [getattr(row, name) for row in rows]
        return np.array([line + [filler] * (length - len(line)) for line in lines])

    nouns = [[batch, *noun] for batch, row in enumerate(rows) for noun in row.nouns]
    return PackedLessons(
        pixels(world, [picture for picture, _ in lessons]),
        torch.from_numpy(stack("ids", words.index["<pad>"])),
        torch.from_numpy(stack("positions", 0)),
        torch.from_numpy(stack("block", PADDING)),
        torch.from_numpy(stack("target", IGNORED)),
        torch.from_numpy(stack("weight", 0)).float(),
        torch.tensor(nouns, dtype=torch.long).reshape(-1, 6),
        torch.from_numpy(np.stack([category for category, _ in labels])),
        torch.from_numpy(np.stack([color for _, color in labels])),
    )


def visible(block: Int[Tensor, "batch text"]) -> Bool[Tensor, "batch 1 text text"]:
    """Who sees whom: the past of the prefix and of the own block; padding sees itself."""
    rows, columns = block[:, :, None], block[:, None, :]
    same = (columns == rows) | ((columns == 0) & (rows > 0))
    return same.tril()[:, None]


class _Row:
    def __init__(self, world: World, words: Words, picture: Picture, lesson: Lesson) -> None:
        index = words.index
        tokens = world.patches**2
        prefix = [index["<bos>"], *words(lesson.system), index["user"]]
        self.ids = prefix + [index["<image>"]] * tokens
        self.positions = list(range(len(self.ids)))
        self.block = [0] * len(self.ids)
        self.target = [IGNORED] * len(self.ids)
        self.weight = [0.0] * len(self.ids)
        self.nouns: list[list[int]] = []
        for number, question in enumerate(lesson.questions, 1):
            self._add(world, words, picture, question, number)

    def _add(
        self, world: World, words: Words, picture: Picture, question: WorldQuestion, number: int
    ) -> None:
        start = self.block.count(0)
        asked = [*words(question.text), words.index["assistant"]]
        answer = [*words(question.answer), words.index["<eos>"]]
        if question.family != "existence":
            self._note_nouns(world, words, picture, question, len(self.ids))
        self.ids += asked + answer[:-1]
        length = len(asked) + len(answer) - 1
        self.positions += range(start, start + length)
        self.block += [number] * length
        self.target += [IGNORED] * (len(asked) - 1) + answer
        first = 2.0 if question.answer in ("yes", "no") else 1.0
        heavy = [first, *[1.0] * (len(answer) - 2), 0.2]  # the end is easily learnt
        self.weight += [0.0] * (len(asked) - 1) + heavy

    def _note_nouns(
        self, world: World, words: Words, picture: Picture, question: WorldQuestion, offset: int
    ) -> None:
        """Where a question names a thing that is there, and what is to be known of it."""
        asked = words(question.text)
        for category in question.nouns:
            for noun in (world.categories[category], plural(world.categories[category])):
                if words.index[noun] in asked:
                    place = offset + asked.index(words.index[noun])
                    thing, count = picture.only(category), picture.counts()[category]
                    known = (
                        [thing.row, thing.column, count - 1, thing.color]
                        if thing is not None
                        else [IGNORED, IGNORED, count - 1, IGNORED]
                    )
                    self.nouns.append([place, *known])
