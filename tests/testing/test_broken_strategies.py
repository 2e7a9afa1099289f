"""The contract suite finds each broken promise of a strategy: one part for each, broken so."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.distortion import Modified, Prompt
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.testing import check_strategy

pytestmark = pytest.mark.contract

Segment = CrossModalSegment
counter = iter(range(10**9))


@dataclass(frozen=True)
class Attention(cdkit.AttentionDistortion):
    """Does what it is given."""

    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits", "values"})
    change: Callable[[Segment], Segment]
    whole: bool = False

    @property
    def needs_whole_prompt(self) -> bool:
        return self.whole

    def distort(self, segment: Segment) -> Segment:
        return self.change(segment)


class OnlyValues(Attention):
    """Declares values."""

    modifies = frozenset({"values"})


class OnlyLogits(Attention):
    """Declares logits."""

    modifies = frozenset({"logits"})


def keeps(segment: Segment) -> Segment:
    return segment


def averages(segment: Segment) -> Segment:
    mask = segment.above_mean("row")
    return replace(segment, replaced=mask, replacement=segment.image.mean_values())


def writes(segment: Segment) -> Segment:
    segment.logits[segment.logits > 1] = 0
    return segment


def draws(segment: Segment) -> Segment:
    return replace(segment, logits=segment.logits + torch.rand(()).to(segment.logits))


def counts(segment: Segment) -> Segment:
    return replace(segment, logits=segment.logits + next(counter))


def other_cells(segment: Segment) -> Segment:
    return replace(segment, cells=~segment.cells)


def off_the_cells(segment: Segment) -> Segment:
    return replace(segment, logits=segment.logits.nan_to_num(neginf=0))


def not_numbers(segment: Segment) -> Segment:
    return replace(segment, logits=segment.logits * math.nan)


def replaces_off_the_cells(segment: Segment) -> Segment:
    mask = torch.ones_like(segment.logits, dtype=torch.bool)
    return replace(segment, replaced=mask, replacement=segment.image.values)


def half_a_replacement(segment: Segment) -> Segment:
    return replace(segment, replaced=segment.above_mean("row"))


def wide_values(segment: Segment) -> Segment:
    return replace(averages(segment), replacement=segment.image.values.double() * 1.5)


def over_the_batch(segment: Segment) -> Segment:
    cells = segment.cells[:, None].expand_as(segment.logits)
    mask = cells & (segment.logits > segment.logits[cells].mean())
    return replace(segment, replaced=mask, replacement=segment.image.values)


def over_the_call(segment: Segment) -> Segment:
    return replace(
        segment, replaced=segment.above_mean("call"), replacement=segment.image.mean_values()
    )


def over_generated_rows_too(segment: Segment) -> Segment:
    cells = segment.cells[:, None].expand_as(segment.logits)
    filled = segment.logits.masked_fill(~cells, 0)
    mean = filled.sum((1, 2, 3), keepdim=True) / cells.sum((1, 2, 3), keepdim=True).clamp(min=1)
    return replace(segment, logits=segment.without(cells & (segment.logits > mean)))


def above_zero(segment: Segment) -> Segment:
    return replace(segment, logits=segment.without(segment.logits > 0))


def louder_on_text(segment: Segment) -> Segment:
    return replace(segment, text_logits=segment.text_logits + 1)


def sees_ahead(segment: Segment) -> Segment:
    return replace(segment, text_logits=segment.text_logits.nan_to_num(neginf=0))


def hides(segment: Segment) -> Segment:
    return replace(segment, pruned=segment.image.valid)


@dataclass(frozen=True)
class Carries(cdkit.AttentionDistortion):
    """Leaves something to the layers above under this name, or under itself."""

    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits"})
    name: str = ""
    over_rows: bool = False

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: Segment) -> Segment:
        left = segment.logits.amax(dim=(0, 1, 2) if self.over_rows else (1, 2), keepdim=True)
        before = segment.layer_state.get(self.name or self, torch.zeros_like(left))
        segment.layer_state[self.name or self] = left.nan_to_num(neginf=0)
        return replace(segment, logits=segment.logits - before)


@dataclass(frozen=True)
class Somewhere(Attention):
    """Acts in some layers."""

    layers: tuple[float, float] = (0.0, 1.0)


class Pruning(Attention):
    """May hide image tokens from rows of the image."""

    keeps_prefix = False


class TextToo(Attention):
    """Declares the logits on the text."""

    modifies = frozenset({"text_logits"})


@dataclass(frozen=True)
class Says(Attention):
    """Says of what it does that cells above a mean are cut, or have another value."""

    replacement: Callable[[cdkit.ImageColumns], Tensor] | None = None

    def cell_change(self) -> cdkit.CellChange:
        above_mean: Any = cdkit.SELECTORS["above_mean"]
        return cdkit.CellChange(above_mean(scope="row"), self.replacement)


def zeros(image: cdkit.ImageColumns) -> Tensor:
    return torch.zeros_like(image.values)


ATTENTION: list[tuple[cdkit.AttentionDistortion, str]] = [
    (Attention(writes), "nothing is written into what it is passed"),
    (Attention(draws), "no random number comes from torch's global"),
    (Attention(counts), "equal arguments give equal results"),
    (Attention(other_cells), "cells stays as it is"),
    (Attention(off_the_cells), "logits off the cells stay at -inf"),
    (Attention(not_numbers), "logits are finite, or -inf where a cell is cut"),
    (Attention(replaces_off_the_cells), "nothing is replaced off the cells"),
    (Attention(half_a_replacement), "replaced and replacement come together"),
    (Attention(wide_values), "replacement has the values' dtype"),
    (Attention(over_the_batch, True), "rows of the batch are independent"),
    (Attention(over_the_call), "with needs_whole_prompt = False no text row depends on another"),
    (Attention(over_generated_rows_too, True), "a generated row depends on no other row"),
    (Attention(above_zero), "the cells it takes stay when a constant is added"),
    (OnlyValues(above_zero), "without 'logits' in modifies the logits stay"),
    (Attention(louder_on_text), "without 'text_logits' in modifies the text logits stay"),
    (TextToo(sees_ahead), "text logits off what a row attends to stay at -inf"),
    (Attention(hides), "only with keeps_prefix = False image tokens are pruned"),
    (Carries("mine"), "it writes into layer_state under itself"),
    (Carries(over_rows=True), "rows of the batch are independent"),
    (Somewhere(keeps, layers=(0.5, 0.2)), "layers are two shares of the depth"),
    (OnlyLogits(averages), "without 'values' in modifies no cell is replaced"),
    (Says(averages), "cell_change says what distort does to generated rows"),
    (Says(keeps, replacement=cdkit.ImageColumns.mean_values), "cell_change says what distort does"),
    (Says(averages, replacement=zeros), "cell_change says what distort does to generated rows"),
]


@pytest.mark.parametrize(("part", "promise"), ATTENTION, ids=[p for _, p in ATTENTION])
def test_attention(part: cdkit.AttentionDistortion, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(part)


@pytest.mark.parametrize("part", [Attention(keeps), Attention(averages), OnlyValues(averages)])
def test_the_frame_itself_is_sound(part: cdkit.AttentionDistortion) -> None:
    check_strategy(part)
    check_strategy(Attention(over_the_call, True))
    check_strategy(TextToo(louder_on_text))
    check_strategy(Pruning(hides))
    check_strategy(Says(averages, replacement=cdkit.ImageColumns.mean_values))
    check_strategy(Somewhere(averages, layers=(0.5, 0.75)))


@dataclass(frozen=True)
class Pixels(cdkit.PixelDistortion):
    """Does what it is given."""

    change: Callable[[Tensor, torch.Generator], Tensor]

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.change(pixels, generator)


def in_place(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels.add_(1)


def global_noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + torch.randn(pixels.shape).to(pixels)


def wide(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels.double()


def cut(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels[..., 1:]


def infinite(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels / 0


def ignores_its_noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    torch.randn(3, generator=generator)
    return pixels + 1


PIXELS: list[tuple[Callable[[Tensor, torch.Generator], Tensor], str]] = [
    (in_place, "nothing is written into what it is passed"),
    (global_noise, "no random number comes from torch's global"),
    (wide, "stay in it"),
    (cut, "the pixels keep their shape"),
    (infinite, "finite pixels stay finite"),
    (ignores_its_noise, "another generator gives other noise"),
]


@pytest.mark.parametrize(("change", "promise"), PIXELS)
def test_pixels(change: Callable[[Tensor, torch.Generator], Tensor], promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(Pixels(change))


@dataclass(frozen=True)
class Numbers(Pixels):
    """Says that it changes each number by itself."""

    elementwise: ClassVar[bool] = True


def about_the_mean(pixels: Tensor, generator: torch.Generator) -> Tensor:
    each = pixels if pixels.ndim == 1 else pixels.flatten(1)
    return (each - each.mean(dim=-1, keepdim=True)).view_as(pixels)


def by_rows(pixels: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(pixels.shape[-1], generator=generator)
    return pixels + noise.to(pixels)


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (by_rows, "an elementwise distortion does the same to the numbers in any shape"),
        (about_the_mean, "an elementwise distortion makes each number of that number alone"),
    ],
)
def test_numbers(change: Callable[[Tensor, torch.Generator], Tensor], promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(Numbers(change))


@dataclass(frozen=True)
class Words(cdkit.PromptDistortion):
    """Does what it is given."""

    needs_text: ClassVar[bool] = False
    change: Callable[[Prompt], Prompt]

    def distort(self, prompt: Prompt) -> Prompt:
        return self.change(prompt)


def half_the_image(prompt: Prompt) -> Prompt:
    return replace(prompt, ids=prompt.ids[:3], is_image=prompt.is_image[:3])


def another_image(prompt: Prompt) -> Prompt:
    return replace(prompt, ids=(7, *prompt.ids), is_image=(True, *prompt.is_image))


def nothing(prompt: Prompt) -> Prompt:
    return replace(prompt, ids=(), is_image=())


def speaks(prompt: Prompt) -> Prompt:
    return prompt.insert("x", at=0)


def moods(prompt: Prompt) -> Prompt:
    return replace(prompt, ids=(next(counter), *prompt.ids[1:]))


WORDS: list[tuple[Callable[[Prompt], Prompt], str]] = [
    (half_the_image, "image tokens are taken out all together"),
    (another_image, "image tokens are taken out all together, never added"),
    (nothing, "a token is left in the prompt"),
    (speaks, "it calls encode only where needs_text is True"),
    (moods, "it is deterministic"),
]


@pytest.mark.parametrize(("change", "promise"), WORDS)
def test_prompts(change: Callable[[Prompt], Prompt], promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(Words(change))


@dataclass(frozen=True)
class Features(cdkit.FeatureDistortion):
    """Does what it is given."""

    change: Callable[[Tensor, Tensor, torch.Generator], Tensor]

    def distort(self, features: Tensor, attention: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.change(features, attention, generator)


def in_the_features(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    return features.mul_(2)


def one_token(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    return features[:1]


def of_the_attention(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    return features * attention.sum(dim=0)[:, None]


def above_none(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    return features / (features > features.max())


def unheard(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    torch.randn(3, generator=generator)
    return features + 1


def from_torch(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn_like(features)


def looked_at(features: Tensor, attention: Tensor, generator: torch.Generator) -> Tensor:
    return features * (attention.mean(dim=0) > attention.mean())[:, None]


FEATURES: list[tuple[Callable[[Tensor, Tensor, torch.Generator], Tensor], str]] = [
    (in_the_features, "nothing is written into what it is passed"),
    (one_token, "the features keep their shape"),
    (of_the_attention, "features in torch.float32 stay in it"),
    (above_none, "finite features stay finite"),
    (unheard, "another generator gives other noise"),
    (from_torch, "no random number comes from torch's global"),
]


@pytest.mark.parametrize(("change", "promise"), FEATURES)
def test_features(
    change: Callable[[Tensor, Tensor, torch.Generator], Tensor], promise: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_strategy(Features(change))


def test_sound_features() -> None:
    check_strategy(Features(looked_at))
