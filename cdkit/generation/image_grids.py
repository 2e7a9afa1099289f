"""The grids of a call's images, for calibrators that ask for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cdkit.branches.layout import Layout
from cdkit.errors import CdkitError
from cdkit.interfaces.pixel_source import Kind
from cdkit.interfaces.position_calibrator import ImageGrid, PositionCalibrator
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.part_kinds import kind_of


def tokens_of_images(layout: Layout) -> list[int]:
    """How many image tokens each image of the prompts has, in their order."""
    return [
        count
        for index, row in zip(layout.image_index, layout.row_stats, strict=True)
        for count in torch.bincount(index[index >= 0], minlength=row.images).tolist()
    ]


def image_grids(
    attached: AttachedMethod,
    calibrator: PositionCalibrator,
    given: Mapping[str, Any],
    layout: Layout,
    kinds: Sequence[Kind],
) -> tuple[tuple[ImageGrid | None, ...], ...]:
    """Of each prompt the grids of its images.

    Args:
        attached: The method on its model.
        calibrator: Its calibrator, which needs them.
        given: The arguments of the call.
        layout: Of the prompts.
        kinds: Of each image of the prompts, in their order, whether it is one of a video.

    Raises:
        CdkitError: Where a calibrator needs a grid that the family does not say.
    """
    tokens = tokens_of_images(layout)
    pictures = [n for n, kind in zip(tokens, kinds, strict=True) if kind == "image"]
    told = iter(attached.adapter.image_grids(attached.model, given, pictures))
    every = iter([next(told) if kind == "image" else None for kind in kinds])
    counts = iter(tokens)
    found = []
    for prompt, row in enumerate(layout.row_stats):
        own = [(next(every), next(counts)) for _ in range(row.images)]
        for number, (grid, count) in enumerate(own):
            if grid is None or grid.tokens != count:
                raise CdkitError(
                    f"{kind_of(calibrator)} needs to know how the tokens of an image stand in the "
                    f"picture, but the adapter {type(attached.adapter).__name__} does not say it "
                    f"of image {number} of prompt {prompt} ({count} tokens): use a calibrator that "
                    "counts tokens alone, as cmac_cmpc does, or a model such as LLaVA-1.5"
                )
        found.append(tuple(grid for grid, _ in own))
    return tuple(found)
