"""RITUAL against its formula (sangminwoo/RITUAL, commit 52065a6): the transforms pixel by pixel."""

import colorsys
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import generator

from .against import SEED, Ran, Rewrite, assert_close, branch_logits, generate, reference
from .decoders import Decoder
from .reference import Rules, apply_constraint, with_foreign_past
from .test_inputs import unchanged
from .tiny import Sample, sample, sequence, tiny

SAMPLES = (sample(3, 5, seed=61), sample(2, 3, 6, seed=62), sample(0, 4, seed=63, bos=False))
KINDS = ("horizontal_flip", "vertical_flip", "rotation", "colour_jitter", "blur", "resized_crop")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TRANSFORM: Any = cdkit.DISTORTIONS["random_transform"]
Picture = np.ndarray[Any, np.dtype[np.float64]]
"""(height, width, 3), in [0, 1] where it is a real one."""
Uniform = Callable[[float, float], float]


# ---- the transforms, a pixel at a time -----------------------------------------------------------


def rotated(picture: Picture, uniform: Uniform) -> Picture:
    angle = math.radians(uniform(-180, 180))
    height, width = picture.shape[:2]
    new = np.zeros_like(picture)
    for i, j in np.ndindex(height, width):
        down, right = i - (height - 1) / 2, j - (width - 1) / 2
        x = math.cos(angle) * right - math.sin(angle) * down + (width - 1) / 2
        y = math.sin(angle) * right + math.cos(angle) * down + (height - 1) / 2
        if 0 <= round(y) < height and 0 <= round(x) < width:
            new[i, j] = picture[round(y), round(x)]
    return new


def luma(picture: Picture) -> Picture:
    return np.asarray(picture @ np.array([0.299, 0.587, 0.114]))


def turned_hue(picture: Picture, turn: float) -> Picture:
    new = np.zeros_like(picture)
    for i, j in np.ndindex(*picture.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*picture[i, j])
        new[i, j] = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    return new


def jittered(picture: Picture, uniform: Uniform) -> Picture:
    factors = [uniform(0, 2), uniform(0, 2), uniform(0, 2), uniform(-0.5, 0.5)]
    places = [uniform(0, 1) for _ in range(4)]
    for which in sorted(range(4), key=lambda index: places[index]):
        by = factors[which]
        if which == 0:
            picture = by * picture
        elif which == 1:
            picture = by * picture + (1 - by) * luma(picture).mean()
        elif which == 2:
            picture = by * picture + (1 - by) * luma(picture)[..., None]
        else:
            picture = turned_hue(picture, by)
        picture = picture.clip(0, 1)
    return picture


def blurred(picture: Picture, uniform: Uniform) -> Picture:
    sigma = uniform(1.5, 2.0)
    height, width = picture.shape[:2]
    weight = {d: math.exp(-(d**2) / (2 * sigma**2)) for d in range(-6, 7)}
    total = sum(weight.values())

    def mirrored(place: int, length: int) -> int:
        place = abs(place)
        return place if place < length else 2 * (length - 1) - place

    new = np.zeros_like(picture)
    for i, j in np.ndindex(height, width):
        for a, one in weight.items():
            for b, other in weight.items():
                near = picture[mirrored(i + a, height), mirrored(j + b, width)]
                new[i, j] += one * other / total**2 * near
    return new


