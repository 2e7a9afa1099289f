"""The contract suite's questions about the cross-modal segment; see `cdkit.testing`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cdkit.segment import CrossModalSegment, ImageColumns
from cdkit.strategy import AttentionDistortion, Touch
from cdkit.testing_tools import normal, pure, require, require_same

Change = Callable[[CrossModalSegment], CrossModalSegment]


def check_segment(
    part: Any, change: Change, touches: frozenset[Touch], *, whole_prompt: bool
) -> None:
    require(isinstance(whole_prompt, bool), part, "whole_prompt is True or False", whole_prompt)
    for kinds in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        segment = example_segment(*kinds)
        new = pure(part, change, segment)
        require(isinstance(new, CrossModalSegment), part, "it returns a segment", type(new))
        _check_fields(part, segment, new, touches)
    segment = example_segment()
    new = change(segment)
    _same_cells(change(segment), new, part, "a second call with the same segment gives the same")
    for row in range(segment.logits.shape[0]):
        one = slice(row, row + 1)
        alone = _cut(_fresh(segment), rows=one)
        _same_cells(change(alone), _cut(new, rows=one), part, "rows of the batch are independent")
    order = torch.tensor([2, 0, 1])
    _same_cells(
        change(_cut(_fresh(segment), rows=order)),
        _cut(new, rows=order),
        part,
        "rows of the batch are independent",
    )
    generated = int(segment.prompt.any(0).sum())  # the first text row after the prompt's
    cuts = [slice(0, generated), slice(generated, None), slice(generated + 1, None)]
    if not whole_prompt:
        cuts += [slice(0, 2), slice(2, None)]
    for text in cuts:
        _same_cells(
            change(_cut(_fresh(segment), text=text)),
            _cut(new, text=text),
            part,
            "with whole_prompt = False no text row depends on another"
            if text in cuts[3:]
            else "a generated row depends on no other row, and changes none",
        )


def _check_fields(
    part: Any, old: CrossModalSegment, new: CrossModalSegment, touches: frozenset[Touch]
) -> None:
    kept = ("image", "queries", "cells", "prompt", "token_index")
    for name in kept:
        require(getattr(new, name) is getattr(old, name), part, f"{name} stays as it is")
    cells = old.cells[:, None].expand_as(old.logits)
    if "logits" not in touches:
        require_same(new.logits, old.logits, part, "without 'logits' in touches the logits stay")
    require(new.logits.shape == old.logits.shape, part, "the logits keep their shape")
    require(new.logits.dtype == old.logits.dtype, part, "the logits keep their dtype")
    bad = new.logits.isnan() | (new.logits == math.inf)
    require(not bad.any(), part, "logits are finite, or -inf where a cell is cut")
    require(bool(new.logits[~cells].isneginf().all()), part, "logits off the cells stay at -inf")
    if "values" not in touches:
        require(new.replaced is None, part, "without 'values' in touches no cell is replaced")
    require(
        (new.replaced is None) == (new.replacement is None),
        part,
        "replaced and replacement come together",
    )
    if new.replaced is None or new.replacement is None:
        return
    require(new.replaced.dtype == torch.bool, part, "replaced is a mask", new.replaced.dtype)
    require(new.replaced.shape == old.logits.shape, part, "replaced has the logits' shape")
    require(not new.replaced[~cells].any(), part, "nothing is replaced off the cells")
    values = old.image.values
    require(new.replacement.shape == values.shape, part, "replacement has the values' shape")
    require(new.replacement.dtype == values.dtype, part, "replacement has the values' dtype")
    require(bool(new.replacement.isfinite().all()), part, "replacement is finite")


def check_mask_ignores_constants(strategy: AttentionDistortion) -> None:
    """Drawn from a continuous distribution: no logit lies within 1e-6 of another one's mean."""
    segment = example_segment()
    moved = dataclasses.replace(_fresh(segment), logits=segment.logits + 2.5)
    old, new = (_mask(s, strategy.distort(s)) for s in (segment, moved))
    require(
        old.equal(new), strategy, "the cells it takes stay when a constant is added to the logits"
    )


