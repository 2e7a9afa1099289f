"""The contract suite finds each broken promise of a selector and of a constraint."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.testing import check_constraint, check_selector

counter = iter(range(10**9))


@dataclass(frozen=True)
class Selector(cdkit.CellSelector):
    """Chooses what it is given."""

    choose: Callable[[CrossModalSegment], Tensor]
    whole: bool = False

    @property
    def needs_whole_prompt(self) -> bool:
        return self.whole

    def select(self, segment: CrossModalSegment) -> Tensor:
        return self.choose(segment)


def by_row(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("row")


def by_call(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("call")


def writes(segment: CrossModalSegment) -> Tensor:
    segment.logits[segment.logits > 1] = 0
    return segment.above_mean("row")


def draws(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("row") & (torch.rand(segment.logits.shape) > 0.5)


def counts(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("row") ^ (segment.cells[:, None] & (next(counter) % 2 == 0))


def numbers(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("row").float()


def one_head(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("row")[:, :1]


def everywhere(segment: CrossModalSegment) -> Tensor:
    return torch.ones_like(segment.logits, dtype=torch.bool)


def over_the_batch(segment: CrossModalSegment) -> Tensor:
    cells = segment.cells[:, None].expand_as(segment.logits)
    return cells & (segment.logits > segment.logits[cells].mean())


def over_generated_rows(segment: CrossModalSegment) -> Tensor:
    cells = segment.cells[:, None].expand_as(segment.logits)
    total = segment.logits.masked_fill(~cells, 0).sum((1, 2, 3), keepdim=True)
    return cells & (segment.logits > total / cells.sum((1, 2, 3), keepdim=True).clamp(min=1))


def above_zero(segment: CrossModalSegment) -> Tensor:
    return segment.logits > 0


def loud_rows(segment: CrossModalSegment) -> Tensor:
    """Of each row by itself; in the example each row is loud, until a constant makes it quiet."""
    return segment.above_mean("row") & (segment.logits.amax((1, 3), keepdim=True) > 0)


def when_told(segment: CrossModalSegment) -> Tensor:
    return segment.above_mean("row") & torch.tensor(not segment.full)


SELECTORS: list[tuple[Selector, str]] = [
    (Selector(by_row, whole=None), "needs_whole_prompt is True or False"),  # type: ignore[arg-type]
    (Selector(writes), "nothing is written into what it is passed"),
    (Selector(draws), "no random number comes from torch's global"),
    (Selector(counts), "equal arguments give equal results"),
    (Selector(numbers), "it gives a mask"),
    (Selector(one_head), "the mask has the logits' shape"),
    (Selector(everywhere), "nothing is chosen off the cells"),
    (Selector(over_the_batch, whole=True), "rows of the batch are independent"),
    (Selector(by_call), "needs_whole_prompt = False each text row gets the same cells alone"),
    (Selector(over_generated_rows, whole=True), "each generated row get the same cells alone"),
    (Selector(above_zero, whole=True), "the cells stay when a constant is added to the logits"),
    (Selector(above_zero), "the cells stay when a constant is added to the logits"),
    (Selector(loud_rows), "get a constant of its own"),
    (Selector(when_told), "what `full` and `generated` say changes nothing"),
]


def test_a_scope_that_is_not_its_own() -> None:
    with pytest.raises(AssertionError, match="it chooses exactly the cells above that mean"):
        check_selector(Scoped(by_call, whole=True))


@pytest.mark.parametrize(("part", "promise"), SELECTORS)
def test_selectors(part: Selector, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_selector(part)


@dataclass(frozen=True)
class Scoped(Selector):
    """Says that its cells are those above the mean of a row."""

    @property
    def mean_scope(self) -> cdkit.Scope:
        return "row"


def test_sound_selectors() -> None:
    check_selector(Selector(by_row))
    check_selector(Scoped(by_row))
    check_selector(Selector(by_call, whole=True))


@dataclass(frozen=True)
class Kept(cdkit.Constraint):
    """Keeps what it is given."""

    keep: Callable[[Tensor], Tensor]
    on_empty: cdkit.OnEmpty = "raise"
    all_of_them: bool = False
    name: str = "the constraint"
    near: Callable[[Tensor], Tensor] | None = None

    @property
    def is_identity(self) -> bool:
        return self.all_of_them

    @property
    def description(self) -> str:
        return self.name

    def allowed(self, original: Tensor) -> Tensor:
        return self.keep(original)

    def slack(self, original: Tensor) -> Tensor:
        return super().slack(original) if self.near is None else self.near(original)


def best(logits: Tensor) -> Tensor:
    return logits >= logits.amax(dim=-1, keepdim=True)


def weights(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def one_column(logits: Tensor) -> Tensor:
    return best(logits)[:, :1]


def none(logits: Tensor) -> Tensor:
    return logits > 100


def over_rows(logits: Tensor) -> Tensor:
    return best(logits) | (logits > logits.mean())


def positive(logits: Tensor) -> Tensor:
    return best(logits) | (logits > 0)


def negative(logits: Tensor) -> Tensor:
    return -1 - logits.abs()


CONSTRAINTS: list[tuple[Kept, str]] = [
    (Kept(best, on_empty="never"), "on_empty is 'raise' or 'original'"),  # type: ignore[arg-type]
    (Kept(best, name=" "), "its description says what it is"),
    (Kept(weights), "it gives a mask of the logits' shape"),
    (Kept(one_column), "it gives a mask of the logits' shape"),
    (Kept(none), "a token is left in every row"),
    (Kept(over_rows), "rows of the batch are independent"),
    (Kept(positive), "a constant added to the logits changes nothing"),
    (Kept(best, near=negative), "slack is 0 or more on the allowed tokens alone"),
    (Kept(best, all_of_them=True), "an identity allows every token"),
]


@pytest.mark.parametrize(("part", "promise"), CONSTRAINTS)
def test_constraints(part: Kept, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_constraint(part)


def best_twenty(logits: Tensor) -> Tensor:
    return logits >= logits.topk(20).values[:, -1:]


@pytest.mark.parametrize("kept", [best, best_twenty])
def test_a_sound_constraint(kept: Any) -> None:
    check_constraint(Kept(kept))
