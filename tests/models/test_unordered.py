"""Noise on each number of an image: where pixels have no known order, or come in two tensors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import generator
from cdkit.models.generic import Generic
from cdkit.models.layouts.unordered import entries_of_images

from . import every_type, generic_tiny
from .modes import generated

SEED = 3
# sqrt of the signal kept after 501 steps of the schedule in VCD's vcd_add_noise.py
BETAS = torch.linspace(-6, 6, 1000, dtype=torch.float64).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
KEPT = float(torch.prod(1 - BETAS[:501]))


def prompts(name: str) -> tuple[Any, dict[str, Tensor], list[dict[str, Tensor]]]:
    """A model, a batch for it, and for each prompt the part of each tensor that is its image's."""
    if name == "inkling2":
        model, given = every_type.tiny(name)
        assert given is not None
        return model, given, [{"pixel_values": given["pixel_values"]}]
    given = generic_tiny.inputs(name, 0, 1)
    names = ("pixel_values", "high_res_pixel_values")
    return generic_tiny.tiny(name), given, [{n: given[n][[row]] for n in names} for row in (0, 1)]


@pytest.mark.filterwarnings("ignore:.*a generic one is in use")
@pytest.mark.parametrize("name", ["deepseek_vl_hybrid", "inkling2"])
def test_every_number_gets_noise_of_its_own(name: str) -> None:
    """The branch's logits are the stock model's for noise that is drawn here, in each tensor."""
    model, given, images = prompts(name)
    names = [f"prompt {row}" for row in range(len(images))]
    attached = cdkit.attach(
        model, cdkit.load("vcd"), trace=("logits",), seed=SEED, sample_ids=names
    )
    with attached:
        generated(model, given, max_new_tokens=1)
    other: dict[str, list[Tensor]] = {}
    for sample, image in zip(names, images, strict=True):
        random = generator(SEED, sample, "DiffusionNoise")
        noise = torch.randn(sum(own.numel() for own in image.values()), generator=random)
        for own, pixels in image.items():
            drawn, noise = noise[: pixels.numel()], noise[pixels.numel() :]
            noised = math.sqrt(KEPT) * pixels + math.sqrt(1 - KEPT) * drawn.view_as(pixels)
            other.setdefault(own, []).append(noised.to(pixels))
    whole = given | {own: torch.cat(parts) for own, parts in other.items()}
    wanted = generated(model, whole, max_new_tokens=1).logits[0]
    (branch,) = cdkit.load("vcd").branches
    found = attached.trace.steps[0].logits[branch.name].float()
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-4)
    stock = generated(model, given, max_new_tokens=1).logits[0]
    assert not found.allclose(stock.float(), atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*a generic one is in use")
def test_what_moves_pixels_is_refused() -> None:
    model, given, _ = prompts("deepseek_vl_hybrid")
    words = "random_transform needs them as pictures: pixels come in high_res_pixel_values as well"
    with (
        cdkit.attach(model, cdkit.load("ritual")),
        pytest.raises(cdkit.CdkitError, match=f"ritual changes pixels, but {words}"),
    ):
        generated(model, given)


def test_values_come_back() -> None:
    model, given, images = prompts("deepseek_vl_hybrid")
    values = Generic().split_values(model, given, [16, 16])
    for found, image in zip(values, images, strict=True):
        assert found.equal(torch.cat([own.flatten() for own in image.values()]))
    joined = Generic().join_values(model, [2 * own for own in values], given)
    assert sorted(joined) == ["high_res_pixel_values", "pixel_values"]
    for name, own in joined.items():
        assert own.equal(2 * given[name])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pixel_values": torch.zeros(2, 12)}, "not entries of one frame in 3 colours"),
        ({"pixel_values": torch.zeros(3, 3, 4, 4)}, "not 2 entries for 2 images"),
        (
            {"pixel_values": torch.zeros(2, 3, 4, 4), "image_sizes": torch.ones(2, 2)},
            "some of it may be padding",
        ),
        (
            {"pixel_values": torch.zeros(5, 3, 2, 2), "image_grid_thw": torch.tensor([[1, 2, 2]])},
            "not 4 entries for 2 images",
        ),
    ],
)
def test_numbers_that_are_no_images(given: dict[str, Tensor], words: str) -> None:
    with pytest.raises(cdkit.UnmatchedPixelsError, match=words):
        entries_of_images("pixel_values", given, [4, 4])
