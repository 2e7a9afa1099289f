"""What a change of the cross-modal segment promises; see `cdkit.testing`."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.cell_change import CellChange
from cdkit.interfaces.depth import Depth, check_depth, layers_within
from cdkit.interfaces.distortion import AttentionDistortion, Modified
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.probing.promises import name_of, require, require_same
from cdkit.testing.example_segments import (
    DEPTH,
    beside_a_mate,
    cut,
    example_segment,
    example_segments,
    fresh,
    without_the_mate,
)
from cdkit.testing.values import STATELESS, pure, takes

Change = Callable[[CrossModalSegment], CrossModalSegment]
INDEPENDENT = "rows of the batch are independent"
PADDING = "padding beside a mate with more tokens and other images changes nothing"
BATCHES = "batches of prompts with other numbers and sizes of images"
OWN_AXES = "reduce over the axes of one row (heads, text, image) with keepdim, never over dim 0"
OWN_CELLS = (
    "count `segment.cells` or `segment.image.valid` of each row, never shapes such as "
    "`logits.shape[-1]` or `image.images`, and leave padding out of every mean, maximum and rank"
)
OWN_TEXT = (
    "compute each text row by itself (those of the prompt that belong together: `segment.prompt`, "
    "with needs_whole_prompt = True)"
)
OWN_IMAGE = (
    "reduce over the columns of one image (`segment.image.image_index`, `shares()`, "
    "`mean_values()`); images may have different numbers of tokens"
)
FLAGS = "use `full` and `generated` only to skip work whose result is known"


def check_segment(
    part: Any,
    change: Change,
    modifies: frozenset[Modified],
    *,
    layers: Depth,
    needs_whole_prompt: bool,
    keeps_prefix: bool = True,
    remembers: bool = False,
) -> None:
    """Check a function that changes segments, through all layers as one forward call runs them.

    Args:
        part: The distortion or intervention; messages name it.
        change: What it does to a segment.
        modifies: The fields that it may change.
        layers: The share of the depth in which it acts.
        needs_whole_prompt: Whether a text row of the prompt may depend on another one.
        keeps_prefix: Whether it leaves the image tokens unpruned.
        remembers: Whether it keeps something for later calls. Its generated rows then have a
            memory, and are left to `memory_contract`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    require(
        isinstance(needs_whole_prompt, bool),
        part,
        "needs_whole_prompt is True or False",
        needs_whole_prompt,
        todo="set it in the class: True if a threshold goes over all text rows of the prompt",
    )
    require(
        isinstance(keeps_prefix, bool),
        part,
        "keeps_prefix is True or False",
        keeps_prefix,
        todo="set it in the class: False only if image tokens are pruned",
    )
    try:
        check_depth("layers", layers)
    except (CdkitError, TypeError, ValueError) as error:
        raise AssertionError(
            f"{name_of(part)}: layers are two shares of the depth. Got: {error}. What to do: write "
            "layers = (0.0, 1.0), say, for all layers"
        ) from error
    inside = layers_within(layers, DEPTH)

    def run(segments: Sequence[CrossModalSegment]) -> list[CrossModalSegment]:
        layer_state: dict[Hashable, Tensor] = {}
        given = [
            dataclasses.replace(s, layer_state=layer_state, memory={})
            for s in segments
            if s.image.layer in inside
        ]
        new = [change(segment) for segment in given]
        for old, changed in zip(given, new, strict=True):
            same = isinstance(changed, CrossModalSegment) and changed.layer_state is layer_state
            require(
                same,
                part,
                "it returns the segment, changed",
                type(changed),
                todo="return dataclasses.replace(segment, ...), or the segment itself",
            )
            _check_fields(part, old, changed, modifies, keeps_prefix=keeps_prefix)
            require(
                set(changed.memory) <= ({part} if remembers else set()),
                part,
                "it writes into memory under itself, and only with remembers = True",
                list(changed.memory),
                todo="set remembers = True, and use self as the key: memory[self] = ...",
            )
        require(
            set(layer_state) <= {part},
            part,
            "it writes into layer_state under itself",
            list(layer_state),
            todo="use self as the key: layer_state[self] = ...",
        )
        return new

    for kinds in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        pure(part, run, _rows(example_segments(*kinds), remembers))
    segments = _rows(example_segments(), remembers)
    new = run(segments)
    promise = "a second call with the same segment gives the same"
    same_segments(run(segments), new, part, promise, todo=STATELESS)
    count = segments[0].logits.shape[0]
    for rows in (*torch.arange(count)[:, None], torch.tensor([2, 0, 1])):
        mixed = run([cut(fresh(segment), rows=rows) for segment in segments])
        wanted = [cut(segment, rows=rows) for segment in new]
        same_segments(mixed, wanted, part, INDEPENDENT, todo=OWN_AXES)
    with takes(part, BATCHES, todo=OWN_CELLS):
        beside = run([beside_a_mate(segment) for segment in segments])
    same_segments(
        [without_the_mate(segment) for segment in beside], new, part, PADDING, todo=OWN_CELLS
    )
    if remembers:
        _check_unequal_images(part, run, segments, new, needs_whole_prompt=needs_whole_prompt)
        return
    generated = int(segments[0].prompt.any(0).sum())  # the first text row after the prompt's
    cuts = [slice(0, generated), slice(generated, None), slice(generated + 1, None)]
    if not needs_whole_prompt:
        cuts += [slice(0, 2), slice(2, None)]
    for text in cuts:
        promise = "a generated row depends on no other row, and changes none"
        if text in cuts[3:]:
            promise = "with needs_whole_prompt = False no text row depends on another"
        parts = run([cut(fresh(segment), text=text) for segment in segments])
        whole = [cut(segment, text=text) for segment in new]
        if text.start:  # the rows of the prompt decide what is pruned from the rows of the image
            whole = [
                dataclasses.replace(s, pruned=p.pruned) for s, p in zip(whole, parts, strict=True)
            ]
        same_segments(parts, whole, part, promise, todo=OWN_TEXT)
    later = [cut(fresh(s), rows=slice(0, 2), text=slice(generated, None)) for s in segments]
    told = [dataclasses.replace(fresh(s), full=True, generated=True) for s in later]
    promise = "what `full` and `generated` say changes nothing"
    same_segments(run(told), run(later), part, promise, todo=FLAGS)
    _check_unequal_images(part, run, segments, new, needs_whole_prompt=needs_whole_prompt)


