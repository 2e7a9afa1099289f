"""The contract suite finds each way in which a mate in the batch, or another image, gets in.

Each part here works on a batch of equal prompts with one image each: its fault shows beside a
longer prompt, or one with other numbers and sizes of images. Messages end in what to do.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.combiner import State
from cdkit.interfaces.distortion import Modified, Prompt
from cdkit.interfaces.schedule import Signals
from cdkit.interfaces.segment import CrossModalSegment, ImageColumns
from cdkit.testing import (
    check_calibrator,
    check_combiner,
    check_constraint,
    check_schedule,
    check_selector,
    check_strategy,
)

pytestmark = pytest.mark.contract

Segment = CrossModalSegment
PADDING = "padding beside a mate with more tokens and other images changes nothing"


def broken(check: Callable[[Any], None], part: Any, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)) as caught:
        check(part)
    assert re.search(r"What to do: .{20,}$", str(caught.value), flags=re.DOTALL), caught.value


# ---- the cross-modal attention -------------------------------------------------------------------


@dataclass(frozen=True)
class Attention(cdkit.AttentionDistortion):
    """Does what it is given."""

    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits", "values", "text_logits"})
    change: Callable[[Segment], Segment]
    whole: bool = False

    @property
    def needs_whole_prompt(self) -> bool:
        return self.whole

    def distort(self, segment: Segment) -> Segment:
        return self.change(segment)


@dataclass(frozen=True)
class Everywhere(cdkit.Intervention):
    """Does what it is given."""

    change: Callable[[Segment], Segment]
    whole: bool = False
    branches: tuple[str, ...] = ("original",)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.whole

    def intervene(self, segment: Segment) -> Segment:
        return self.change(segment)


@dataclass(frozen=True)
class Selector(cdkit.CellSelector):
    """Chooses the cells that a change cuts or replaces."""

    change: Callable[[Segment], Segment]
    whole: bool = False

    @property
    def needs_whole_prompt(self) -> bool:
        return self.whole

    def select(self, segment: Segment) -> Tensor:
        new = self.change(segment)
        cut = new.logits.isneginf() & ~segment.logits.isneginf()
        return cut if new.replaced is None else new.replaced


def strongest(segment: Segment, count: int) -> Segment:
    """Cuts so many cells of each row and head."""
    rank = segment.logits.argsort(dim=-1, descending=True).argsort(dim=-1)
    return replace(segment, logits=segment.without((rank < count) & segment.cells[:, None]))


def a_share_of_all_columns(segment: Segment) -> Segment:
    return strongest(segment, round(0.2 * segment.logits.shape[-1]))


def a_share_of_the_widest_row(segment: Segment) -> Segment:
    return strongest(segment, round(0.2 * int(segment.image.valid.sum(dim=-1).max())))


def one_of_each_image(segment: Segment) -> Segment:
    return strongest(segment, segment.image.images or 1)


def by_the_number_of_text_rows(segment: Segment) -> Segment:
    prompt = segment.prompt[:, None, :, None]
    scale = torch.where(prompt, 1 + segment.prompt.shape[1] / 16, 1.0)
    return replace(segment, logits=segment.logits * scale)


def by_the_number_of_columns(segment: Segment) -> Segment:
    scale = math.log(segment.text_logits.shape[-1])
    return replace(segment, logits=segment.logits * scale)


def where_text_is_missing(segment: Segment) -> Segment:
    """The text columns that a row does not see are counted."""
    unseen = segment.text_logits.isneginf().sum(dim=-1, keepdim=True)
    return replace(segment, logits=segment.logits - unseen / 100)


def padding_counts_in_the_mean(segment: Segment) -> Segment:
    mean = segment.logits.nan_to_num(neginf=0).mean(dim=(1, 3), keepdim=True)
    return replace(segment, logits=segment.without(segment.logits > mean))


def values_of_padding(segment: Segment) -> Segment:
    mean = segment.image.values.mean(dim=2, keepdim=True)
    return replace(segment, replaced=segment.above_mean("row"), replacement=mean)


def keys_of_padding(segment: Segment) -> Segment:
    heads = segment.logits.shape[1] // segment.image.keys.shape[1]
    key = segment.image.keys.amax(dim=2, keepdim=True).repeat_interleave(heads, dim=1)
    return replace(segment, logits=segment.logits - segment.queries @ key.mT.to(segment.queries))


def an_even_share_for_each_image(segment: Segment) -> Segment:
    """As if images had equal numbers of tokens."""
    values, index = segment.image.values, segment.image.image_index
    rows, kv, count, dim = values.shape
    out = torch.zeros_like(values)
    for row in range(rows):
        images = int(index[row].max()) + 1
        split = values[row].reshape(kv, images, count // images, dim)
        out[row] = split.mean(2, keepdim=True).expand_as(split).reshape(kv, count, dim)
    return replace(segment, replaced=segment.above_mean("row"), replacement=out)


def all_images_as_one(segment: Segment) -> Segment:
    valid = segment.image.valid[:, None, :, None]
    mean = (segment.image.values * valid).sum(2, keepdim=True) / valid.sum(2, keepdim=True)
    return replace(segment, replaced=segment.above_mean("row"), replacement=mean.expand_as(mean))


def the_loudest_image_key(segment: Segment) -> Segment:
    """The text row sees the keys of images that come after it."""
    heads = segment.logits.shape[1] // segment.image.keys.shape[1]
    valid = segment.image.valid[:, None, :, None]
    key = segment.image.keys.masked_fill(~valid, -math.inf).amax(dim=2, keepdim=True)
    key = key.repeat_interleave(heads, dim=1)
    return replace(segment, logits=segment.logits - segment.queries @ key.mT.to(segment.queries))


def when_it_is_full(segment: Segment) -> Segment:
    return replace(segment, logits=segment.logits * (0.5 if segment.generated else 1.0))


def kept_under_one_name(segment: Segment) -> Segment:
    """A cached number of the batch, as `cached` must not hold it."""

    def widest(image: ImageColumns) -> Tensor:
        return image.valid.sum(dim=-1).amax().expand(image.valid.shape[0])

    count = segment.image.cached("widest", widest)[:, None, None, None]
    return replace(segment, logits=segment.logits / count)


CELLS: list[tuple[Callable[[Segment], Segment], bool, str]] = [
    (a_share_of_all_columns, False, PADDING),
    (a_share_of_the_widest_row, False, PADDING),
    (one_of_each_image, False, PADDING),
    (padding_counts_in_the_mean, False, PADDING),
]
"""Faults in choosing cells: of distortions, interventions and selectors alike."""

ATTENTION: list[tuple[Callable[[Segment], Segment], bool, str]] = [
    *CELLS,
    (by_the_number_of_text_rows, True, PADDING),
    (by_the_number_of_columns, False, PADDING),
    (where_text_is_missing, False, PADDING),
    (values_of_padding, False, PADDING),
    (keys_of_padding, False, PADDING),
    (an_even_share_for_each_image, False, "batches of prompts with other numbers and sizes"),
    (all_images_as_one, False, "text between two images depends on the first one alone"),
    (all_images_as_one, True, "what replaces an image's values depends on no later image"),
    (the_loudest_image_key, False, "text between two images depends on the first one alone"),
    (when_it_is_full, False, "what `full` and `generated` say changes nothing"),
    (kept_under_one_name, False, "rows of the batch are independent"),
]


@pytest.mark.parametrize(("change", "whole", "promise"), ATTENTION)
@pytest.mark.parametrize("kind", [Attention, Everywhere])
def test_attention(
    kind: Callable[..., Any], change: Callable[[Segment], Segment], whole: bool, promise: str
) -> None:
    broken(check_strategy, kind(change, whole), promise)


@pytest.mark.parametrize(("change", "whole", "promise"), CELLS)
def test_selectors(change: Callable[[Segment], Segment], whole: bool, promise: str) -> None:
    broken(check_selector, Selector(change, whole), promise)


def own_share(segment: Segment) -> Segment:
    """The first fault, mended: each row's own cells are counted."""
    count = (0.2 * segment.cells.sum(dim=-1).double()).round()[:, None, :, None]
    rank = segment.logits.argsort(dim=-1, descending=True).argsort(dim=-1)
    return replace(segment, logits=segment.without((rank < count) & segment.cells[:, None]))


