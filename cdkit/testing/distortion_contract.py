"""What a distortion or an intervention promises; see `cdkit.testing`."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.distortion import (
    AttentionDistortion,
    DistortionStrategy,
    FeatureDistortion,
    Modified,
    PixelDistortion,
    Prompt,
    PromptDistortion,
)
from cdkit.interfaces.intervention import Intervention
from cdkit.probing.promises import name_of, require, require_same
from cdkit.testing.memory_contract import check_memory
from cdkit.testing.segment_contract import (
    check_cell_change,
    check_mask_ignores_constants,
    check_segment,
)
from cdkit.testing.values import PASSED_RANDOMNESS, check_value, normal, pure, takes

ANY_SIZE = (
    "take heights and widths from `pixels.shape`: images of unequal sizes come one after the other"
)
OWN_PICTURE = (
    "reduce over the channels, rows and columns of one image (dim=(1, 2, 3), keepdim=True): images "
    "of one size come together, others alone, and the result must be the same"
)
ANY_GRID = (
    "take the number of tokens from `features.shape[0]`: they are of all images of the prompt, "
    "whose grids may be unequal"
)
WHOLE_IMAGES = (
    "find image tokens by `prompt.is_image`, whatever their number, and take them out by "
    "`prompt.without_image()`"
)


def check_strategy(strategy: object) -> None:
    """Check the promises of a distortion of any of the four kinds, or of an intervention.

    Args:
        strategy: An instance of a subclass of `cdkit.PixelDistortion`, `FeatureDistortion`,
            `PromptDistortion`, `AttentionDistortion` or `Intervention`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(strategy)
    match strategy:
        case PixelDistortion():
            _check_modifies(strategy, {"pixels"})
            _check_pixels(strategy)
        case FeatureDistortion():
            _check_modifies(strategy, {"features"})
            _check_features(strategy)
        case PromptDistortion():
            _check_modifies(strategy, {"prompt"})
            _check_prompt(strategy)
        case AttentionDistortion():
            _check_modifies(strategy, {"logits", "text_logits", "values"})
            check_segment(
                strategy,
                strategy.distort,
                strategy.modifies,
                layers=strategy.layers,
                needs_whole_prompt=strategy.needs_whole_prompt,
                keeps_prefix=strategy.keeps_prefix,
                remembers=strategy.remembers,
            )
            check_memory(strategy, strategy.distort, strategy.layers, strategy.remembers)
            check_mask_ignores_constants(strategy)
            check_cell_change(strategy)
        case Intervention():
            require(
                isinstance(strategy.branches, tuple),
                strategy,
                "branches is a tuple of branch names",
                todo='write branches: tuple[str, ...] = ("original",)',
            )
            check_segment(
                strategy,
                strategy.intervene,
                frozenset({"logits", "text_logits", "values"}),
                layers=strategy.layers,
                needs_whole_prompt=strategy.needs_whole_prompt,
                remembers=strategy.remembers,
            )
            check_memory(strategy, strategy.intervene, strategy.layers, strategy.remembers)
        case _:
            raise AssertionError(
                f"{name_of(strategy)} must subclass PixelDistortion, FeatureDistortion, "
                "PromptDistortion, AttentionDistortion or Intervention. What to do: write one of "
                "them after the class's name"
            )


def _check_modifies(strategy: DistortionStrategy, allowed: set[Modified]) -> None:
    modifies = getattr(strategy, "modifies", None)
    require(
        isinstance(modifies, frozenset) and modifies <= allowed,
        strategy,
        f"modifies is a frozenset out of {sorted(allowed)}",
        modifies,
        todo="name only what it may change",
    )


def _check_pixels(strategy: PixelDistortion) -> None:
    def distort(pixels: Tensor) -> Tensor:
        return strategy.distort(pixels, generator=torch.Generator().manual_seed(0))

    for dtype, images in itertools.product((torch.float32, torch.float64, torch.bfloat16), (1, 2)):
        for height, width in ((8, 8), (6, 10), (14, 3)) if dtype == torch.float64 else ((8, 8),):
            pixels = normal(1, images, 3, height, width).to(dtype)
            with takes(strategy, f"images of {height} x {width} pixels", todo=ANY_SIZE):
                new = pure(strategy, distort, pixels)
            require(
                new.shape == pixels.shape,
                strategy,
                "the pixels keep their shape",
                f"{tuple(new.shape)} of {tuple(pixels.shape)}",
                todo=ANY_SIZE,
            )
            require(
                new.dtype == dtype,
                strategy,
                f"pixels in {dtype} stay in it",
                new.dtype,
                todo="compute in float32 if need be, and return in the dtype that it got",
            )
            require(
                bool(new.isfinite().all()),
                strategy,
                "finite pixels stay finite",
                todo="divide by no zero, and keep sums within the dtype's range",
            )
    pair = normal(1, 2, 3, 8, 8)
    loud = torch.stack((pair[0], 40 * normal(2, 3, 8, 8)))
    promise = "an image is distorted without regard to the other images of its prompt"
    require_same(distort(loud)[0], distort(pair)[0], strategy, promise, todo=OWN_PICTURE)
    pixels = normal(1, 1, 3, 8, 8)
    if strategy.elementwise:
        _check_elementwise(distort, strategy, pixels)
    _check_noise(strategy, lambda random: strategy.distort(pixels, generator=random), pixels)


