"""The contract suite finds each broken promise of a state intervention that remembers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.testing import check_state_intervention

pytestmark = pytest.mark.contract
Segment = cdkit.StateSegment


@dataclass(frozen=True)
class Remembering(cdkit.StateIntervention):
    """Adds the prompt's last state, as its function remembers it."""

    site: ClassVar[Any] = "layer"
    remembers: ClassVar[bool] = True
    needs_whole_prompt: ClassVar[bool] = True

    keep: Callable[["Remembering", Segment], None]
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: Segment) -> Tensor:
        self.keep(self, states)
        seen = next(iter(states.memory.values()), None)
        if seen is None or len(seen) != len(states.states):
            return states.states
        return states.states + seen[:, None].to(states.states.dtype)


class Forgetful(Remembering):
    """Says that it remembers nothing."""

    remembers = False


def of_last_token(states: Segment) -> Tensor:
    last = (states.predicts_next & ~states.generated)[..., None]
    return (states.states * last).sum(1)


def right(part: Remembering, states: Segment) -> None:
    if part not in states.memory:
        states.memory[part] = of_last_token(states)


def nothing(part: Remembering, states: Segment) -> None:
    pass


def other_key(part: Remembering, states: Segment) -> None:
    states.memory.setdefault("prompt", of_last_token(states))


def one_for_all(part: Remembering, states: Segment) -> None:
    states.memory.setdefault(part, of_last_token(states)[0])


def by_place(part: Remembering, states: Segment) -> None:
    place = torch.arange(len(states.states)).to(states.states)[:, None]
    if part in states.memory:
        states.memory[part] = states.memory[part] + place
    else:
        states.memory[part] = of_last_token(states)


def in_place(part: Remembering, states: Segment) -> None:
    if part in states.memory:
        states.memory[part].add_(1)
    else:
        states.memory[part] = of_last_token(states)


def test_a_sound_one_passes() -> None:
    check_state_intervention(Remembering(right))


BROKEN = {
    "nothing": (Remembering(nothing), "with remembers = True keeps something"),
    "undeclared": (Forgetful(right), "writes into memory only with remembers = True"),
    "another key": (Remembering(other_key), "writes into memory under itself"),
    "no rows": (Remembering(one_for_all), "state tensors begin with the rows"),
    "by place": (Remembering(by_place), "reordered or repeated with its rows"),
    "in place": (Remembering(in_place), "nothing is written into a remembered tensor"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_found(name: str) -> None:
    part, promise = BROKEN[name]
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_state_intervention(part)
