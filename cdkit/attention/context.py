"""The context of one decoder call: made before the call, read by its layers, never changed."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.attention.fused_rows import FusedRows, RowChanges
from cdkit.attention.image_columns import ImageColumnIndex
from cdkit.attention.masks import CallMasks, Chunk, call_masks
from cdkit.branches.positions import Offsets
from cdkit.execution.packing import Packing
from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.functional.rope import Rotary
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.interfaces.stream_readout import AttentionRow
from cdkit.states.state_call import NotedAttention, PromptRecorder

Change = Callable[[CrossModalSegment], CrossModalSegment]
Reweigh = Callable[[AttentionRow], Float[Tensor, "rows heads columns"]]
AnswerCache = dict[tuple[int, str], dict[Hashable, Tensor]]
"""(layer, branch) -> what strategies keep of its image columns for the whole answer."""


@dataclass(frozen=True, eq=False)
class LayerWork:
    """What a method does in one decoder layer: decided once, when it is attached."""

    index: int
    depth: int
    rotary: Rotary | None
    """The layer's rotary embedding, where the method has a calibrator."""
    changes: Mapping[str, tuple[Change, ...]]
    """Branch -> what is done to its segments, in order, and held to what it may return."""
    unchecked_changes: Mapping[str, tuple[Change, ...]]
    """The same without a check: for packed steps behind one that was checked, as all are alike."""
    segments: frozenset[str]
    """The branches whose cross-modal segment is built, since it is changed, recorded or traced."""
    records_image: bool
    """Whether the original branch's attention to the image is recorded."""
    records_weights: bool
    """Whether its weights on all columns are recorded."""
    head_readers: frozenset[str] = frozenset()
    """The branches whose attention to the image a state intervention reads, for each head."""
    reweigh: Reweigh | None = None
    """How a stream readout weighs the original branch's predicting row anew; None in layers where
    none does."""
    row_changes: RowChanges | None = None
    """What changes in generated rows, in the order of the branches; None where a kernel cannot do
    it, or weights are recorded."""


@dataclass(eq=False)
class AttentionRecord:
    """What the layers of a decoder call leave behind: for schedules, loops, traces."""

    traces_attention: bool = False
    traces_mask: bool = False
    layers_run: int = 0
    image_logits: list[Float[Tensor, " rows"]] = field(default_factory=list)
    """A layer each: the original branch's last row, its logits summed over the image and averaged
    over heads."""
    image_weights: list[Float[Tensor, "rows image"]] = field(default_factory=list)
    """A layer each: that row's weights on the image, averaged over heads."""
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """The last layer's weights of the original branch's predicting rows, over all columns."""
    head_attention: dict[str, NotedAttention] = field(default_factory=dict)
    """Branch -> its attention to the image in the latest layer that a state intervention reads."""
    stream_heads: Float[Tensor, "rows heads value_dim"] | None = None
    """The original branch's predicting row as a stream readout weighs it."""
    recorder: PromptRecorder | None = None
    """What keeps the states of the prompts' last tokens, in the call that shows them."""
    image_attention: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """As `Step.image_attention`."""
    mask: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """As `Step.mask`."""

    @property
    def traces(self) -> bool:
        """Whether a trace records something that only materialised rows show."""
        return self.traces_attention or self.traces_mask


@dataclass(frozen=True, eq=False)
class DecoderContext:
    """One decoder call for the rows of a group of branches."""

    branches: tuple[str, ...]
    """In the order of their rows; none in the call for what all of them share."""
    rows_per_branch: int
    chunk: Chunk
    layers: tuple[LayerWork, ...]
    first: int
    """The first of the chunk's columns whose weights are made."""
    whole: bool
    """Whether all columns of all rows are materialised, together."""
    causal: bool
    """Whether the masks here are all there is to say: what a layer is given knows nothing of the
    shared prefix before its columns, or of columns that are still empty."""
    device: torch.device
    masks: CallMasks | None
    """The masks of all rows, from `first` on; None where no weight is made, or where the masks that
    layers are given decide."""
    images: Mapping[str, tuple[slice, ImageColumnIndex]]
    """Rows and image columns of each branch whose segment some layer builds."""
    record: AttentionRecord
    key_offset: Offsets | None = None
    """By how many positions the keys of the prompt's image tokens move where the chunk's text rows
    attend to them; 0 elsewhere. None where nothing moves, or the cached keys have moved already."""
    query_offset: Offsets | None = None
    """By how many positions the chunk's queries move for cross-modal logits, besides those keys;
    None where no row that uses them moves."""
    image_rows: bool = False
    """Whether queries of image tokens see image tokens where the calibrator puts them."""
    prefix: SharedPrefix | None = None
    """The columns that all branches share, where they stand once."""
    packing: Packing | None = None
    """Where that prefix comes in this very call, and the branches' rows behind it."""
    cache: Any = None
    """Where the keys of image tokens are kept, once the prompt is whole."""
    stores_keys: bool = False
    """Whether this call leaves calibrated keys in the cache: with it the prompt is whole, and no
    later row needs the others."""
    stores_prefix: bool = False
    """Whether it does so in the shared prefix: it is the last group that reads it."""
    answer_cache: AnswerCache | None = None
    """None as long as a part of the prompt is missing."""
    memory: AnswerCache | None = None
    """What parts remember of an answer; None as long as a part of the prompt is missing."""
    layer_state: Mapping[str, dict[Hashable, Tensor]] = field(default_factory=dict)
    """Branch -> what its layers leave to those above them."""
    fused: FusedRows | None = None
    """How a kernel computes this call, which is one generated token; None where it does not."""
    variants: dict[Hashable, tuple[Any, "DecoderContext"]] = field(default_factory=dict)
    """The same call under a mask that layers are given, or on another device, made once each."""

    @property
    def moves(self) -> bool:
        """Whether the text rows of this call see keys, or are seen, where the model has none."""
        return self.key_offset is not None or self.query_offset is not None

    def materialized(self, work: LayerWork) -> frozenset[str]:
        """The branches whose text rows need their weights made in a layer.

        Where nothing moves, such as in a step after the prompt, whose calibrated keys stand in the
        cache, the fast kernels compute all others.
        """
        return frozenset(self.branches) if self.moves and work.rotary is not None else work.segments

    @property
    def packed(self) -> tuple[int, int] | None:
        """(samples, shared columns) of a packed call."""
        packing = self.packing
        return None if packing is None else (self.rows_per_branch, packing.shared)

    def rows_of(self, branch: str) -> slice:
        """A branch's rows among those of the call."""
        index, rows = self.branches.index(branch), self.rows_per_branch
        return slice(index * rows, (index + 1) * rows)

    def for_layer(self, mask: Tensor | None, device: torch.device) -> "DecoderContext":
        """The context of a layer on `device` that is given `mask`."""
        given = None if self.causal else mask
        if given is None and device == self.device and self.masks is not None:
            return self
        place = id(given), device
        if place not in self.variants:
            # the mask is kept with its context: the key is its id, which must stay in use
            masks = call_masks(
                self.chunk,
                self.first,
                device,
                self.images,
                packed=self.packed,
                given=given,
                image_rows=self.image_rows,
            )
            context = replace(self, device=device, masks=masks, variants={})
            self.variants[place] = given, context
        return self.variants[place][1]
