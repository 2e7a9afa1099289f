"""All attention masks of a decoder call: where rows may attend, and which cells are cross-modal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.image_columns import ImageColumnIndex
from cdkit.branches.layout import Layout
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.model_adapter import ModelAdapter, SeesAhead


@dataclass(frozen=True, eq=False)
class Chunk:
    """The columns that one decoder call adds to some rows of a batch."""

    start: int
    stop: int
    layout: Layout
    """The layout of these rows' prompts."""
    read_mask: Callable[[], Bool[Tensor, "rows columns"]]
    """Gives `token_mask`, which steps without padding do not need."""
    length: int
    generated: bool
    """Whether none of the chunk is of the prompt. A field, not computed from `start`: compiled
    steps read it, and a number of columns would be part of their graph."""
    first_text: int
    """The first of the chunk's columns, counted from `start`, in which any row is text after an
    image; the chunk's length where there is none."""
    all_text: bool
    """Whether, from `first_text` on, there is nothing but text after each row's last image."""
    open: bool = False
    """Whether columns are among them that nothing was written into yet: masked, as padding is."""

    @cached_property
    def token_mask(self) -> Bool[Tensor, "rows columns"]:
        """All columns up to `stop`: False on padding."""
        return self.read_mask()

    @property
    def padded(self) -> bool:
        """Whether some columns hold no token to which a row may attend."""
        return self.open or self.layout.padded

    @property
    def completes_prompt(self) -> bool:
        """Whether the prompt is whole with this chunk, and was not before."""
        return not self.generated and self.stop >= self.layout.length


def make_chunk(
    layout: Layout,
    read_mask: Callable[[], Tensor],
    start: int,
    stop: int,
    *,
    open: bool = False,
) -> Chunk:
    """The columns from `start` to `stop`; reads nothing back from the device."""
    length, generated = stop - start, start >= layout.length
    has_images = layout.image_span.stop > layout.image_span.start
    first_text = max(0, min(length, layout.first_text - start)) if has_images else length
    all_text = layout.all_rows_have_images
    if all_text and not generated:
        first = start + first_text
        all_text = not layout.padded and all(
            row.first_text <= first and row.last_image < first for row in layout.row_stats
        )
    return Chunk(start, stop, layout, read_mask, length, generated, first_text, all_text, open)


class RowMasks(NamedTuple):
    """The masks of some rows in a call, from a first column on; the same in every layer."""

    forbidden: Bool[Tensor, "#rows 1 text columns"] | None
    """True where a row may not attend; None where all rows may attend to all columns."""
    seen: Bool[Tensor, "#rows text columns"]
    """True where a row may attend."""
    segment: Bool[Tensor, "rows 1 #text columns"]
    """Text rows, times the columns of the images before them."""
    is_text: Bool[Tensor, "rows text"]
    calibrated: Bool[Tensor, "rows 1 #text columns"]
    """Where logits are those of calibrated positions: the segment, and where queries of image
    tokens use them, too, all cells between image tokens."""
    has_dead_rows: bool
    """Whether some rows may attend to nothing, as padding does."""

    def of(self, rows: slice) -> "RowMasks":
        """The masks of some of the rows."""
        if rows == slice(None):
            return self
        forbidden = self.forbidden
        if forbidden is not None and forbidden.shape[0] > 1:
            forbidden = forbidden[rows]
        return RowMasks(
            forbidden=forbidden,
            seen=self.seen if self.seen.shape[0] == 1 else self.seen[rows],
            segment=self.segment[rows],
            is_text=self.is_text[rows],
            calibrated=self.calibrated[rows],
            has_dead_rows=self.has_dead_rows,
        )


class SegmentMask(NamedTuple):
    """The cross-modal segment of one branch's rows in a call: what of it has no layer."""

    rows: slice
    """The branch's rows among those of the call."""
    image: ImageColumnIndex
    gather_index: Int[Tensor, "rows 1 1 image"]
    """`image.columns`, those that are not there yet at the last column."""
    cells: Bool[Tensor, "rows text image"]
    segment: Bool[Tensor, "rows 1 #text columns"]
    prompt: Bool[Tensor, "rows text"]
    predicts_next: Bool[Tensor, "rows text"]
    token_index: Int[Tensor, "rows text"]
    before_image: Bool[Tensor, "rows columns"]
    generated_columns: Bool[Tensor, "rows columns"]
    full: bool
    """Whether every cell is one, and the image's columns are the same in all rows."""


