"""The known mistakes, each as a replacement of one function of the reference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from . import reference
from .decoders import mark_of
from .reference import Layer, Sequence_

CROSS_MODAL, KEPT_WEIGHTS, MEAN_VALUE = (
    reference.cross_modal,
    reference.kept_weights,
    reference.mean_value,
)


def rows_off_by_one(moved: Tensor, image: Sequence[int]) -> Tensor:
    return moved + (torch.tensor(image) < 0).double()


def shared_threshold(parts: Sequence[Layer]) -> Tensor:
    """Of IMCCD's code: one threshold for all prompts of the batch."""
    cells = []
    for part in parts:
        inside = part.cells.clone()
        inside[part.sequence.prompt :] = False
        cells.append(part.logits[:, inside].flatten())
    return torch.cat(cells).mean()


def later_image(sequence: Sequence_) -> Tensor:
    """Text sees the latest image before it alone."""
    image = torch.tensor(sequence.image)
    latest = image.cummax(0).values
    return CROSS_MODAL(sequence) & (image[None, :] == latest[:, None])


def renormalised(weights: Tensor, mask: Tensor) -> Tensor:
    kept = KEPT_WEIGHTS(weights, mask)
    return kept / kept.sum(-1, keepdim=True).clamp(min=1e-9)


def mean_over_marks(value: Tensor, image: Tensor, number: int) -> Tensor:
    return value[(image == number) | (image == mark_of(number))]


FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "renormalised": ("kept_weights", renormalised),
    "calibrated_text": ("calibrated_cells", torch.ones_like),
    "rows_off_by_one": ("turned_rows", rows_off_by_one),
    "scalar_mean": ("mean_value", lambda own, distortion: MEAN_VALUE(own, "mean_scalar")),
    "not_causal": (
        "visible_cells",
        lambda decoder, sequence, *_: torch.ones(2 * (len(sequence.image),), dtype=torch.bool),
    ),
    "shared_threshold": ("prompt_threshold", shared_threshold),
    "one_group": (
        "threshold_groups",
        lambda sequence, scope: [list(range(len(sequence.image)))],
    ),
    "ordinary_threshold": ("judged_logits", lambda layer: layer.ordinary),
    "mean_over_images": ("averaged", lambda value, image, number: value[image >= 0]),
    "later_image": ("cross_modal", later_image),
    "first_layer_only": ("is_distorted", lambda layer: layer == 0),
    "tiled_heads": ("each_head", lambda x, copies: x.repeat(1, copies, 1)),
    "marks_are_text": ("is_text", lambda image: image < 0),
    "mean_over_marks": ("averaged", mean_over_marks),
}
"""Mistake -> the function of the reference that it changes, and how that is wrong."""


@contextmanager
def faulty(name: str) -> Iterator[None]:
    """The reference with one mistake."""
    function, wrong = FAULTS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, function, wrong)
        yield
