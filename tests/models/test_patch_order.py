"""Patches become the picture that the family's image processor cut, whatever order it writes."""

from typing import Any

import einops
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import cdkit
from cdkit.models.generic import Generic
from cdkit.models.layouts import patches

from . import every_type

HEIGHT, WIDTH, SIDE = 8, 12, 2
PROCESSORS = {
    "glm46v": "Glm46VImageProcessorPil",
    "cosmos3_edge": "Cosmos3EdgeImageProcessorPil",
    "cosmos3_omni": "Qwen2VLImageProcessorPil",
    "hunyuan_vl": "HunYuanVLImageProcessorPil",
    "cohere_compass": "CohereCompassImageProcessorPil",
}


def picture() -> Any:
    random = np.random.default_rng(0)
    return random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_picture_comes_back(name: str) -> None:
    model, _ = every_type.tiny(name)
    vision, pixels = model.config.vision_config, picture()
    frames = getattr(vision, "temporal_patch_size", 1)
    processor: Any = getattr(transformers, PROCESSORS[name])(
        do_resize=False, do_normalize=False, do_rescale=False, patch_size=SIDE,
        merge_size=2, temporal_patch_size=frames,
    )  # fmt: skip
    given = dict(processor(Image.fromarray(pixels), return_tensors="pt"))
    given = {name: given[name] for name in ("pixel_values", "image_grid_thw")}
    (image,) = Generic().split_pixels(model, given, [6])
    wanted = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert image.equal(wanted.to(image))
    assert Generic().join_pixels(model, [image], given).equal(given["pixel_values"])


def test_frames_that_differ_are_no_picture() -> None:
    model, _ = every_type.tiny("glm46v")
    moving = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    given = {"pixel_values": moving, "image_grid_thw": torch.tensor([[1, 4, 6]])}
    with pytest.raises(cdkit.UnmatchedPixelsError, match="the frames of a patch differ"):
        Generic().split_pixels(model, given, [6])


def test_orders_differ() -> None:
    """Else one order would do, and the test above could not tell a wrong one."""
    sizes: Any = {"height": HEIGHT, "width": WIDTH, "side": SIDE, "merged": 2, "frames": 1}
    merged, rows, last = (
        patches.patch_places(name, **sizes) for name in ("glm46v", "hunyuan_vl", "cosmos3_edge")
    )
    assert not merged.equal(rows) and not merged.equal(last)
    assert merged.flatten().sort().values.equal(torch.arange(3 * HEIGHT * WIDTH))


BY_HAND = {
    "kimi_k25": ("c (h y) (w x) -> (h w) (c y x)", 1),
    "minimax_m3_vl": ("c (h a y) (w b x) -> (h w a b) (c q y x)", 2),
    "muse_glimmer": ("c (h y) (w x) -> (h w) (q c y x)", 2),
    "muse_spark": ("c (h y) (w x) -> (h w) (q c y x)", 2),
}
"""Orders of image processors that need torchvision, and how often a patch has the picture."""


@pytest.mark.parametrize("name", BY_HAND)
def test_a_processor_that_needs_torchvision(name: str) -> None:
    """Its order is that of its source, whether it can be imported or not."""
    order, frames = BY_HAND[name]
    numbers = torch.arange(3 * HEIGHT * WIDTH).view(3, HEIGHT, WIDTH)
    sides = {own: SIDE for own in "yxab" if own in order}
    if "q" in order:
        source, _, target = order.partition(" -> ")
        wanted = einops.repeat(numbers, f"{source} -> {target}", q=frames, **sides)
    else:
        wanted = einops.rearrange(numbers, order, **sides)
    found = patches.patch_places(
        name, height=HEIGHT, width=WIDTH, side=SIDE, merged=2, frames=frames
    )
    assert found.equal(wanted)


def test_an_order_that_is_not_known() -> None:
    """Inkling 2's image processor cuts the picture among other things, in no function alone."""
    with pytest.raises(cdkit.UnmatchedPixelsError, match="Inkling2ImageProcessor has no function"):
        patches.patch_places("inkling2", height=4, width=4, side=2, merged=1, frames=1)
