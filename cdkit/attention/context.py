"""What all layers need to know of the decoder call that is under way."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.image_columns import Places
from cdkit.branches.batch import BranchedBatch
from cdkit.branches.chunk import Chunk
from cdkit.execution.packed_prefill import Packing
from cdkit.generation.trace import Step


@dataclass(frozen=True)
class SignalsWanted:
    """What is noted of the original branch's attention in a decoder call, whatever is traced."""

    image: bool = False
    """`image_logits` and `image_weights`, in every layer."""
    last_layer: bool = False
    """`last_weights`."""


class Masks(NamedTuple):
    """The masks of some branches' rows in a call, from `first` on; they have no layer."""

    forbidden: Bool[Tensor, "#rows 1 text columns"] | None
    """Where no row may look; None where all may look everywhere."""
    seen: Bool[Tensor, "#rows text columns"]
    """Where they may."""
    segment: Bool[Tensor, "#rows 1 #text columns"]
    """Text rows, times the columns of the images before them."""
    is_text: Bool[Tensor, "rows text"]
    dead: bool
    """Whether some rows may look nowhere, as padding does."""


class Cells(NamedTuple):
    """The cross-modal segment of one branch's rows in a call: what of it has no layer."""

    masks: Masks
    """Of these rows."""
    places: Places
    reach: Int[Tensor, "rows 1 1 image"]
    """`places.columns`, those that are not there yet at the last column."""
    cells: Bool[Tensor, "rows text image"]
    prompt: Bool[Tensor, "rows text"]
    predicts_next: Bool[Tensor, "rows text"]
    token_index: Int[Tensor, "rows text"]
    before_image: Bool[Tensor, "rows columns"]
    full: bool
    """Whether every cell is one, and the image's columns are the same in all rows."""


