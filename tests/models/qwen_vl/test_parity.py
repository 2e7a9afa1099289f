"""Each part, converted from the published names, against the plain reference; float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cdkit.models.qwen_vl.resampler import sine_table
from cdkit.models.qwen_vl.vision import interpolated

from .conftest import texts
from .faults import RESAMPLER, TEXT, TOWER, faulty
from .published import END, IMAGE
from .reference import Reference, cubic_weights, sines

Close = Callable[[Tensor, Tensor], None]


@pytest.mark.parametrize("side", [36, 32, 28], ids=["finer", "equal", "coarser"])
@torch.no_grad()
def test_the_tower(
    model: Any, reference: Reference, pixels: Callable[..., Tensor], close: Close, side: int
) -> None:
    """18 x 18, 16 x 16 and 14 x 14 patches over a table of 16 x 16."""
    images = pixels(2, side=side)
    close(model.model.vision_tower(images), torch.stack([reference.tower(x) for x in images]))


@torch.no_grad()
def test_image_features(
    model: Any, reference: Reference, pixels: Callable[..., Tensor], close: Close
) -> None:
    images = pixels(2, seed=1)
    found = model.get_image_features(images)
    assert isinstance(found.pooler_output, list)
    close(torch.stack(found.pooler_output), torch.stack([reference.image(x) for x in images]))
    close(found.last_hidden_state, torch.stack([reference.tower(x) for x in images]))


@pytest.mark.parametrize("fault", [*TOWER, *RESAMPLER])
@torch.no_grad()
def test_a_faulty_image_is_seen(
    model: Any, reference: Reference, pixels: Callable[..., Tensor], close: Close, fault: str
) -> None:
    images = pixels()
    have = model.get_image_features(images)
    with faulty(fault):
        image, tower = reference.image(images[0]), reference.tower(images[0])
    with pytest.raises(AssertionError, match="off by"):
        close(have.pooler_output[0], image)
    if fault in TOWER:
        with pytest.raises(AssertionError, match="off by"):
            close(have.last_hidden_state[0], tower)


@pytest.mark.parametrize(("old", "new"), [(16, 32), (16, 18), (4, 7), (7, 4), (5, 5), (1, 3)])
def test_positions_of_another_grid(old: int, new: int, close: Close) -> None:
    table = torch.randn(old * old, 6, generator=torch.Generator().manual_seed(0)).double()
    along = cubic_weights(old, new)
    want = torch.einsum("yi,xj,ijc->yxc", along, along, table.reshape(old, old, 6))
    close(interpolated(table, new * new), want.flatten(0, 1))
    half = interpolated(table.bfloat16(), new * new)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), want.flatten(0, 1), rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("side", "width"), [(16, 256), (3, 8), (1, 4)])
def test_the_sine_table(side: int, width: int, close: Close) -> None:
    close(sine_table(side, width), sines(side, width))
    if side > 1:
        across = sines(side, width).reshape(side, side, width).transpose(0, 1).flatten(0, 1)
        with pytest.raises(AssertionError, match="off by"):
            close(sine_table(side, width), across)


@torch.no_grad()
def test_logits(
    model: Any,
    reference: Reference,
    pixels: Callable[..., Tensor],
    row: Callable[..., list[int]],
    close: Close,
) -> None:
    """Text alone, and an image first, in the middle and last; then all in one padded batch."""
    rows = [row(7), row(0, 5, seed=1), row(9, 20, seed=2), row(6, 0, seed=3)]
    images = pixels(3)
    shown: list[list[Tensor]] = [[], [images[0]], [images[1]], [images[2]]]
    wanted = []
    for ids, seen in zip(rows, shown, strict=True):
        features = [reference.image(image) for image in seen]
        wanted.append(reference.logits(ids, features, image=IMAGE))
        given = {"pixel_values": torch.stack(seen)} if seen else {}
        close(model(input_ids=torch.tensor([ids]), **given).logits[0], wanted[-1])
    together = model(**texts(rows, pad=END), pixel_values=images).logits
    for ids, have, want in zip(rows, together, wanted, strict=True):
        close(have[-len(ids) :], want)


@pytest.mark.parametrize("fault", TEXT)
@torch.no_grad()
def test_a_faulty_text_is_seen(
    model: Any,
    reference: Reference,
    pixels: Callable[..., Tensor],
    row: Callable[..., list[int]],
    close: Close,
    fault: str,
) -> None:
    ids, images = row(3, 8), pixels()
    have = model(input_ids=torch.tensor([ids]), pixel_values=images).logits[0]
    features = [reference.image(images[0])]
    with faulty(fault):
        wrong = reference.logits(ids, features, image=IMAGE)
    with pytest.raises(AssertionError, match="off by"):
        close(have[-1], wrong[-1])