def _rows(segments: list[CrossModalSegment], remembers: bool) -> list[CrossModalSegment]:
    """The segments; of a part that remembers the rows of the prompt alone, as the engine calls."""
    if not remembers:
        return segments
    prompt = int(segments[0].prompt.any(0).sum())
    late = segments[0].prompt.shape[1] - prompt
    return [cut(s, text=slice(prompt), columns=slice(-late)) for s in segments]


def _check_unequal_images(
    part: Any,
    run: Callable[[Sequence[CrossModalSegment]], list[CrossModalSegment]],
    segments: Sequence[CrossModalSegment],
    new: Sequence[CrossModalSegment],
    *,
    needs_whole_prompt: bool,
) -> None:
    """Check a sample with two images of unequal sizes: the second one must not reach the first."""
    first = int((segments[0].image.image_index[0] == 0).sum())
    here = {"rows": slice(0, 1), "text": slice(0, 1)}  # this row stands between the two images
    if not needs_whole_prompt:
        with takes(part, "one text row with one of two images", todo=OWN_IMAGE):
            alone = run([cut(fresh(segment), **here, image=slice(first)) for segment in segments])
        wanted = [cut(segment, **here, image=slice(first)) for segment in new]
        promise = "text between two images depends on the first one alone"
        same_segments(alone, wanted, part, promise, todo=OWN_IMAGE)
    other = [
        dataclasses.replace(
            segment,
            image=dataclasses.replace(
                segment.image,
                answer_cache={},
                values=torch.cat(
                    (segment.image.values[:, :, :first], 3 - segment.image.values[:, :, first:]), 2
                ),
            ),
        )
        for segment in (cut(segment, rows=slice(0, 1)) for segment in segments)
    ]
    for old, changed in zip(new, run(other), strict=True):
        before, after = old.replacement, changed.replacement
        if before is None or after is None:
            continue
        promise = "what replaces an image's values depends on no later image"
        now, then = after[:, :, :first], before[:1, :, :first]
        require_same(now, then, part, promise, todo=OWN_IMAGE)