class CallMasks(NamedTuple):
    """All masks of a call; on one device, and under one mask that layers are given."""

    rows: RowMasks
    segments: Mapping[str, SegmentMask]
    prefix: Bool[Tensor, "samples 1 prefix prefix"] | None
    """The mask of the shared columns among themselves; None where it is plain causal, or there are
    none."""


def call_masks(
    chunk: Chunk,
    first: int,
    device: torch.device,
    images: Mapping[str, tuple[slice, ImageColumnIndex]],
    *,
    packed: tuple[int, int] | None = None,
    given: Tensor | None = None,
    image_rows: bool = False,
) -> CallMasks:
    """The masks of the chunk's columns from `first` on.

    Args:
        chunk: The columns of the call.
        first: The first of them whose weights are made.
        device: Where the masks are made.
        images: Branch -> its rows of the call and its image columns, where its segment is built.
        packed: (samples, shared columns) of a packed call.
        given: The mask that a layer was given, boolean or additive; None stands for plain causality
            and the chunk's padding.
        image_rows: Whether queries of image tokens use calibrated positions.
    """
    rows = row_masks(chunk, first, device, given, image_rows=image_rows)
    segments = dict[str, SegmentMask]()
    if images and chunk.first_text < chunk.length:
        counted = _token_index(chunk)
        for branch, (own, index) in images.items():
            if index.valid.device != device:
                index = index.to(device)
            segments[branch] = segment_mask(
                chunk, first, rows, own, index, counted, causal=given is None
            )
    prefix = None if packed is None else prefix_mask(chunk, *packed, device)
    return CallMasks(rows, segments, prefix)


def row_masks(
    chunk: Chunk,
    first: int,
    device: torch.device,
    given: Tensor | None = None,
    *,
    image_rows: bool = False,
) -> RowMasks:
    """The masks that have no branch, as `call_masks` says."""
    columns = torch.arange(chunk.stop, device=device)
    rows = columns[chunk.start + first :, None]
    padded = chunk.padded
    if given is not None:
        if given.dtype != torch.bool:
            given = given >= 0  # additive: 0 or a large negative number
        seen = given[:, 0, first:, : chunk.stop].to(device)
    else:
        seen = (columns <= rows)[None]
        if padded:
            seen = seen & chunk.token_mask.to(device)[:, None]
    sees_everything = chunk.length - first == 1 and not padded and given is None
    is_text = text_after_image(chunk)[:, first:].to(device)
    is_image = _image_columns(chunk).to(device)
    if chunk.all_text and first == chunk.first_text:
        segment = is_image[:, None, None]
    else:
        segment = (is_image[:, None] & is_text[..., None] & (columns < rows))[:, None]
    calibrated = segment
    if image_rows:
        own = is_image[:, chunk.start + first :, None]
        calibrated = segment | (own & is_image[:, None])[:, None]
    return RowMasks(
        forbidden=None if sees_everything else ~seen[:, None],
        seen=seen,
        segment=segment,
        is_text=is_text,
        calibrated=calibrated,
        has_dead_rows=padded and not chunk.generated,
    )


def segment_mask(
    chunk: Chunk,
    first: int,
    masks: RowMasks,
    rows: slice,
    index: ImageColumnIndex,
    token_index: Int[Tensor, "all_rows tokens"],
    *,
    causal: bool,
) -> SegmentMask:
    """The segment of a branch's `rows`; `masks` and `token_index` are of all rows.

    `causal` says that no layer was given a mask.
    """
    masks = masks.of(rows)
    is_text, total = masks.is_text, chunk.stop
    device = is_text.device
    full = causal and chunk.all_text and first == chunk.first_text and index.span is not None
    if full:
        cells = torch.ones_like(is_text)[..., None].expand(-1, -1, index.valid.shape[1])
    else:
        row = torch.arange(chunk.start + first, total, device=device)[:, None]
        column = index.columns.clamp(max=total - 1)[:, None].expand(-1, is_text.shape[1], -1)
        there = (index.valid & (index.columns < total))[:, None]
        seen = masks.seen.expand(is_text.shape[0], -1, -1)
        # where the whole prompt is seen, images that follow the row are no part of its segment
        cells = seen.gather(-1, column) & there & is_text[..., None] & (column < row)
    layout = chunk.layout
    if chunk.generated:
        prompt, predicts_next = torch.zeros_like(is_text), is_text
    else:
        own = torch.arange(chunk.start + first, total, device=layout.token_mask.device)
        prompt = (own < layout.length).to(device) & is_text
        predicts_next = (own >= layout.last_token[rows, None]).to(device) & is_text
    before = layout.before_image[rows, :total]
    before = torch.nn.functional.pad(before, (0, total - before.shape[1]))
    return SegmentMask(
        rows=rows,
        image=index,
        gather_index=index.columns.clamp(max=total - 1)[:, None, None],
        cells=cells,
        segment=masks.segment,
        prompt=prompt,
        predicts_next=predicts_next,
        token_index=token_index[rows, first:].to(device),
        before_image=before.to(device),
        generated_columns=generated_columns(layout, total, device)[rows],
        full=full,
    )


