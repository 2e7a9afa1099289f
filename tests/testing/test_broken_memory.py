"""The contract suite finds each broken promise of a part that remembers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.testing import check_strategy

pytestmark = pytest.mark.contract

Segment = CrossModalSegment


@dataclass(frozen=True)
class Remembering(cdkit.Intervention):
    """Adds what the prompt's last row attended to, as its function remembers it."""

    remembers: ClassVar[bool] = True
    keep: Callable[["Remembering", Segment], None]
    branches: tuple[str, ...] = ("original",)

    @property
    def needs_whole_prompt(self) -> bool:
        return True

    def intervene(self, segment: Segment) -> Segment:
        self.keep(self, segment)
        return added(self, segment)


class Forgetful(Remembering):
    """Says that it remembers nothing."""

    remembers = False


def added(part: object, segment: Segment) -> Segment:
    seen: Tensor | None = next(iter(segment.memory.values()), None)
    if seen is None or seen.shape[0] != segment.cells.shape[0]:
        return segment
    rows = segment.predicts_next[:, None, :, None] & segment.cells[:, None]
    more = seen.view(len(seen), 1, 1, -1)
    return segment.changed(logits=torch.where(rows, segment.logits + more, segment.logits))


def of_last_row(segment: Segment) -> Tensor:
    last = (segment.prompt & segment.predicts_next)[:, None, :, None]
    seen = (segment.weights() * last).sum(dim=2).mean(dim=1)
    return seen * segment.image.valid


def right(part: Remembering, segment: Segment) -> None:
    if part not in segment.memory:
        segment.memory[part] = of_last_row(segment)


def nothing(part: Remembering, segment: Segment) -> None:
    pass


def another_key(part: Remembering, segment: Segment) -> None:
    segment.memory.setdefault("mine", of_last_row(segment))


def no_rows(part: Remembering, segment: Segment) -> None:
    segment.memory.setdefault(part, of_last_row(segment).mean(dim=0, keepdim=True).mean(0))


def of_the_batch(part: Remembering, segment: Segment) -> None:
    if part not in segment.memory:
        seen = of_last_row(segment)
        segment.memory[part] = seen.mean(dim=0, keepdim=True).expand_as(seen)


def in_place(part: Remembering, segment: Segment) -> None:
    if part not in segment.memory:
        segment.memory[part] = of_last_row(segment)
    elif segment.generated_columns.any():
        segment.memory[part].add_(1)


KEPT: dict[int, Tensor] = {}


def in_itself(part: Remembering, segment: Segment) -> None:
    """In a place that every answer shares."""
    layer = segment.image.layer
    if part not in segment.memory:
        KEPT[layer] = KEPT.get(layer, 0) + of_last_row(segment)
        segment.memory[part] = KEPT[layer]


def by_row_number(part: Remembering, segment: Segment) -> None:
    if part not in segment.memory:
        segment.memory[part] = of_last_row(segment)
    else:
        rows = torch.arange(len(segment.cells), dtype=torch.float64)[:, None]
        segment.memory[part] = segment.memory[part] + rows


WRONG: list[tuple[Callable[[Remembering, Segment], None], str]] = [
    (nothing, "a part with remembers = True keeps something"),
    (another_key, "it writes into memory under itself"),
    (no_rows, "state tensors begin with the rows"),
    (of_the_batch, "rows of the batch are independent"),
    (in_place, "nothing is written into a remembered tensor"),
    (by_row_number, "a memory that is reordered or repeated with its rows serves them as before"),
]


@pytest.mark.parametrize(("keep", "promise"), WRONG)
def test_a_broken_promise_is_found(
    keep: Callable[[Remembering, Segment], None], promise: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(Remembering(keep))


def test_state_that_answers_share_is_found() -> None:
    KEPT.clear()
    with pytest.raises(AssertionError, match="compute from the arguments alone"):
        check_strategy(Remembering(in_itself))


def test_a_memory_that_is_not_declared_is_found() -> None:
    with pytest.raises(AssertionError, match="and only with remembers = True"):
        check_strategy(Forgetful(right))


def test_one_that_keeps_its_promises() -> None:
    check_strategy(Remembering(right))
