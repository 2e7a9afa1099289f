"""The contract suite finds each broken promise of a part that reads image tokens out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.testing import check_readout, check_state_intervention

pytestmark = pytest.mark.contract


def whole(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"logits": logits.each(lambda piece: piece)}


def of_the_image(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"logits": logits.each(lambda piece: piece).mean(0, keepdim=True)}


def nothing(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {}


def now_and_then(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {**whole(logits), **({"more": torch.ones(5)} if len(logits) == 5 else {})}


def vanishing(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"logits": logits.each(lambda piece: (piece.softmax(-1) * 0).log())}


def in_place(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"logits": logits.read_out(logits.states.mul_(2))}


def drawn(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"logits": logits.each(torch.randn_like)}


def one_token(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"logits": torch.stack([next(logits.pieces(1))[0].double()] * 5)}


def best(step: cdkit.ImageStep) -> Tensor:
    image = step.kept["logits"].masked_fill(~step.valid[..., None], -torch.inf)
    return image.amax(1)


def with_padding(step: cdkit.ImageStep) -> Tensor:
    return step.kept["logits"].amax(1)


def of_the_batch(step: cdkit.ImageStep) -> Tensor:
    return best(step) - best(step).mean(0)


def narrow(step: cdkit.ImageStep) -> Tensor:
    return best(step)[:, :3]


def ruling_out(step: cdkit.ImageStep) -> Tensor:
    return best(step).masked_fill(step.original < 0, -torch.inf)


@dataclass(frozen=True)
class Image(cdkit.ImageReadout):
    """Does what it is given."""

    name: ClassVar[str] = "image"

    keep: Callable[[cdkit.ImageLogits], Mapping[str, Tensor]] = whole
    make: Callable[[cdkit.ImageStep], Tensor] = best
    after: int = 0

    def layer(self, count: int) -> int:
        return count + self.after

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        return self.keep(logits)

    def step_logits(self, step: cdkit.ImageStep) -> Tensor:
        return self.make(step)


class Unnamed(Image):
    """Has no name for its logits."""

    name = ""


KEPT: Mapping[Any, str] = {
    of_the_image: "read_image gives logits for each of 5 image tokens",
    one_token: "read_image gives logits for each of 2 image tokens",
    nothing: "read_image keeps something",
    now_and_then: "read_image keeps the same of every prompt",
    vanishing: "read_image gives finite logits",
    in_place: "nothing is written into what it is passed",
    drawn: "no random number comes from torch's global generator",
}
MADE: Mapping[Any, str] = {
    with_padding: "nothing depends on padding",
    of_the_batch: "rows of the batch are independent",
    narrow: "its logits are finite, and have the shape of the original ones",
    ruling_out: "its logits are finite, and have the shape of the original ones",
}
BROKEN: Mapping[str, tuple[Image, str]] = {
    **{keep.__name__: (Image(keep=keep), why) for keep, why in KEPT.items()},
    **{make.__name__: (Image(make=make), why) for make, why in MADE.items()},
    "too far": (Image(after=1), "its states have passed 0 to 8 layers"),
    "unnamed": (Unnamed(), "its logits have a name other than 'original'"),
}


def test_a_sound_one_passes() -> None:
    check_readout(Image())


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_promise_is_named(fault: str) -> None:
    part, why = BROKEN[fault]
    with pytest.raises(AssertionError, match=re.escape(why)):
        check_readout(part)


@dataclass(frozen=True)
class Lit(cdkit.StateIntervention):
    """Scales the states by what it keeps of the image tokens."""

    site: ClassVar[cdkit.Site] = "mlp"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"image_readout"})

    keep: Callable[[cdkit.ImageLogits], Mapping[str, Tensor]] = whole
    masks: bool = True
    after: int = 0
    branches: tuple[str, ...] = ("original",)

    def image_layer(self, count: int) -> int:
        return count + self.after

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        return self.keep(logits)

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        best = states.image_readout["logits"].amax(-1)
        if self.masks:
            assert states.readout_valid is not None
            best = best * states.readout_valid
        scale = best.sum(-1)[:, None, None]
        return states.states * scale.to(states.states)


def test_a_sound_state_intervention_passes() -> None:
    check_state_intervention(Lit())


@pytest.mark.parametrize("keep", KEPT, ids=lambda keep: str(keep.__name__))
def test_what_a_state_intervention_keeps(keep: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(KEPT[keep])):
        check_state_intervention(Lit(keep=keep))


def test_the_padding_and_the_layer_of_a_state_intervention() -> None:
    with pytest.raises(AssertionError, match="nothing depends on the padding of image_readout"):
        check_state_intervention(Lit(masks=False))
    with pytest.raises(AssertionError, match="image tokens are read out after 0 to 1 layers"):
        check_state_intervention(Lit(after=1))
