"""Fault: the image is taken to stand where it stood in one prompt template (tokens 35 to 611).

With a longer system prompt, another template, several images or padding, the method then masks
text, silently.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.distortion import Modified
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.models.llava import Llava

PROMPTS = {
    "first": ("<image> is there a cat ?",),
    "last": ("is there a cat ? <image> w1",),
    "two": ("w1 w2 <image> w3 <image> is there a cat ?",),
    "side by side": ("<image> <image> w3",),
    "padded": ("<image> w3", "is there a cat or a dog <image> in the image ?"),
    "unequal": ("<image> w3 <image> ?", "is there a dog <image> in the image ?"),
}
Inputs = dict[str, Tensor]
Places = list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Looks(cdkit.AttentionDistortion):
    """Distorts nothing, but notes which columns it is shown as the image's."""

    modifies: ClassVar[frozenset[Modified]] = frozenset()
    seen: list[CrossModalSegment] = field(default_factory=list, hash=False, compare=False)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        self.seen.append(segment)
        return segment


def shown(model: Any, inputs: Inputs) -> list[Places]:
    """For each segment and row the (image, place in the text) of the columns."""
    looks = Looks()
    method = cdkit.Method(
        "looks",
        combiner=cdkit.load("vcd").combiner,
        branches=(cdkit.Branch("distorted", (looks,)),),
    )
    with cdkit.attach(model, method):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert looks.seen
    return [
        [
            list(zip(number[valid].tolist(), place[valid].tolist(), strict=True))
            for number, place, valid in zip(
                segment.image.image_index,
                segment.image.token_index,
                segment.image.valid,
                strict=True,
            )
        ]
        for segment in looks.seen
    ]


def true_places(model: Any, inputs: Inputs) -> Places:
    """By the ids alone: every image has nine tokens, padding does not count."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        tokens = ids[mask.bool()].tolist()
        places = [i for i, token in enumerate(tokens) if token == model.config.image_token_id]
        rows.append([(number // 9, place) for number, place in enumerate(places)])
    return rows


@pytest.mark.parametrize("where", PROMPTS)
def test_the_image_is_found_wherever_it_stands(
    where: str, model: Any, make_inputs: Callable[..., Inputs]
) -> None:
    inputs = make_inputs(*PROMPTS[where])
    wanted = true_places(model, inputs)
    assert all(places == wanted for places in shown(model, inputs))


class HardCoded(Llava):
    """The faulty variant: right for the prompts whose image follows two tokens."""

    def image_index(self, model: Any, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        return torch.where((places >= 2) & (places < 11), 0, -1)


@pytest.mark.parametrize("where", PROMPTS)
def test_a_hard_coded_span_is_noticed(
    where: str, model: Any, make_inputs: Callable[..., Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cdkit.ADAPTERS["llava"] is Llava
    monkeypatch.setattr(cdkit.ADAPTERS, "_classes", {"llava": HardCoded})
    inputs = make_inputs(*PROMPTS[where])
    wanted = true_places(model, inputs)
    if where in ("two", "side by side", "unequal"):  # already the images do not add up
        with pytest.raises(cdkit.CdkitError, match=r"images but [23] were passed"):
            shown(model, inputs)
        return
    right = [places == wanted for places in shown(model, inputs)]
    assert all(right) if where == "first" else not any(right)
