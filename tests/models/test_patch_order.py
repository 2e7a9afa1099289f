"""Patches become the picture that the family's image processor cut, whatever order it writes."""

import importlib.util
from typing import Any

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


def test_an_order_that_is_not_known_here() -> None:
    """The processors of these types need torchvision; noise in a scrambled picture is refused."""
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed: its processors are asked")
    with pytest.raises(cdkit.UnmatchedPixelsError, match=r"needs torchvision; install the torchv"):
        patches.patch_places("kimi_k25", height=4, width=4, side=2, merged=1, frames=1)