def _check_fields(
    part: Any,
    old: CrossModalSegment,
    new: CrossModalSegment,
    modifies: frozenset[Modified],
    *,
    keeps_prefix: bool,
) -> None:
    kept = (
        *("image", "queries", "cells", "prompt", "predicts_next", "token_index"),
        *("before_image", "generated_columns"),
    )
    for name in kept:
        require(
            getattr(new, name) is getattr(old, name),
            part,
            f"{name} stays as it is",
            todo="change logits, replaced and replacement alone, by dataclasses.replace",
        )
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
            require(
                after.shape == before.shape and after.equal(before),
                part,
                promise,
                todo="name in modifies what it changes, or leave that as it was",
            )
        require(
            after.shape == before.shape,
            part,
            f"the {words} keep their shape",
            todo="change values alone, not how many there are",
        )
        require(
            after.dtype == before.dtype,
            part,
            f"the {words} keep their dtype",
            todo="compute in float32 if need be, and return in the dtype that it got",
        )
        bad = after.isnan() | (after == math.inf)
        require(
            not bad.any(),
            part,
            f"{words} are finite, or -inf where a cell is cut",
            todo="rule a cell out by -inf, never by NaN or +inf",
        )
        off = bool(after[~where].isneginf().all())
        require(
            off,
            part,
            f"{words} off {those} stay at -inf",
            todo="use torch.where(segment.cells[:, None], new, old)",
        )
    if new.pruned is not None:
        require(
            not keeps_prefix,
            part,
            "only with keeps_prefix = False image tokens are pruned",
            todo="set keeps_prefix = False",
        )
        whole = new.pruned.dtype == torch.bool and new.pruned.shape == old.image.valid.shape
        require(
            whole,
            part,
            "pruned is a mask of the image columns",
            new.pruned.shape,
            todo="return a bool tensor of shape (rows, image tokens)",
        )
    if "values" not in modifies:
        require(
            new.replaced is None,
            part,
            "without 'values' in modifies no cell is replaced",
            todo='add "values" to modifies, or leave replaced alone',
        )
    require(
        (new.replaced is None) == (new.replacement is None),
        part,
        "replaced and replacement come together",
        todo="set both by dataclasses.replace(segment, replaced=..., replacement=...)",
    )
    if new.replaced is None or new.replacement is None:
        return
    require(
        new.replaced.dtype == torch.bool,
        part,
        "replaced is a mask",
        new.replaced.dtype,
        todo="return a bool tensor",
    )
    require(
        new.replaced.shape == old.logits.shape,
        part,
        "replaced has the logits' shape",
        todo="make one entry for each row, head, text token and image token",
    )
    require(
        not new.replaced[~cells].any(),
        part,
        "nothing is replaced off the cells",
        todo="take replaced & segment.cells[:, None]",
    )
    values = old.image.values
    one = values[:, :, :1].shape
    fits = new.replacement.shape in (values.shape, one)
    promise = "replacement has the values' shape, or an image axis of 1"
    require(
        fits,
        part,
        promise,
        new.replacement.shape,
        todo="give one value for each column, or one for all of them",
    )
    require(
        new.replacement.dtype == values.dtype,
        part,
        "replacement has the values' dtype",
        todo="return it in the dtype of segment.image.values",
    )
    require(
        bool(new.replacement.isfinite().all()),
        part,
        "replacement is finite",
        todo="divide by no zero, and take means over valid columns only",
    )


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
    require(
        same,
        strategy,
        "the cells it takes stay when a constant is added to the logits",
        todo="compare logits with one another (their mean, their ranks), not with a number",
    )


def check_cell_change(strategy: AttentionDistortion) -> None:
    """Check that what `cell_change` says of generated rows is what `distort` does to them.

    A kernel goes by the former, and the operators by the latter.
    """
    change = strategy.cell_change()
    if change is None:
        return
    require(
        isinstance(change, CellChange),
        strategy,
        "cell_change gives a CellChange, or None",
        type(change),
        todo="return cdkit.CellChange(self.selector, ...)",
    )
    promise = "cell_change says what distort does to generated rows"
    todo = "return None from cell_change, or change the cells of its selector and nothing else"
    for layer in layers_within(strategy.layers, DEPTH):
        segment = example_segment(layer=layer)
        prompt = int(segment.prompt.any(0).sum())
        segment = cut(segment, text=slice(prompt, None))
        mask = change.selector.select(segment)
        if change.replacement is None:
            said = dataclasses.replace(segment, logits=segment.without(mask))
        else:
            said = dataclasses.replace(
                segment, replaced=mask, replacement=change.replacement(segment.image)
            )
        same_segments([strategy.distort(fresh(segment))], [said], strategy, promise, todo=todo)


def _mask(old: CrossModalSegment, new: CrossModalSegment) -> Tensor:
    cut = new.logits.isneginf() & ~old.logits.isneginf()
    return cut if new.replaced is None else cut | new.replaced


def same_segments(
    given: Sequence[CrossModalSegment],
    wanted: Sequence[CrossModalSegment],
    part: Any,
    promise: str,
    *,
    todo: str,
) -> None:
    """Equal logits, equal masks, and equal values wherever a mask takes them, in each layer."""
    for one, other in zip(given, wanted, strict=True):
        require_same(one.logits, other.logits, part, promise, todo=todo)
        require_same(one.text_logits, other.text_logits, part, promise, todo=todo)
        for mask, other_mask in ((one.replaced, other.replaced), (one.pruned, other.pruned)):
            if mask is None or other_mask is None:
                require(mask is other_mask, part, promise, todo=todo)
            else:
                require(mask.equal(other_mask), part, promise, todo=todo)
        if one.replacement is not None and other.replacement is not None:
            used = other.image.valid[:, None, :, None]
            require_same(one.replacement * used, other.replacement * used, part, promise, todo=todo)
