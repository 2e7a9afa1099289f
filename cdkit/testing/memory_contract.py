"""What a part that remembers promises, over the calls of one answer; see `cdkit.testing`."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.depth import Depth, layers_within
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.probing.promises import require
from cdkit.testing.example_segments import (
    COLUMNS,
    DEPTH,
    IMAGE,
    TEXT,
    beside_a_mate,
    cut,
    example_segments,
    fresh,
)
from cdkit.testing.segment_contract import OWN_AXES, OWN_CELLS, same_segments
from cdkit.testing.values import NEW_TENSORS, ROWS_FIRST, ROWS_FIRST_TODO, STATELESS

Memory = Mapping[int, dict[Hashable, Tensor]]
"""Layer -> what is remembered there."""
Calls = list[list[CrossModalSegment]]
"""For each call of the decoder the segments of its layers."""


def check_memory(
    part: Any,
    change: Callable[[CrossModalSegment], CrossModalSegment],
    layers: Depth,
    remembers: bool,
) -> None:
    """Check what a part keeps in `CrossModalSegment.memory`; nothing where it does not remember.

    An answer is a call with the prompt's rows, then one for each generated row, as the engine makes
    them. Between two calls the memory may be reordered and repeated with the rows.

    Args:
        part: The distortion or intervention; messages name it.
        change: What it does to a segment.
        layers: The share of the depth in which it acts.
        remembers: Whether it says that it remembers.

    Raises:
        AssertionError: Where a promise is broken.
    """
    require(
        isinstance(remembers, bool),
        part,
        "remembers is True or False",
        remembers,
        todo="set it in the class: True if it writes into segment.memory",
    )
    if not remembers:
        return
    inside = layers_within(layers, DEPTH)

    def call(segments: Sequence[CrossModalSegment], memory: Memory) -> list[CrossModalSegment]:
        layer_state: dict[Hashable, Tensor] = {}
        before = {layer: dict(own) for layer, own in memory.items()}
        copies = {layer: {k: x.clone() for k, x in own.items()} for layer, own in before.items()}
        new = [
            change(dataclasses.replace(s, layer_state=layer_state, memory=memory[s.image.layer]))
            for s in segments
            if s.image.layer in inside
        ]
        for layer, own in before.items():
            kept = all(x.equal(copies[layer][key]) for key, x in own.items())
            promise = "nothing is written into a remembered tensor"
            require(kept, part, promise, todo=NEW_TENSORS)
        for layer, remembered in memory.items():
            require(
                set(remembered) <= {part},
                part,
                "it writes into memory under itself",
                list(remembered),
                todo="use self as the key: memory[self] = ...",
            )
            rows = segments[0].cells.shape[0]
            for key, x in remembered.items():
                fits = isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == rows
                given = getattr(x, "shape", type(x))
                require(fits, part, ROWS_FIRST, (layer, key, given), todo=ROWS_FIRST_TODO)
        return new

    def answer(calls: Calls, memory: Memory | None = None) -> tuple[Calls, Memory]:
        memory = _empty() if memory is None else memory
        return [call([fresh(s) for s in one], memory) for one in calls], memory

    calls = _calls(example_segments())
    new, memory = answer(calls)
    require(
        any(memory.values()),
        part,
        "a part with remembers = True keeps something",
        todo="write into segment.memory, or leave remembers False",
    )
    promise = "a second answer to the same prompt is the same"
    _same_calls(answer(calls)[0], new, part, promise, todo=STATELESS)
    for rows in (torch.tensor([2, 0, 1]), torch.tensor([0, 0, 1]), torch.tensor([1])):
        _, kept = answer(calls[:1])
        chosen = {n: {k: x[rows] for k, x in own.items()} for n, own in kept.items()}
        late = [[cut(segment, rows=rows) for segment in one] for one in calls[1:]]
        wanted = [[cut(segment, rows=rows) for segment in one] for one in new[1:]]
        promise = "a memory that is reordered or repeated with its rows serves them as before"
        _same_calls(answer(late, chosen)[0], wanted, part, promise, todo=OWN_AXES)
    beside = answer(_calls([beside_a_mate(s) for s in example_segments()], before=TEXT))[0]
    alone = [
        [_without_the_mate(s, TEXT if number == 0 else 0) for s in one]
        for number, one in enumerate(beside)
    ]
    promise = "padding beside a mate with more tokens and other images changes no later row"
    _same_calls(alone, new, part, promise, todo=OWN_CELLS)


def _empty() -> dict[int, dict[Hashable, Tensor]]:
    return {layer: {} for layer in range(DEPTH)}


def _calls(segments: Sequence[CrossModalSegment], before: int = 0) -> Calls:
    """The prompt, then each generated row, with the columns that are there at that time.

    `before` text rows stand before those of the examples.
    """
    text = segments[0].prompt.shape[1]
    late = text - before - int(example_prompt_rows())
    prompt = text - late
    pieces = [slice(prompt), *(slice(row, row + 1) for row in range(prompt, text))]
    total = segments[0].text_logits.shape[-1]
    return [
        [cut(s, text=piece, columns=slice(total - text + piece.stop)) for s in segments]
        for piece in pieces
    ]


def example_prompt_rows() -> int:
    """How many text rows of the examples are the prompt's."""
    return int(example_segments()[0].prompt.any(0).sum())


def _without_the_mate(segment: CrossModalSegment, text: int) -> CrossModalSegment:
    rows, image = segment.logits.shape[0] - 1, segment.logits.shape[-1] - IMAGE
    return cut(
        segment,
        rows=slice(rows),
        text=slice(text, None),
        image=slice(image),
        columns=slice(COLUMNS, None),
    )


def _same_calls(given: Calls, wanted: Calls, part: Any, promise: str, *, todo: str) -> None:
    for one, other in zip(given, wanted, strict=True):
        same_segments(one, other, part, promise, todo=todo)