def own_mean(segment: Segment) -> Segment:
    return replace(
        segment, replaced=segment.above_mean("row"), replacement=segment.image.mean_values()
    )


@pytest.mark.parametrize("change", [own_share, own_mean])
def test_sound_changes(change: Callable[[Segment], Segment]) -> None:
    check_strategy(Attention(change))
    check_strategy(Everywhere(change))
    check_selector(Selector(change))


# ---- pixels, features, prompts -------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels(cdkit.PixelDistortion):
    """Does what it is given."""

    change: Callable[[Tensor, torch.Generator], Tensor]

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.change(pixels, generator)


def a_square_turned(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels.mT


def of_eight_pixels(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels + torch.arange(8.0)[:, None].to(pixels)


def brightness_of_all_images(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels - pixels.mean()


def noise_as_loud_as_all_images(pixels: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(pixels.shape, generator=generator).to(pixels)
    return pixels + pixels.std() * noise


def the_next_image(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels.roll(1, dims=0)


PIXELS: list[tuple[Callable[[Tensor, torch.Generator], Tensor], str]] = [
    (a_square_turned, "the pixels keep their shape"),
    (of_eight_pixels, "it takes images of 6 x 10 pixels"),
    (brightness_of_all_images, "without regard to the other images of its prompt"),
    (noise_as_loud_as_all_images, "without regard to the other images of its prompt"),
    (the_next_image, "without regard to the other images of its prompt"),
]


@pytest.mark.parametrize(("change", "promise"), PIXELS)
def test_pixels(change: Callable[[Tensor, torch.Generator], Tensor], promise: str) -> None:
    broken(check_strategy, Pixels(change), promise)


@dataclass(frozen=True)
class Features(cdkit.FeatureDistortion):
    """Does what it is given."""

    change: Callable[[Tensor, Tensor], Tensor]

    def distort(self, features: Tensor, attention: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.change(features, attention)


def on_a_square_grid(features: Tensor, attention: Tensor) -> Tensor:
    side = round(len(features) ** 0.5)
    return features.view(side, side, -1).flip(0).reshape(features.shape)


def of_nine_tokens(features: Tensor, attention: Tensor) -> Tensor:
    return torch.where((torch.arange(len(features)) < 9)[:, None], 0 * features[:9], features[:9])


@pytest.mark.parametrize("change", [on_a_square_grid, of_nine_tokens])
def test_features(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    broken(check_strategy, Features(change), "it takes images of 11 tokens together")


@dataclass(frozen=True)
class Words(cdkit.PromptDistortion):
    """Does what it is given."""

    needs_text: ClassVar[bool] = False
    change: Callable[[Prompt], Prompt]

    def distort(self, prompt: Prompt) -> Prompt:
        return self.change(prompt)


def without(prompt: Prompt, gone: Callable[[int], bool]) -> Prompt:
    kept = [i for i in range(len(prompt.ids)) if not gone(i)]
    return replace(
        prompt,
        ids=tuple(prompt.ids[i] for i in kept),
        is_image=tuple(prompt.is_image[i] for i in kept),
    )


def without_the_first_image(prompt: Prompt) -> Prompt:
    first = prompt.is_image.index(True)
    return without(prompt, lambda i: prompt.is_image[i] and first <= i < first + 3)


def without_images_of_three_tokens(prompt: Prompt) -> Prompt:
    places = [i for i, image in enumerate(prompt.is_image) if image]
    return without(prompt, lambda i: i in places[: 3 * (len(places) // 3)])


def of_equal_images(prompt: Prompt) -> Prompt:
    places = [i for i, image in enumerate(prompt.is_image) if image]
    for start in range(0, len(places), 3):
        if places[start : start + 3] != list(range(places[start], places[start] + 3)):
            raise ValueError("an image has three tokens")
    return prompt.without_image()


WORDS: list[tuple[Callable[[Prompt], Prompt], str]] = [
    (without_the_first_image, "image tokens are taken out all together"),
    (of_equal_images, "it takes prompts with images of (3, 1, 5) tokens"),
]


@pytest.mark.parametrize(("change", "promise"), WORDS)
def test_prompts(change: Callable[[Prompt], Prompt], promise: str) -> None:
    broken(check_strategy, Words(change), promise)


# ---- logits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combiner(cdkit.LogitCombiner):
    """Does what it is given."""

    stateful: ClassVar[bool] = True
    change: Callable[..., Any]

    @property
    def is_identity(self) -> bool:
        return False

    def uses(self, name: str) -> bool:
        return True

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: State
    ) -> tuple[Tensor, State]:
        result: tuple[Tensor, State] = self.change(original, others, step, state)
        return result


def clamped_beside_loud_rows(original: Tensor, others: Any, step: int, state: State) -> Any:
    return (original.clamp(max=1) if original.max() > 40 else original), state


def last_row_counts(original: Tensor, others: Any, step: int, state: State) -> Any:
    return torch.cat((original[:-1], original[-1:] + (len(original) > 1))), state


def state_by_place(original: Tensor, others: Any, step: int, state: State) -> Any:
    """The first row's state is read for all: none shows until beams move."""
    place = torch.arange(len(original)).double()
    before = state.get("place", place)
    moved = (before != place).double()[:, None]
    return original - moved, {"place": place}


COMBINERS: list[tuple[Callable[..., Any], str]] = [
    (clamped_beside_loud_rows, "a mate with large logits changes nothing"),
    (last_row_counts, "rows of the batch are independent"),
    (state_by_place, "state follows its rows where beams are reordered"),
]


@pytest.mark.parametrize(("change", "promise"), COMBINERS)
def test_combiners(change: Callable[..., Any], promise: str) -> None:
    broken(check_combiner, Combiner(change), promise)


@dataclass(frozen=True)
class Schedule(cdkit.AlphaSchedule):
    """Does what it is given."""

    reads_attention: ClassVar[bool] = True
    change: Callable[[Signals], Tensor]

    def scale(self, signals: Signals, *, step: int, state: State) -> tuple[Tensor, State]:
        return self.change(signals), state


def off_beside_loud_rows(signals: Signals) -> Tensor:
    return torch.ones_like(signals.logits[:, 0]) * (signals.logits.max() < 50)


def off_beside_text(signals: Signals) -> Tensor:
    assert signals.image_mass is not None
    return torch.ones_like(signals.image_mass) * bool(signals.image_mass.min() > 0)


def of_the_image_alone(signals: Signals) -> Tensor:
    assert signals.image_mass is not None
    return 1 / signals.image_mass


SCHEDULES: list[tuple[Callable[[Signals], Tensor], str]] = [
    (off_beside_loud_rows, "mates with large logits, or without an image, change nothing"),
    (off_beside_text, "mates with large logits, or without an image, change nothing"),
    (of_the_image_alone, "factors are finite, 0 or more, also of a row without an image"),
]


@pytest.mark.parametrize(("change", "promise"), SCHEDULES)
def test_schedules(change: Callable[[Signals], Tensor], promise: str) -> None:
    broken(check_schedule, Schedule(change), promise)


@dataclass(frozen=True)
class Kept(cdkit.Constraint):
    """Keeps what it is given."""

    keep: Callable[[Tensor], Tensor]
    on_empty: cdkit.OnEmpty = "raise"

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def description(self) -> str:
        return "the constraint"

    def allowed(self, original: Tensor) -> Tensor:
        return self.keep(original)


def all_beside_loud_rows(logits: Tensor) -> Tensor:
    best = logits.amax(dim=-1, keepdim=True)
    return (logits >= best - 2) | (best - logits.amin(dim=-1, keepdim=True)).amax().gt(60)


def test_constraints() -> None:
    broken(check_constraint, Kept(all_beside_loud_rows), "a mate with large logits changes nothing")


# ---- positions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions(cdkit.PositionCalibrator):
    """Does what it is given."""

    change: Callable[[Tensor, Tensor], Tensor]

    @property
    def is_identity(self) -> bool:
        return False

    def calibrate(self, positions: Tensor, image_index: Tensor) -> Tensor:
        return self.change(positions, image_index)


def axes(x: Tensor, positions: Tensor) -> Tensor:
    """`x` for each axis of the positions."""
    return x if positions.ndim == 2 else x[..., None]


def by_column(positions: Tensor, image_index: Tensor) -> Tensor:
    """Every fourth column counts twice."""
    extra = (torch.arange(positions.shape[1]) // 4).double()[None].expand(image_index.shape)
    return positions + axes(extra, positions)


def slower_with_every_image_of_the_batch(positions: Tensor, image_index: Tensor) -> Tensor:
    """The saving of the third image is taken from all rows."""
    steps = (image_index >= 0).double().cumsum(dim=1)
    third = bool((image_index >= 2).any())
    return positions - axes(steps, positions) * (0.25 if third else 0.5)


def of_two_images(positions: Tensor, image_index: Tensor) -> Tensor:
    gamma = torch.tensor([0.5, 0.5])
    saved = torch.where(image_index >= 0, gamma[image_index.clamp(min=0)], 0).double()
    return positions - axes(saved.cumsum(dim=1), positions)


DISTANCE = "padding beside a mate with more tokens and other images changes no distance"
POSITIONS: list[tuple[Callable[[Tensor, Tensor], Tensor], str]] = [
    (by_column, "padding on the left changes no distance"),
    (slower_with_every_image_of_the_batch, DISTANCE),
    (of_two_images, "it takes prompts with three images of unequal grids"),
]


@pytest.mark.parametrize(("change", "promise"), POSITIONS)
def test_positions(change: Callable[[Tensor, Tensor], Tensor], promise: str) -> None:
    broken(check_calibrator, Positions(change), promise)
