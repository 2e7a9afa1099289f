"""What a change of the cross-modal segment promises; see `cdkit.testing`."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.depth import Depth, check_depth, layers_within
from cdkit.interfaces.distortion import AttentionDistortion, Modified
from cdkit.interfaces.segment import CrossModalSegment, ImageColumns
from cdkit.interfaces.selector import CellSelector
from cdkit.probing.promises import name_of, require, require_same
from cdkit.testing.values import check_value, normal, pure

Change = Callable[[CrossModalSegment], CrossModalSegment]
DEPTH = 4


def check_segment(
    part: Any,
    change: Change,
    modifies: frozenset[Modified],
    *,
    layers: Depth,
    needs_whole_prompt: bool,
    keeps_prefix: bool = True,
) -> None:
    """Check a function that changes segments, through all layers as one forward call runs them.

    Args:
        part: The distortion or intervention; messages name it.
        change: What it does to a segment.
        modifies: The fields that it may change.
        layers: The share of the depth in which it acts.
        needs_whole_prompt: Whether a text row of the prompt may depend on another one.
        keeps_prefix: Whether it leaves the image tokens unpruned.

    Raises:
        AssertionError: Where a promise is broken.
    """
    require(
        isinstance(needs_whole_prompt, bool),
        part,
        "needs_whole_prompt is True or False",
        needs_whole_prompt,
    )
    require(isinstance(keeps_prefix, bool), part, "keeps_prefix is True or False", keeps_prefix)
    try:
        check_depth("layers", layers)
    except (CdkitError, TypeError, ValueError) as error:
        raise AssertionError(f"{name_of(part)}: layers are two shares of the depth") from error
    inside = layers_within(layers, DEPTH)

    def run(segments: Sequence[CrossModalSegment]) -> list[CrossModalSegment]:
        layer_state: dict[Hashable, Tensor] = {}
        given = [
            dataclasses.replace(s, layer_state=layer_state)
            for s in segments
            if s.image.layer in inside
        ]
        new = [change(segment) for segment in given]
        for old, changed in zip(given, new, strict=True):
            same = isinstance(changed, CrossModalSegment) and changed.layer_state is layer_state
            require(same, part, "it returns the segment, changed", type(changed))
            _check_fields(part, old, changed, modifies, keeps_prefix=keeps_prefix)
        require(
            set(layer_state) <= {part},
            part,
            "it writes into layer_state under itself",
            list(layer_state),
        )
        return new

    for kinds in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        pure(part, run, example_segments(*kinds))
    segments = example_segments()
    new = run(segments)
    _same(run(segments), new, part, "a second call with the same segment gives the same")
    count = segments[0].logits.shape[0]
    for rows in (*torch.arange(count)[:, None], torch.tensor([2, 0, 1])):
        mixed = run([_cut(_fresh(segment), rows=rows) for segment in segments])
        wanted = [_cut(segment, rows=rows) for segment in new]
        _same(mixed, wanted, part, "rows of the batch are independent")
    generated = int(segments[0].prompt.any(0).sum())  # the first text row after the prompt's
    cuts = [slice(0, generated), slice(generated, None), slice(generated + 1, None)]
    if not needs_whole_prompt:
        cuts += [slice(0, 2), slice(2, None)]
    for text in cuts:
        promise = "a generated row depends on no other row, and changes none"
        if text in cuts[3:]:
            promise = "with needs_whole_prompt = False no text row depends on another"
        parts = run([_cut(_fresh(segment), text=text) for segment in segments])
        whole = [_cut(segment, text=text) for segment in new]
        if text.start:  # the rows of the prompt decide what is pruned from the rows of the image
            whole = [
                dataclasses.replace(s, pruned=p.pruned) for s, p in zip(whole, parts, strict=True)
            ]
        _same(parts, whole, part, promise)


def _check_fields(
    part: Any,
    old: CrossModalSegment,
    new: CrossModalSegment,
    modifies: frozenset[Modified],
    *,
    keeps_prefix: bool,
) -> None:
    kept = ("image", "queries", "cells", "prompt", "predicts_next", "token_index", "before_image")
    for name in kept:
        require(getattr(new, name) is getattr(old, name), part, f"{name} stays as it is")
    cells = old.cells[:, None].expand_as(old.logits)
    reach = ~old.text_logits.isneginf()
    both: list[tuple[Modified, Tensor, Tensor, Tensor, str]] = [
        ("logits", old.logits, new.logits, cells, "the cells"),
        ("text_logits", old.text_logits, new.text_logits, reach, "what a row attends to"),
    ]
    for name, before, after, where, those in both:
        words = name.replace("_", " ")
        if name not in modifies:
            promise = f"without {name!r} in modifies the {words} stay"
            require(after.shape == before.shape and after.equal(before), part, promise)
        require(after.shape == before.shape, part, f"the {words} keep their shape")
        require(after.dtype == before.dtype, part, f"the {words} keep their dtype")
        bad = after.isnan() | (after == math.inf)
        require(not bad.any(), part, f"{words} are finite, or -inf where a cell is cut")
        off = bool(after[~where].isneginf().all())
        require(off, part, f"{words} off {those} stay at -inf")
    if new.pruned is not None:
        require(not keeps_prefix, part, "only with keeps_prefix = False image tokens are pruned")
        whole = new.pruned.dtype == torch.bool and new.pruned.shape == old.image.valid.shape
        require(whole, part, "pruned is a mask of the image columns", new.pruned.shape)
    if "values" not in modifies:
        require(new.replaced is None, part, "without 'values' in modifies no cell is replaced")
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
    one = values[:, :, :1].shape
    fits = new.replacement.shape in (values.shape, one)
    promise = "replacement has the values' shape, or an image axis of 1"
    require(fits, part, promise, new.replacement.shape)
    require(new.replacement.dtype == values.dtype, part, "replacement has the values' dtype")
    require(bool(new.replacement.isfinite().all()), part, "replacement is finite")


def check_mask_ignores_constants(strategy: AttentionDistortion) -> None:
    """Check that a constant added to all attention logits does not change what is distorted.

    The example's logits come from a continuous distribution, so that none lies so near a mean that
    rounding could decide.
    """
    masks = []
    for added in (0.0, 2.5):
        layer_state: dict[Hashable, Tensor] = {}
        for layer in layers_within(strategy.layers, DEPTH):
            segment = example_segment(layer=layer)
            moved = dataclasses.replace(
                segment,
                logits=segment.logits + added,
                text_logits=segment.text_logits + added,
                layer_state=layer_state,
            )
            masks.append(_mask(moved, strategy.distort(moved)))
    half = len(masks) // 2
    same = all(old.equal(new) for old, new in zip(masks[:half], masks[half:], strict=True))
    require(same, strategy, "the cells it takes stay when a constant is added to the logits")


def check_selector(selector: Any) -> None:
    """The promises of a cell selector.

    A constant that is added to all logits of a sample's prompt, on image and text, leaves its
    attention as it is, so the cells must stay, whatever the selector. A selector that does not need
    the whole prompt must also ignore a constant of each text row.
    """
    check_value(selector)
    require(isinstance(selector, CellSelector), selector, "it subclasses CellSelector")
    whole = selector.needs_whole_prompt
    require(isinstance(whole, bool), selector, "needs_whole_prompt is True or False", whole)
    for kinds in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        for segment in example_segments(*kinds):
            mask = pure(selector, selector.select, segment)
            _check_mask(selector, segment, mask)
    for segment in example_segments():
        mask = selector.select(segment)
        for rows in (*torch.arange(mask.shape[0])[:, None], torch.tensor([2, 0, 1])):
            mixed = selector.select(_cut(_fresh(segment), rows=rows))
            promise = "rows of the batch are independent"
            require(mixed.equal(mask[rows]), selector, promise, (mixed, mask[rows]))
        prompt = int(segment.prompt.any(0).sum())
        cuts = [slice(0, prompt), slice(prompt, None), slice(prompt + 1, None)]
        promise = "the prompt and each generated row get the same cells alone"
        if not whole:
            cuts += [slice(row, row + 1) for row in range(prompt)]
            promise = "with needs_whole_prompt = False each text row gets the same cells alone"
        for text in cuts:
            part = selector.select(_cut(_fresh(segment), text=text))
            require(part.equal(mask[:, :, text]), selector, promise, (text, part))
        later = _cut(_fresh(segment), rows=slice(0, 2), text=slice(prompt, None))  # all are cells
        told = dataclasses.replace(later, full=True, generated=True)
        promise = "what `full` and `generated` say changes nothing"
        require(selector.select(told).equal(selector.select(later)), selector, promise)
        added = torch.full((1, 1, mask.shape[2], 1), 2.5, dtype=torch.float64)
        promise = "the cells stay when a constant is added to the logits"
        _check_constant(selector, segment, mask, added, promise)
        if not whole:
            added = 9 * normal(0, 1, 1, mask.shape[2], 1)
            promise = "with needs_whole_prompt = False the cells stay when each text row's logits"
            _check_constant(selector, segment, mask, added, f"{promise} get a constant of its own")


def _check_constant(
    selector: CellSelector, segment: CrossModalSegment, mask: Tensor, added: Tensor, promise: str
) -> None:
    moved = dataclasses.replace(
        _fresh(segment), logits=segment.logits + added, text_logits=segment.text_logits + added
    )
    new = selector.select(moved)
    require(new.equal(mask), selector, promise, (new, mask))


def _check_mask(selector: CellSelector, segment: CrossModalSegment, mask: Tensor) -> None:
    require(isinstance(mask, Tensor) and mask.dtype == torch.bool, selector, "it gives a mask")
    shape = segment.logits.shape
    require(mask.shape == shape, selector, "the mask has the logits' shape", mask.shape)
    off = ~segment.cells[:, None].expand_as(mask)
    require(not bool(mask[off].any()), selector, "nothing is chosen off the cells")


def _mask(old: CrossModalSegment, new: CrossModalSegment) -> Tensor:
    cut = new.logits.isneginf() & ~old.logits.isneginf()
    return cut if new.replaced is None else cut | new.replaced


def example_segments(
    dtype: torch.dtype = torch.float64, values: torch.dtype = torch.float64
) -> list[CrossModalSegment]:
    """An example segment for each layer of a decoder of `DEPTH` layers."""
    return [example_segment(dtype, values, layer=layer) for layer in range(DEPTH)]


def example_segment(
    dtype: torch.dtype = torch.float64, values: torch.dtype = torch.float64, *, layer: int = 1
) -> CrossModalSegment:
    """A random segment of three samples: two images, one image, and one beside padding.

    Args:
        dtype: Of queries and logits.
        values: The dtype of keys and values.
        layer: The layer that it is of.

    Returns:
        A segment of 3 rows with 4 heads (two share a key), 6 image columns and 6 text rows: four
        of the prompt, then two that were generated.
    """
    image_index = torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6])
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[2, 4:] = False
    cells = valid[:, None].repeat(1, 6, 1)
    cells[0, 0] &= image_index[0] == 0  # this row stands between the two images
    cells[2, 0] = False  # and this one is padding
    prompt = torch.tensor([True] * 4 + [False] * 2).repeat(3, 1)
    prompt[2, 0] = False
    seed = 10 * layer
    keys, queries = normal(seed + 1, 3, 2, 6, 4), normal(seed + 2, 3, 4, 6, 4)
    logits = queries @ keys.repeat_interleave(2, dim=1).mT / 2
    image = ImageColumns(
        keys=keys.to(values),
        values=normal(seed + 3, 3, 2, 6, 4).to(values),
        valid=valid,
        image_index=image_index,
        token_index=torch.arange(2, 8).repeat(3, 1),
        rng_keys=torch.tensor([11, 22, 33]),
        layer=layer,
        depth=DEPTH,
    )
    text_logits = normal(seed + 4, 3, 4, 6, 14)
    text_logits[..., 2:8] = -math.inf  # the image columns
    ahead = torch.arange(14) > torch.arange(8, 14)[:, None]
    return CrossModalSegment(
        image=image,
        queries=queries.to(dtype),
        logits=logits.to(dtype).masked_fill(~cells[:, None], -math.inf),
        cells=cells,
        prompt=prompt,
        predicts_next=torch.tensor([False] * 3 + [True] * 3).repeat(3, 1),
        token_index=torch.arange(8, 14).repeat(3, 1),
        text_logits=text_logits.to(dtype).masked_fill(ahead, -math.inf),
        before_image=(torch.arange(14) < 2).repeat(3, 1),
    )


def _cut(
    segment: CrossModalSegment, *, rows: slice | Tensor = slice(None), text: slice = slice(None)
) -> CrossModalSegment:
    """The segment of some rows of the batch, or of some text rows."""
    image = {
        field.name: getattr(segment.image, field.name)[rows]
        for field in dataclasses.fields(ImageColumns)
        if field.name not in ("layer", "depth", "answer_cache", "images")
    }
    return CrossModalSegment(
        image=ImageColumns(**image, layer=segment.image.layer, depth=segment.image.depth),
        queries=segment.queries[rows][:, :, text],
        logits=segment.logits[rows][:, :, text],
        cells=segment.cells[rows][:, text],
        prompt=segment.prompt[rows][:, text],
        predicts_next=segment.predicts_next[rows][:, text],
        token_index=segment.token_index[rows][:, text],
        text_logits=segment.text_logits[rows][:, :, text],
        before_image=segment.before_image[rows],
        replaced=None if segment.replaced is None else segment.replaced[rows][:, :, text],
        replacement=None if segment.replacement is None else segment.replacement[rows],
        pruned=None if segment.pruned is None else segment.pruned[rows],
    )


def _fresh(segment: CrossModalSegment) -> CrossModalSegment:
    """The segment with an empty answer cache."""
    return dataclasses.replace(segment, image=dataclasses.replace(segment.image, answer_cache={}))


def _same(
    given: Sequence[CrossModalSegment],
    wanted: Sequence[CrossModalSegment],
    part: Any,
    promise: str,
) -> None:
    """Equal logits, equal masks, and equal values wherever a mask takes them, in each layer."""
    for one, other in zip(given, wanted, strict=True):
        require_same(one.logits, other.logits, part, promise)
        require_same(one.text_logits, other.text_logits, part, promise)
        for mask, other_mask in ((one.replaced, other.replaced), (one.pruned, other.pruned)):
            if mask is None or other_mask is None:
                require(mask is other_mask, part, promise)
            else:
                require(mask.equal(other_mask), part, promise)
        if one.replacement is not None and other.replacement is not None:
            used = other.image.valid[:, None, :, None]
            require_same(one.replacement * used, other.replacement * used, part, promise)
