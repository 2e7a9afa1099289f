"""The contract suite finds each broken promise of a stream readout."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.testing import check_readout

pytestmark = pytest.mark.contract


def unchanged(row: cdkit.AttentionRow) -> Tensor:
    return row.weights


def everywhere(row: cdkit.AttentionRow) -> Tensor:
    return row.weights + 0.1


def of_the_batch(row: cdkit.AttentionRow) -> Tensor:
    return row.weights * row.weights.amax()


def rewriting(row: cdkit.AttentionRow) -> Tensor:
    return row.weights.mul_(2)


def head_by_head(row: cdkit.AttentionRow) -> Tensor:
    return row.weights.sum(dim=1)


def straight(attended: Tensor, states: Mapping[str, Tensor], through: cdkit.Sublayers) -> Tensor:
    return through.feed_forward(through.depth - 1, attended)


def beyond(attended: Tensor, states: Mapping[str, Tensor], through: cdkit.Sublayers) -> Tensor:
    return through.feed_forward(through.depth, attended)


def narrow(attended: Tensor, states: Mapping[str, Tensor], through: cdkit.Sublayers) -> Tensor:
    return attended[:, :1]


def centred(attended: Tensor, states: Mapping[str, Tensor], through: cdkit.Sublayers) -> Tensor:
    return attended - attended.mean(dim=0)


@dataclass(frozen=True)
class Stream(cdkit.StreamReadout):
    """Does what it is given."""

    weigh: Callable[[cdkit.AttentionRow], Tensor] = unchanged
    send: Callable[[Tensor, Mapping[str, Tensor], cdkit.Sublayers], Tensor] = straight
    at: int = 0
    name: ClassVar[str] = "stream"

    def layers(self, count: int) -> Mapping[str, int]:
        return {"last": count}

    def attention_layer(self, count: int) -> int:
        return self.at

    def reweigh(self, row: cdkit.AttentionRow) -> Tensor:
        return self.weigh(row)

    def stream(
        self, attended: Tensor, states: Mapping[str, Tensor], sublayers: cdkit.Sublayers
    ) -> Tensor:
        return self.send(attended, states, sublayers)


@dataclass(frozen=True)
class Nameless(Stream):
    """Its logits are called like the original ones."""

    name: ClassVar[str] = "original"


BROKEN: list[tuple[Any, str]] = [
    (Nameless(), "its logits have a name other than 'original'"),
    (Stream(at=1), "its attention is that of one of 1 layers"),
    (Stream(weigh=everywhere), "no weight lies where the token may not attend"),
    (Stream(weigh=of_the_batch), "rows of the batch are independent"),
    (Stream(weigh=rewriting), "nothing is written into what it is passed"),
    (Stream(weigh=head_by_head), "have the shape of those it gets"),
    (Stream(send=beyond), "its stream passes layers from 0 to 7"),
    (Stream(send=narrow), "its stream has the shape of the states"),
    (Stream(send=centred), "rows of the batch are independent"),
]


def test_a_sound_stream() -> None:
    check_readout(Stream())


@pytest.mark.parametrize(("part", "promise"), BROKEN, ids=[p for _, p in BROKEN])
def test_a_broken_promise(part: Any, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_readout(part)


def test_padding_is_no_place() -> None:
    """The example has it: a stream that forgets it is seen."""
    with pytest.raises(AssertionError, match="no weight lies where"):
        check_readout(Stream(weigh=uniform))


def uniform(row: cdkit.AttentionRow) -> Tensor:
    return torch.ones_like(row.weights) / row.weights.shape[-1]