def cropped(picture: Picture, uniform: Uniform) -> Picture:
    height, width = picture.shape[:2]
    while True:
        area = height * width * uniform(0.08, 1)
        ratio = math.exp(uniform(math.log(0.75), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if h <= height and w <= width:
            break
    top, left = math.floor(uniform(0, height - h + 1)), math.floor(uniform(0, width - w + 1))
    part = picture[top : top + h, left : left + w]
    new = np.zeros_like(picture)
    for i, j in np.ndindex(height, width):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
        for a in (math.floor(y), math.floor(y) + 1):
            for b in (math.floor(x), math.floor(x) + 1):
                share = max(0, 1 - abs(y - a)) * max(0, 1 - abs(x - b))
                if share:
                    new[i, j] += share * part[a, b]
    return new


BY_PIXEL: dict[str, Callable[[Picture, Uniform], Picture]] = {
    "horizontal_flip": lambda picture, _: picture[:, ::-1],
    "vertical_flip": lambda picture, _: picture[::-1],
    "rotation": rotated,
    "colour_jitter": jittered,
    "blur": blurred,
    "resized_crop": cropped,
}


def transformed(
    *kinds: str, name: str = "", mean: Any = MEAN, std: Any = STD, again: int = 0
) -> Rewrite:
    """A sample with its images transformed; `again`: drawn once more, after so many draws."""

    def rewrite(one: Sample) -> Sample:
        random = generator(SEED, name or one.name, "RandomTransform")

        def uniform(low: float, high: float) -> float:
            share = float(torch.rand((), generator=random, dtype=torch.float64))
            return low + share * (high - low)

        for _ in range(again):
            uniform(0, 1)
        kind = kinds[math.floor(uniform(0, len(kinds))) if len(kinds) > 1 else 0]
        state, new = random.get_state(), []
        for image in one.pixels.permute(0, 2, 3, 1).numpy():
            random.set_state(state)  # one draw for all images of a sample
            picture = BY_PIXEL[kind](image * np.array(std) + np.array(mean), uniform)
            new.append(torch.tensor((picture - np.array(mean)) / np.array(std)))
        return replace(one, pixels=torch.stack(new).permute(0, 3, 1, 2).contiguous())

    return rewrite


def colourful(one: Sample) -> Sample:
    """Noise as a processor would hand it over: colours in [0, 1], mostly."""
    mean, std = (torch.tensor(c, dtype=torch.float64)[:, None, None] for c in (MEAN, STD))
    return replace(one, pixels=(one.pixels.sigmoid() - mean) / std)


COLOURED = tuple(map(colourful, SAMPLES))


def summed(original: Tensor, other: Tensor, alpha: float = 3.0, beta: float = 0.1) -> Tensor:
    combined = original + alpha * other
    return apply_constraint(combined, original, beta) if beta else combined


# ---- parity --------------------------------------------------------------------------------------

CASES: dict[str, tuple[dict[str, Any], Rewrite]] = {
    "default": ({}, transformed(*KINDS)),
    "weights": ({"alpha": 0.7, "beta": 0.3}, transformed(*KINDS)),
    "free": ({"beta": 0.0}, transformed(*KINDS)),
    "siglip": (
        {"mean": [0.5] * 3, "std": [0.5] * 3, "transforms": ["colour_jitter", "rotation"]},
        transformed("colour_jitter", "rotation", mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
    **{kind: ({"transforms": [kind]}, transformed(kind)) for kind in KINDS},
}


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (3, False)])
@pytest.mark.parametrize("case", CASES)
def test_against_the_sum_of_two_branches(case: str, pad: int, optimize: bool) -> None:
    given, rewrite = CASES[case]
    ran = generate(tiny(2), cdkit.load("ritual", **given), COLOURED, pad=pad, optimize=optimize)
    original = branch_logits(tiny(2), COLOURED, ran.tokens, Rules())
    distorted = branch_logits(tiny(2), COLOURED, ran.tokens, Rules(), rewrite=rewrite)
    assert (original - distorted).abs().amax((1, 2)).min() > 1e-2
    combined = summed(original, distorted, given.get("alpha", 3.0), given.get("beta", 0.1))
    expected = {"original": original, "distorted": distorted, "combined": combined}
    assert_close(ran.logits, expected, within=1e-7)
    assert torch.equal(ran.tokens, combined.argmax(-1))


def test_a_prompt_alone_is_what_it_is_in_a_batch() -> None:
    method = cdkit.load("ritual")
    batch = generate(tiny(2), method, COLOURED)
    for row, one in enumerate(COLOURED):
        alone = generate(tiny(2), method, [one])
        own = {name: logits[row : row + 1] for name, logits in batch.logits.items()}
        assert_close(own, alone.logits, within=1e-8)


def test_beams_of_a_batch_are_those_of_a_prompt_alone() -> None:
    """The rows of a sample share its one transform."""
    method = cdkit.load("ritual")
    ran = generate(tiny(2), method, COLOURED, trace=(), num_beams=3)
    alone = [generate(tiny(2), method, [one], trace=(), num_beams=3).tokens[0] for one in COLOURED]
    assert ran.tokens.tolist() == [tokens.tolist() for tokens in alone]


# ---- faults --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("ritual"), COLOURED)


WRONG: dict[str, Rewrite] = {
    "another sample's draw": transformed(*KINDS, name="other"),
    "a later draw": transformed(*KINDS, again=2),
    "identity": unchanged,
    "after normalisation": transformed("colour_jitter", mean=(0.0,) * 3, std=(1.0,) * 3),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_pixels_are_seen(fault: str) -> None:
    kinds = ("colour_jitter",) if fault == "after normalisation" else KINDS
    ran = generate(tiny(2), cdkit.load("ritual", transforms=kinds), COLOURED)
    faulty = branch_logits(tiny(2), COLOURED, ran.tokens, Rules(), rewrite=WRONG[fault])
    for row in range(len(COLOURED)):
        have = {"distorted": ran.logits["distorted"][row]}
        with pytest.raises(AssertionError, match="off by"):
            assert_close(have, {"distorted": faulty[row]}, within=1e-4)


@pytest.mark.parametrize(
    "fault", ["divided", "contrast", "probabilities", "log-softmax", "own cut", "sum's cut"]
)
def test_a_faulty_sum_is_seen(ran: Ran, fault: str) -> None:
    z, other = ran.logits["original"], ran.logits["distorted"]
    assert_close({"c": ran.logits["combined"]}, {"c": summed(z, other)}, within=1e-8)
    wrong = {
        "divided": summed(z, other) / 4,
        "contrast": apply_constraint(4 * z - 3 * other, z, 0.1),
        "probabilities": apply_constraint((z.softmax(-1) + 3 * other.softmax(-1)).log(), z, 0.1),
        "log-softmax": summed(z.log_softmax(-1), other.log_softmax(-1)),
        "own cut": apply_constraint(z + 3 * other, other, 0.1),
        "sum's cut": apply_constraint(z + 3 * other, z + 3 * other, 0.1),
    }
    with pytest.raises(AssertionError):
        assert_close({"c": ran.logits["combined"]}, {"c": wrong[fault]}, within=1e-3)


def test_the_cache_of_the_original_branch_is_seen(ran: Ran) -> None:
    """The fault of AGLA's public code: from the second token on both branches have one past."""
    model, tokens = tiny(2), ran.tokens[:, :-1].tolist()
    for step in range(1, ran.tokens.shape[1]):
        fed = [row[:step] for row in tokens]
        originals = reference(model, COLOURED, fed, Rules())
        for row, (one, original) in enumerate(zip(COLOURED, originals, strict=True)):
            own = transformed(*KINDS)(one)
            at = sequence(model, own.ids, fed[row], own.pixels)
            faulty = with_foreign_past(Decoder.of(model), at, Rules(), original)
            assert (faulty - original.logits[-1]).abs().max() < 1e-9  # it sees no second image
            assert (ran.logits["distorted"][row, step] - faulty).abs().max() > 1e-3


def test_branches_that_agree_only_sharpen() -> None:
    method = cdkit.load("ritual")
    same = replace(method, branches=cdkit.load("identical").branches)
    ran = generate(tiny(2), same, COLOURED)
    z = branch_logits(tiny(2), COLOURED, ran.tokens, Rules())
    expected = {"original": z, "distorted": z, "combined": apply_constraint(4 * z, z, 0.1)}
    assert_close(ran.logits, expected, within=1e-7)


# ---- the draw ------------------------------------------------------------------------------------


def test_each_transform_is_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity is not among them."""
    drawn, trials, pixels = Counter[str](), 1200, torch.zeros(1, 3, 2, 2)

    def noted(kind: str) -> Callable[[Tensor, Uniform], Tensor]:
        def note(images: Tensor, draw: Uniform) -> Tensor:
            drawn[kind] += 1
            return images

        return note

    strategy, module = TRANSFORM(), "cdkit.strategies.distortions.random_transform"
    monkeypatch.setattr(f"{module}.TRANSFORMS", {kind: noted(kind) for kind in KINDS})
    for seed in range(trials):
        strategy.distort(pixels, generator=torch.Generator().manual_seed(seed))
    expected = trials / len(KINDS)
    assert set(drawn) == set(KINDS) == set(strategy.transforms)
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 20.5  # p = 0.001


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(7, 11), (1, 1), (2, 30)])
def test_pictures_of_any_shape(kind: str, size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randn((2, 3, *size), generator=random, dtype=torch.float64)
    strategy = TRANSFORM(transforms=(kind,))
    for seed in range(20):
        new = strategy.distort(pixels, generator=torch.Generator().manual_seed(seed))
        assert new.shape == pixels.shape and new.isfinite().all()


def test_rotation_is_black_outside_and_jitter_stays_in_range() -> None:
    grey = torch.zeros(1, 3, 12, 12, dtype=torch.float64)  # CLIP's mean colour
    mean, std = (torch.tensor(c, dtype=torch.float64)[:, None, None] for c in (MEAN, STD))
    random = torch.Generator().manual_seed(3)
    turned = TRANSFORM(transforms=("rotation",)).distort(grey, generator=random) * std + mean
    assert (turned.abs() < 1e-12).all(1).any() and (turned > 0.1).all(1).any()
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        jitter = TRANSFORM(transforms=("colour_jitter",))
        new = jitter.distort(COLOURED[0].pixels, generator=random) * std + mean
        assert new.min() > -1e-9 and new.max() < 1 + 1e-9


@pytest.mark.usefixtures("as_for_a_user")
def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"transforms must be some of .*got \['x'\]"):
        cdkit.load("ritual", transforms=["x"])
    with pytest.raises(cdkit.CdkitError, match="transforms must be some of"):
        cdkit.load("ritual", transforms=[])
    with pytest.raises(cdkit.CdkitError, match="std must be above 0 for each colour"):
        cdkit.load("ritual", std=[1.0, 0.0, 1.0])
    with pytest.raises(cdkit.CdkitError, match="mean must have 3 items"):
        cdkit.load("ritual", mean=[1.0])
    for shape in ((2, 1, 8, 8), (3, 8, 8), (1, 4, 3, 8, 8)):
        with pytest.raises(cdkit.CdkitError, match=r"\(images, 3, height, width\), got \("):
            TRANSFORM().distort(torch.zeros(shape), generator=torch.Generator())
    for name in ("ritual", "attended_image"):
        with pytest.raises(cdkit.CdkitError, match=r"beta must be in \[0, 1\]"):
            cdkit.load(name, beta=2.0)