def generated_columns(
    layout: Layout, total: int, device: torch.device
) -> Bool[Tensor, "rows columns"]:
    """Which of the first `total` columns are behind the prompts: the same in all rows."""
    late = torch.arange(total, device=device) >= layout.length
    return late.expand(layout.rows, total)


def _token_index(chunk: Chunk) -> Int[Tensor, "rows tokens"]:
    """The place of the chunk's tokens in their rows, padding not counted."""
    before = chunk.token_mask[:, : chunk.start].sum(dim=-1, keepdim=True)
    counted = before + chunk.token_mask[:, chunk.start :].cumsum(dim=-1) - 1
    return counted.clamp(min=0)


def prefix_mask(
    chunk: Chunk, samples: int, columns: int, device: torch.device
) -> Bool[Tensor, "samples 1 prefix prefix"] | None:
    """The mask of the shared columns among themselves; None without padding: it is plain causal."""
    rows = chunk.layout.row_stats[:samples]
    if all(row.tokens == chunk.layout.length for row in rows):
        return None
    at = torch.arange(columns, device=device)
    token_mask = chunk.token_mask[:samples, None, None, :columns].to(device)
    # a row of padding sees itself: the fast kernels give no number where a row sees nothing
    return ((at <= at[:, None]) & token_mask) | torch.eye(columns, dtype=torch.bool, device=device)


def without_pruned(
    seen: Bool[Tensor, "#rows tokens columns"],
    pruned: Bool[Tensor, "rows columns"],
    start: int,
) -> Bool[Tensor, "rows tokens columns"]:
    """`seen` without the pruned columns; a row that would see nothing sees itself."""
    left = seen & ~pruned[:, None]
    columns = torch.arange(seen.shape[2], device=seen.device)
    rows = torch.arange(start, start + seen.shape[1], device=seen.device)
    itself = columns == rows[:, None]
    return left | (seen & itself & ~left.any(dim=-1, keepdim=True))


def decoder_mask(
    adapter: ModelAdapter,
    model: Any,
    chunk: Chunk,
    *,
    sees_ahead: SeesAhead,
    embeds: Float[Tensor, "rows tokens hidden"],
    positions: Int[Tensor, "*axes rows tokens"],
    cache: Any,
    ids: Int[Tensor, "rows columns"] | None,
) -> Any:
    """What the decoder gets as its mask: a 2-D one, or what the stock model makes of token types.

    None without padding, which keeps the fast kernels. After the prompt every model is causal, and
    the 2-D mask is enough.
    """
    mask = chunk.token_mask if chunk.layout.padded else None
    if sees_ahead == "nowhere" or chunk.generated:
        return mask
    types = None if ids is None else adapter.token_types(model, ids)
    if types is None:
        types = _token_types(sees_ahead, _image_columns(chunk), chunk.layout.length)
    given = {"inputs_embeds": embeds, "attention_mask": chunk.token_mask, CACHE: cache}
    return adapter.create_masks(model, types, given | {"position_ids": positions})


def _token_types(
    sees_ahead: SeesAhead, is_image: Bool[Tensor, "rows columns"], prompt: int
) -> Int[Tensor, "rows columns"]:
    """As the families number them: image tokens are 1, or what follows the prompt is."""
    types = is_image.long()
    if sees_ahead == "in prompts":
        types = types * 0
        types[:, prompt:] = 1
    return types


def text_after_image(chunk: Chunk) -> Bool[Tensor, "rows tokens"]:
    """Text after an image among the chunk's tokens; what is generated is, where there is one."""
    of_prompt = chunk.layout.is_text[:, chunk.start : chunk.stop]
    late = chunk.length - of_prompt.shape[1]
    if late == 0:
        return of_prompt
    has_image = chunk.layout.valid.any(dim=1, keepdim=True)
    return torch.cat((of_prompt, has_image.expand(-1, late)), dim=1)


def _image_columns(chunk: Chunk) -> Bool[Tensor, "rows columns"]:
    """All columns up to `stop`: True on image tokens."""
    of_prompt = chunk.layout.image_index[:, : chunk.stop] >= 0
    return torch.nn.functional.pad(of_prompt, (0, chunk.stop - of_prompt.shape[1]))