def _mask(old: CrossModalSegment, new: CrossModalSegment) -> Tensor:
    cut = new.logits.isneginf() & ~old.logits.isneginf()
    return cut if new.replaced is None else cut | new.replaced


def example_segment(
    dtype: torch.dtype = torch.float64, values: torch.dtype = torch.float64
) -> CrossModalSegment:
    """A random segment of three samples: two images, one image, and one beside padding.

    Its first four text rows are the prompt's, two more were generated; two query heads share a
    key.
    """
    image_index = torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6])
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[2, 4:] = False
    cells = valid[:, None].repeat(1, 6, 1)
    cells[0, 0] &= image_index[0] == 0  # this row stands between the two images
    cells[2, 0] = False  # and this one is padding
    prompt = torch.tensor([True] * 4 + [False] * 2).repeat(3, 1)
    prompt[2, 0] = False
    keys, queries = normal(1, 3, 2, 6, 4), normal(2, 3, 4, 6, 4)
    logits = queries @ keys.repeat_interleave(2, dim=1).mT / 2
    image = ImageColumns(
        keys=keys.to(values),
        values=normal(3, 3, 2, 6, 4).to(values),
        valid=valid,
        image_index=image_index,
        token_index=torch.arange(2, 8).repeat(3, 1),
        streams=torch.tensor([11, 22, 33]),
        layer=1,
        depth=4,
    )
    text_logits = normal(4, 3, 4, 6, 14)
    text_logits[..., 2:8] = -math.inf  # the image columns
    ahead = torch.arange(14) > torch.arange(8, 14)[:, None]
    return CrossModalSegment(
        image=image,
        queries=queries.to(dtype),
        logits=logits.to(dtype).masked_fill(~cells[:, None], -math.inf),
        cells=cells,
        prompt=prompt,
        predicts=torch.tensor([False] * 3 + [True] * 3).repeat(3, 1),
        token_index=torch.arange(8, 14).repeat(3, 1),
        text_logits=text_logits.to(dtype).masked_fill(ahead, -math.inf),
        before_image=(torch.arange(14) < 2).repeat(3, 1),
    )


def _cut(
    segment: CrossModalSegment, *, rows: slice | Tensor = slice(None), text: slice = slice(None)
) -> CrossModalSegment:
    """Some rows of the batch, or some of the text rows."""
    image = {
        field.name: getattr(segment.image, field.name)[rows]
        for field in dataclasses.fields(ImageColumns)
        if field.name not in ("layer", "depth", "memory")
    }
    return CrossModalSegment(
        image=ImageColumns(**image, layer=segment.image.layer, depth=segment.image.depth),
        queries=segment.queries[rows][:, :, text],
        logits=segment.logits[rows][:, :, text],
        cells=segment.cells[rows][:, text],
        prompt=segment.prompt[rows][:, text],
        predicts=segment.predicts[rows][:, text],
        token_index=segment.token_index[rows][:, text],
        text_logits=segment.text_logits[rows][:, :, text],
        before_image=segment.before_image[rows],
        replaced=None if segment.replaced is None else segment.replaced[rows][:, :, text],
        replacement=None if segment.replacement is None else segment.replacement[rows],
    )


def _fresh(segment: CrossModalSegment) -> CrossModalSegment:
    """The segment with nothing remembered."""
    return dataclasses.replace(segment, image=dataclasses.replace(segment.image, memory={}))


def _same_cells(
    given: CrossModalSegment, wanted: CrossModalSegment, part: Any, promise: str
) -> None:
    """Equal logits, equal mask, and equal values wherever the mask takes them."""
    require_same(given.logits, wanted.logits, part, promise)
    if given.replaced is None or wanted.replaced is None:
        require(given.replaced is wanted.replaced, part, promise)
        return
    require(given.replaced.equal(wanted.replaced), part, promise)
    assert given.replacement is not None and wanted.replacement is not None
    used = wanted.image.valid[:, None, :, None]
    require_same(given.replacement * used, wanted.replacement * used, part, promise)