def _check_elementwise(
    distort: Callable[[Tensor], Tensor], strategy: PixelDistortion, pixels: Tensor
) -> None:
    todo = "set elementwise = False, or compute each number from itself and from noise of its own"
    new = distort(pixels)
    flat = distort(pixels.flatten())
    promise = "an elementwise distortion does the same to the numbers in any shape"
    require_same(flat, new.flatten(), strategy, promise, todo=todo)
    other = pixels.flatten().clone()
    other[5] += 1
    moved = (distort(other) != flat).nonzero()[:, 0].tolist()
    promise = "an elementwise distortion makes each number of that number alone"
    require(
        moved in ([], [5]), strategy, promise, f"numbers {moved} moved with number 5", todo=todo
    )


def _check_features(strategy: FeatureDistortion) -> None:
    def distort(features: Tensor, attention: Tensor, *, seed: int = 0) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return strategy.distort(features, attention, generator=random)

    for dtype, tokens in itertools.product(
        (torch.float32, torch.float64, torch.bfloat16), (1, 9, 11)
    ):
        features = normal(1, tokens, 6).to(dtype)
        attention = normal(2, 5, tokens + 4).softmax(dim=-1)[:, :tokens]  # the rest is on text
        with takes(strategy, f"images of {tokens} tokens together", todo=ANY_GRID):
            new = pure(strategy, distort, features, attention)
        require(
            new.shape == features.shape,
            strategy,
            "the features keep their shape",
            new.shape,
            todo="change values alone, not how many there are",
        )
        require(
            new.dtype == dtype,
            strategy,
            f"features in {dtype} stay in it",
            new.dtype,
            todo="compute in float32 if need be, and return in the dtype that it got",
        )
        require(
            bool(new.isfinite().all()),
            strategy,
            "finite features stay finite",
            todo="divide by no zero, and take no log of 0",
        )
    features, attention = normal(1, 9, 6), normal(2, 5, 13).softmax(dim=-1)[:, :9]
    _check_noise(
        strategy, lambda random: strategy.distort(features, attention, generator=random), features
    )


def _check_noise(part: Any, distort: Callable[[torch.Generator], Tensor], given: Tensor) -> None:
    """Check that the generator is the only source of randomness, and makes a difference if used."""
    random = torch.Generator().manual_seed(0)
    first, second = (distort(random) for _ in range(2))
    if random.get_state().equal(torch.Generator().manual_seed(0).get_state()):
        promise = "without the generator it is deterministic"
        require_same(first, second, part, promise, todo=PASSED_RANDOMNESS)
    elif not first.equal(given):
        other = [distort(torch.Generator().manual_seed(seed)) for seed in range(1, 9)]
        moved = any(not first.equal(new) for new in other)
        promise = "another generator gives other noise"
        require(moved, part, promise, todo=PASSED_RANDOMNESS)


def _check_prompt(strategy: PromptDistortion) -> None:
    needs = getattr(strategy, "needs_text", None)
    require(
        isinstance(needs, bool),
        strategy,
        "needs_text is True or False",
        needs,
        todo="set it in the class: True if distort calls encode",
    )

    def encode(text: str) -> tuple[int, ...]:
        require(
            bool(needs),
            strategy,
            "it calls encode only where needs_text is True",
            todo="set needs_text = True",
        )
        return tuple(100 + ord(letter) for letter in text)

    for images in ((3,), (3, 3), (3, 1, 5)):  # their tokens
        ids = (1, 2, *(i for tokens in images for i in (*(7,) * tokens, 3)), 4, 5)
        flags = tuple(i == 7 for i in ids)
        slot = len(ids) - flags[::-1].index(True)
        prompt = Prompt(ids, flags, system_slot=1, question_slot=slot, encode=encode)
        with takes(strategy, f"prompts with images of {images} tokens", todo=WHOLE_IMAGES):
            new = strategy.distort(prompt)
        require(
            isinstance(new, Prompt),
            strategy,
            "it returns a Prompt",
            type(new),
            todo="return dataclasses.replace(prompt, ids=...)",
        )
        require(
            strategy.distort(prompt) == new,
            strategy,
            "it is deterministic",
            todo="compute from the prompt alone, without random numbers",
        )
        require(
            bool(new.ids),
            strategy,
            "a token is left in the prompt",
            todo="keep what is not to be changed; a prompt is never empty",
        )
        kept = tuple(i for i, image in zip(new.ids, new.is_image, strict=True) if image)
        require(
            kept in ((), (7,) * sum(images)) and (7 in new.ids) == bool(kept),
            strategy,
            "image tokens are taken out all together, never added",
            new.ids,
            todo=WHOLE_IMAGES,
        )
