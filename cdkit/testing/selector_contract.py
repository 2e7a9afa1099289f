"""What a cell selector promises; see `cdkit.testing`."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.segment import CrossModalSegment
from cdkit.interfaces.selector import CellSelector
from cdkit.probing.promises import require
from cdkit.testing.example_segments import (
    beside_a_mate,
    cut,
    example_segments,
    fresh,
    without_the_mate,
)
from cdkit.testing.segment_contract import (
    BATCHES,
    FLAGS,
    INDEPENDENT,
    OWN_AXES,
    OWN_CELLS,
    OWN_IMAGE,
    OWN_TEXT,
    PADDING,
)
from cdkit.testing.values import check_value, normal, pure, takes


def check_selector(selector: Any) -> None:
    """The promises of a cell selector.

    A constant that is added to all logits of a sample's prompt, on image and text, leaves its
    attention as it is, so the cells must stay, whatever the selector. A selector that does not need
    the whole prompt must also ignore a constant of each text row.
    """
    check_value(selector)
    require(
        isinstance(selector, CellSelector),
        selector,
        "it subclasses CellSelector",
        todo="write class Name(cdkit.CellSelector)",
    )
    whole = selector.needs_whole_prompt
    require(
        isinstance(whole, bool),
        selector,
        "needs_whole_prompt is True or False",
        whole,
        todo="set it in the class: True if the choice goes over all text rows of the prompt",
    )
    for kinds in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        for segment in example_segments(*kinds):
            mask = pure(selector, selector.select, segment)
            _check_mask(selector, segment, mask)
            if selector.mean_scope is not None:
                require(
                    mask.equal(segment.above_mean(selector.mean_scope)),
                    selector,
                    "with a mean_scope it chooses exactly the cells above that mean",
                    selector.mean_scope,
                    todo="leave mean_scope None, or return segment.above_mean(self.mean_scope)",
                )
    for segment in example_segments():
        mask = selector.select(segment)
        for rows in (*torch.arange(mask.shape[0])[:, None], torch.tensor([2, 0, 1])):
            mixed = selector.select(cut(fresh(segment), rows=rows))
            require(
                mixed.equal(mask[rows]), selector, INDEPENDENT, (mixed, mask[rows]), todo=OWN_AXES
            )
        _check_beside_a_mate(selector, segment, mask)
        prompt = int(segment.prompt.any(0).sum())
        cuts = [slice(0, prompt), slice(prompt, None), slice(prompt + 1, None)]
        promise = "the prompt and each generated row get the same cells alone"
        if not whole:
            cuts += [slice(row, row + 1) for row in range(prompt)]
            promise = "with needs_whole_prompt = False each text row gets the same cells alone"
        for text in cuts:
            part = selector.select(cut(fresh(segment), text=text))
            equal = part.equal(mask[:, :, text])
            require(equal, selector, promise, (text, part), todo=OWN_TEXT)
        later = cut(fresh(segment), rows=slice(0, 2), text=slice(prompt, None))  # all are cells
        told = dataclasses.replace(later, full=True, generated=True)
        promise = "what `full` and `generated` say changes nothing"
        equal = selector.select(told).equal(selector.select(later))
        require(equal, selector, promise, todo=FLAGS)
        added = torch.full((1, 1, mask.shape[2], 1), 2.5, dtype=torch.float64)
        promise = "the cells stay when a constant is added to the logits"
        _check_constant(selector, segment, mask, added, promise)
        if not whole:
            added = 9 * normal(0, 1, 1, mask.shape[2], 1)
            promise = "with needs_whole_prompt = False the cells stay when each text row's logits"
            _check_constant(selector, segment, mask, added, f"{promise} get a constant of its own")


def _check_beside_a_mate(selector: CellSelector, segment: CrossModalSegment, mask: Tensor) -> None:
    larger = beside_a_mate(segment)
    with takes(selector, BATCHES, todo=OWN_CELLS):
        given = dataclasses.replace(larger, replaced=selector.select(larger))
    beside = without_the_mate(given).replaced
    assert beside is not None
    require(beside.equal(mask), selector, PADDING, (beside, mask), todo=OWN_CELLS)
    first = int((segment.image.image_index[0] == 0).sum())
    here = {"rows": slice(0, 1), "text": slice(0, 1), "image": slice(first)}
    if not selector.needs_whole_prompt:
        alone = selector.select(cut(fresh(segment), **here))
        promise = "text between two images depends on the first one alone"
        wanted = mask[:1, :, :1, :first]
        require(alone.equal(wanted), selector, promise, (alone, wanted), todo=OWN_IMAGE)


def _check_constant(
    selector: CellSelector, segment: CrossModalSegment, mask: Tensor, added: Tensor, promise: str
) -> None:
    moved = dataclasses.replace(
        fresh(segment), logits=segment.logits + added, text_logits=segment.text_logits + added
    )
    new = selector.select(moved)
    require(
        new.equal(mask),
        selector,
        promise,
        (new, mask),
        todo="count columns where segment.cells is True alone: others are padding",
    )


def _check_mask(selector: CellSelector, segment: CrossModalSegment, mask: Tensor) -> None:
    require(
        isinstance(mask, Tensor) and mask.dtype == torch.bool,
        selector,
        "it gives a mask",
        todo="return a bool tensor, True for cells that it chooses",
    )
    shape = segment.logits.shape
    require(
        mask.shape == shape,
        selector,
        "the mask has the logits' shape",
        mask.shape,
        todo="make one entry for each row, head, text token and image token",
    )
    off = ~segment.cells[:, None].expand_as(mask)
    require(
        not bool(mask[off].any()),
        selector,
        "nothing is chosen off the cells",
        todo="take mask & segment.cells[:, None]",
    )