@dataclass(eq=False)
class AttentionCall:
    """One decoder call for the rows of a group of branches."""

    batch: BranchedBatch
    chunk: Chunk
    step: Step
    branches: tuple[str, ...]
    """In the order of their rows; none in the call for what all of them share."""
    wanted: frozenset[str] = frozenset()
    signals: SignalsWanted = SignalsWanted()
    everything: bool = False
    """Whether all weights are materialised, of rows that nobody looks at, too."""
    prefixed: bool = False
    """Whether masks are made here, from `chunk` alone: those that layers are given know nothing of
    the shared prefix before their columns, or of columns that are still empty."""
    packing: Packing | None = None
    """Where that prefix comes in this very call, and the branches' rows behind it."""
    cache: Any = None
    """Where the keys of image tokens are kept, once the prompt is whole."""
    keeps_prefix: bool = True
    """Whether other groups need the prefix as it is."""
    layers_run: int = 0
    layer_state: dict[str, dict[Hashable, Tensor]] = field(default_factory=dict)
    """Branch -> what its layers leave to those above them."""
    image_logits: list[Float[Tensor, " rows"]] = field(default_factory=list)
    """A layer each: the original branch's last row, its logits summed over the image and averaged
    over heads."""
    image_weights: list[Float[Tensor, "rows image"]] = field(default_factory=list)
    """A layer each: that row's weights on the image, averaged over heads."""
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """The last layer's weights of the original branch's predicting rows, over all columns."""
    made: dict[Hashable, Any] = field(default_factory=dict)
    """Masks and cells, as they are needed: for each mask and device once."""
    held: list[Tensor] = field(default_factory=list)
    """Tensors whose identity `made` goes by."""

    @property
    def looks(self) -> bool:
        """Whether a trace asks for what only the materialised rows show."""
        return bool(self.wanted & {"image_attention", "mask"})

    def rows_of(self, branch: str) -> slice:
        """Of the rows of this call."""
        index, rows = self.branches.index(branch), self.batch.rows
        return slice(index * rows, (index + 1) * rows)

    def prefix_mask(self, device: torch.device) -> Bool[Tensor, "samples 1 prefix prefix"] | None:
        """Of the shared columns among themselves; None without padding, which is plain causal."""
        assert self.packing is not None
        cut, samples, facts = self.packing.shared, self.batch.rows, self.batch.layout.facts
        if all(row.tokens == self.batch.layout.length for row in facts[:samples]):
            return None
        place = "prefix mask", device
        if place not in self.made:
            columns = torch.arange(cut, device=device)
            real = self.chunk.real[:samples, None, None, :cut].to(device)
            # a row of padding sees itself: the fast kernels give no number where a row sees nothing
            seen = (columns <= columns[:, None]) & real
            self.made[place] = seen | torch.eye(cut, dtype=torch.bool, device=device)
        made: Tensor = self.made[place]
        return made

    def masks(self, mask: Tensor | None, rows: slice, first: int, device: torch.device) -> Masks:
        """Of these rows and the chunk's columns from `first` on."""
        place = ("masks", self._name(mask), rows.start, rows.stop, first, device)
        if place not in self.made:
            if mask is not None:
                self.held.append(mask)
            self.made[place] = self._masks(mask, rows, first, device)
        made: Masks = self.made[place]
        return made

    def _name(self, mask: Tensor | None) -> int:
        """One mask's, among those that layers of a call are given."""
        return 0 if self.prefixed else id(mask)

    def _masks(self, mask: Tensor | None, rows: slice, first: int, device: torch.device) -> Masks:
        chunk = self.chunk
        stop = chunk.stop
        own = torch.arange(chunk.start + first, stop, device=device)[:, None]
        columns = torch.arange(stop, device=device)
        padded = chunk.padded
        if mask is not None and not self.prefixed:
            if mask.dtype != torch.bool:
                mask = mask >= 0  # additive: 0 or a large negative number
            seen = mask[rows if mask.shape[0] > 1 else slice(1), 0, first:, :stop].to(device)
        else:
            seen = (columns <= own)[None]
            if padded:
                seen = seen & chunk.real[rows].to(device)[:, None]
        everywhere = chunk.length - first == 1 and not padded and (mask is None or self.prefixed)
        is_text = chunk.is_text[rows, first:].to(device)
        if chunk.all_text and first == chunk.first_text:
            segment = chunk.is_image[rows].to(device)[:, None, None]
        else:
            earlier = columns < own
            segment = (chunk.is_image[rows].to(device)[:, None] & is_text[..., None] & earlier)[
                :, None
            ]
        return Masks(
            forbidden=None if everywhere else ~seen[:, None],
            seen=seen,
            segment=segment,
            is_text=is_text,
            dead=padded and not chunk.generated,
        )

    def cells(self, branch: str, mask: Tensor | None, first: int, device: torch.device) -> Cells:
        """Of a branch's rows and the chunk's columns from `first` on."""
        place = ("cells", branch, self._name(mask), first, device)
        if place not in self.made:
            masks = self.masks(mask, self.rows_of(branch), first, device)
            self.made[place] = self._cells(branch, masks, mask, first)
        made: Cells = self.made[place]
        return made

    def _cells(self, branch: str, masks: Masks, mask: Tensor | None, first: int) -> Cells:
        chunk, rows, device = self.chunk, self.rows_of(branch), masks.is_text.device
        places = self.batch.places(branch, device)
        is_text = masks.is_text
        full = (
            chunk.all_text
            and first == chunk.first_text
            and places.span is not None
            and (mask is None or self.prefixed)
        )
        if full:
            cells = torch.ones_like(is_text)[..., None].expand(-1, -1, places.valid.shape[1])
        else:
            total, text = chunk.stop, is_text.shape[1]
            own = torch.arange(chunk.start + first, total, device=device)[:, None]
            reach = places.columns.clamp(max=total - 1)[:, None].expand(-1, text, -1)
            there = (places.valid & (places.columns < total))[:, None]
            seen = masks.seen.expand(is_text.shape[0], -1, -1)
            # where the whole prompt is seen, images that follow the row are no part of its segment
            cells = seen.gather(-1, reach) & there & is_text[..., None] & (reach < own)
        return Cells(
            masks=masks,
            places=places,
            reach=places.columns.clamp(max=chunk.stop - 1)[:, None, None],
            cells=cells,
            prompt=chunk.of_prompt[rows, first:].to(device),
            predicts_next=chunk.predicts_next[rows, first:].to(device) & is_text,
            token_index=chunk.token_index[rows, first:].to(device),
            before_image=chunk.before_image[rows].to(device),
            full=full,
        )
