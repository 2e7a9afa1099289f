"""The one attention function: fast kernels, but for the text rows that a method changes."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cdkit.adapter import Rotary, rotate
from cdkit.batch import BranchedBatch, Chunk
from cdkit.errors import CdkitError
from cdkit.method import ORIGINAL
from cdkit.segment import CrossModalSegment, ImageColumns, softmax
from cdkit.trace import Step

KEY = "cdkit"
"""The name in Hugging Face's attention registries: the one trace that cdkit leaves in a process."""
HANDLE = "_cdkit_attention"
"""The attribute of an attention module under which `attach` puts its `LayerAttention`."""

Change = Callable[[CrossModalSegment], CrossModalSegment]


@dataclass(frozen=True)
class SignalsWanted:
    """What is noted of the original branch's attention in a decoder call, whatever is traced."""

    image: bool = False
    """`image_logits` and `image_weights`, in every layer."""
    last_layer: bool = False
    """`last_weights`."""


@dataclass
class AttentionCall:
    """What all layers need to know of the decoder call that is under way."""

    batch: BranchedBatch
    chunk: Chunk
    step: Step
    wanted: frozenset[str] = frozenset()
    signals: SignalsWanted = SignalsWanted()
    layers_run: int = 0
    carried: dict[str, dict[Hashable, Tensor]] = field(default_factory=dict)
    """Branch -> what its layers leave to those above them."""
    image_logits: list[Float[Tensor, " rows"]] = field(default_factory=list)
    """A layer each: the original branch's last row, its logits summed over the image and averaged
    over heads."""
    image_weights: list[Float[Tensor, "rows image"]] = field(default_factory=list)
    """A layer each: that row's weights on the image, averaged over heads."""
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """The last layer's weights of the original branch's predicting rows, over all columns."""

    @property
    def looks(self) -> bool:
        """Whether a trace asks for what only the materialised rows show."""
        return bool(self.wanted & {"image_attention", "mask"})


class Wired:
    """What an attached model carries: it belongs to that very model, and to no copy of it."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise CdkitError("leave the block of cdkit.attach before the model is copied or pickled")

    def __reduce__(self) -> NoReturn:
        self.__deepcopy__(None)


@dataclass(frozen=True, eq=False)
class LayerAttention(Wired):
    """The attention of one decoder layer while a method is attached."""

    layer: int
    depth: int
    rotary: Rotary | None
    changes: Callable[[str], Sequence[Change]]
    """Branch -> what is done to its segments in this layer, in order."""
    current: Callable[[], AttentionCall | None]
    """The decoder call under way; None outside of one."""

    def __call__(
        self,
        module: nn.Module,
        query: Float[Tensor, "rows heads tokens head_dim"],
        key: Float[Tensor, "rows kv_heads columns head_dim"],
        value: Float[Tensor, "rows kv_heads columns head_dim"],
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Float[Tensor, "rows tokens heads head_dim"]:
        def fast() -> Tensor:
            return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]

        call = self.current()
        if call is None:
            return fast()
        call.layers_run += 1
        if key.shape[2] < call.chunk.stop:
            raise CdkitError(
                f"layer {self.layer} keeps only {key.shape[2]} of {call.chunk.stop} tokens (a "
                "sliding window), perhaps without the image: ask for a shorter answer"
            )
        batch, first = call.batch, call.chunk.first_text
        everywhere = call.looks or batch.calibrator is not None
        touched = [
            name
            for name in batch.branches
            if everywhere or self.changes(name) or (name == ORIGINAL and self._noted(call))
        ]
        if not touched or first == call.chunk.length:
            return fast()
        allowed = _allowed(mask, call.chunk, key)
        stock = fast() if first > 0 or len(touched) < len(batch.branches) else None
        blocks = []
        for name in batch.branches:
            rows = batch.rows_of(name)
            if name not in touched:
                assert stock is not None
                blocks.append(stock[rows])
                continue
            late, hidden = self._text_rows(
                call, name, query[rows, :, first:], key[rows], value[rows],
                allowed=allowed[rows if allowed.shape[0] > 1 else slice(1), first:],
                scaling=kwargs["scaling"],
            )  # fmt: skip
            early = None if stock is None or first == 0 else stock[rows, :first]
            if early is not None and hidden is not None:
                seen = allowed[rows if allowed.shape[0] > 1 else slice(1), :first]
                early = sdpa_attention_forward(
                    module, query[rows, :, :first], key[rows], value[rows],
                    _hide(seen, hidden, call.chunk.start)[:, None], **kwargs,
                )[0]  # fmt: skip
            blocks.append(late if early is None else torch.cat((early, late), dim=1))
        return torch.cat(blocks)

    def _noted(self, call: AttentionCall) -> bool:
        last = self.layer == self.depth - 1
        return call.signals.image or (call.signals.last_layer and last)

    def _text_rows(
        self,
        call: AttentionCall,
        branch: str,
        query: Float[Tensor, "rows heads text head_dim"],
        key: Float[Tensor, "rows kv_heads columns head_dim"],
        value: Float[Tensor, "rows kv_heads columns head_dim"],
        *,
        allowed: Bool[Tensor, "#rows text columns"],
        scaling: float,
    ) -> tuple[Float[Tensor, "rows text heads head_dim"], Bool[Tensor, "rows columns"] | None]:
        """One branch's attention with its cross-modal segment materialised.

        Also the columns that the method hides from rows of the image.
        """
        batch, chunk = call.batch, call.chunk
        rows, first, total = batch.rows_of(branch), chunk.first_text, key.shape[2]
        image = self._image_columns(batch, chunk, branch, key, value)
        is_text = chunk.is_text[rows, first:].to(key.device)
        columns = batch.layout.columns[rows].to(key.device)
        allowed = allowed.expand(query.shape[0], -1, -1)
        reach = repeat(columns.clamp(max=total - 1), "r i -> r t i", t=allowed.shape[1])
        there = (image.valid & (columns < total))[:, None]
        # where the whole prompt is seen, images that follow the row are no part of its segment
        own = torch.arange(chunk.start + first, chunk.stop, device=key.device)[:, None]
        cells = allowed.gather(-1, reach) & there & is_text[..., None] & (reach < own)

        wide = query.to(torch.promote_types(query.dtype, torch.float32))
        turned = wide
        if chunk.query_shift is not None and self.rotary is not None:
            turned = rotate(wide, chunk.query_shift[rows, first:].to(key.device), self.rotary)
        earlier = torch.arange(total, device=key.device) < own
        in_segment = chunk.is_image[rows].to(key.device)[:, None] & is_text[..., None] & earlier
        segment = CrossModalSegment(
            image=image,
            queries=turned,
            logits=(scaling * _scores(turned, image.keys)).masked_fill(~cells[:, None], -math.inf),
            cells=cells,
            prompt=_of_prompt(batch, chunk, is_text),
            predicts=chunk.predicts[rows, first:].to(key.device) & is_text,
            token_index=chunk.token_index[rows, first:].to(key.device),
            text_logits=(scaling * _scores(wide, key)).masked_fill(
                (~allowed | in_segment)[:, None], -math.inf
            ),
            before_image=chunk.before_image[rows].to(key.device),
            carried=call.carried.setdefault(branch, {}),
        )
        before = segment
        for change in self.changes(branch):
            segment = change(segment)
        hidden = None
        if segment.hidden is not None:
            cut = (segment.hidden & there[:, 0]).long()
            nowhere = cut.new_zeros(cut.shape[0], total)
            hidden = nowhere.scatter_add(1, reach[:, 0], cut) > 0
            seen = _hide(allowed, hidden, chunk.start + first)
            segment = replace(
                segment, text_logits=segment.text_logits.masked_fill(~seen[:, None], -math.inf)
            )

        weights = softmax(torch.cat((segment.logits, segment.text_logits), dim=-1))
        on_image, on_text = weights[..., :-total], weights[..., -total:]
        _record(call, branch, self.layer, before, segment, on_image)
        if branch == ORIGINAL:
            self._note(call, segment, weights, reach)
        out = _segment_output(segment, on_image) + _weighted(on_text, value)
        return rearrange(out, "rows heads text dim -> rows text heads dim"), hidden

    def _note(
        self,
        call: AttentionCall,
        segment: CrossModalSegment,
        weights: Float[Tensor, "rows heads text all_columns"],
        reach: Int[Tensor, "rows text image"],
    ) -> None:
        """Keep what schedules, feature distortions and loops want to know."""
        if not self._noted(call):
            return
        images = segment.logits.shape[-1]
        on_image, on_text = weights[..., :images], weights[..., images:]
        if call.signals.image:
            logits = segment.logits.masked_fill(~segment.cells[:, None], 0)
            rows, text = segment.predicts.shape
            # with padding on the right the last row is not the last column
            at = torch.arange(text, device=logits.device).mul(segment.predicts).amax(dim=-1)
            each = torch.arange(rows, device=logits.device)
            call.image_logits.append(logits[each, :, at].sum(-1).mean(1))
            call.image_weights.append(on_image[each, :, at].mean(1))
        predicting = call.chunk.stop - max(call.chunk.start, call.batch.layout.length - 1)
        if call.signals.last_layer and self.layer == self.depth - 1 and predicting > 0:
            last = slice(-predicting, None)
            index = repeat(reach[:, last], "r t i -> r h t i", h=weights.shape[1])
            call.last_weights = on_text[:, :, last].scatter_add(-1, index, on_image[:, :, last])

    def _image_columns(
        self,
        batch: BranchedBatch,
        chunk: Chunk,
        branch: str,
        key: Float[Tensor, "rows kv_heads columns head_dim"],
        value: Float[Tensor, "rows kv_heads columns head_dim"],
    ) -> ImageColumns:
        """The branch's image columns: made when the whole prompt is there, then kept."""
        if (kept := batch.columns.get((self.layer, branch))) is not None:
            return kept
        rows, layout, streams = batch.rows_of(branch), batch.layout, batch.streams
        assert streams is not None
        columns = layout.columns[rows].to(key.device)
        reach = columns.clamp(max=key.shape[2] - 1)

        def select(x: Tensor) -> Tensor:
            index = repeat(reach, "r i -> r h i d", h=x.shape[1], d=x.shape[3])
            return x.gather(2, index)

        keys = select(key)
        shift = batch.image_shift()
        if shift is not None and self.rotary is not None:
            wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
            keys = rotate(wide, shift[rows].to(key.device), self.rotary).to(keys.dtype)
        image = ImageColumns(
            keys=keys,
            values=select(value),
            valid=layout.valid[rows].to(key.device) & (columns < key.shape[2]),
            image_index=layout.image_index[rows].gather(1, layout.columns[rows]).to(key.device),
            token_index=layout.token_index[rows].gather(1, layout.columns[rows]).to(key.device),
            streams=streams[rows].to(key.device),
            layer=self.layer,
            depth=self.depth,
        )
        if chunk.stop >= layout.length:
            batch.columns[self.layer, branch] = image
        return image


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face's attention modules call while a method is attached to their model."""
    layer: LayerAttention = getattr(module, HANDLE)
    return layer(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(KEY, _attention)
# Without a mask function of its own the mask may arrive as None where it is needed: silently not
# causal. SDPA's own leaves it out only where plain causality is meant.
AttentionMaskInterface.register(KEY, sdpa_mask)


def _allowed(
    mask: Tensor | None, chunk: Chunk, key: Float[Tensor, "rows kv_heads columns head_dim"]
) -> Bool[Tensor, "one_or_rows tokens columns"]:
    """Which columns the chunk's rows may attend to."""
    if mask is None:
        columns = torch.arange(key.shape[2], device=key.device)
        return (columns <= columns[-chunk.length :, None])[None]
    if mask.dtype != torch.bool:
        mask = mask >= 0  # additive: 0 or a large negative number
    return mask[:, 0, :, : key.shape[2]]


def _hide(
    allowed: Bool[Tensor, "#rows tokens columns"], hidden: Bool[Tensor, "rows columns"], start: int
) -> Bool[Tensor, "rows tokens columns"]:
    """`allowed` without the hidden columns; a row that would see nothing sees itself."""
    seen = allowed & ~hidden[:, None]
    columns = torch.arange(allowed.shape[2], device=allowed.device)
    rows = torch.arange(start, start + allowed.shape[1], device=allowed.device)
    itself = columns == rows[:, None]
    return seen | (allowed & itself & ~seen.any(dim=-1, keepdim=True))


def _of_prompt(
    batch: BranchedBatch, chunk: Chunk, is_text: Bool[Tensor, "rows text"]
) -> Bool[Tensor, "rows text"]:
    columns = torch.arange(chunk.start + chunk.first_text, chunk.stop, device=is_text.device)
    return (columns < batch.layout.length) & is_text


def _scores(
    query: Float[Tensor, "rows heads text head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
) -> Float[Tensor, "rows heads text columns"]:
    """`q k^T` in the query's dtype; grouped heads share a key that is never repeated."""
    grouped = rearrange(query, "r (kv g) t d -> r kv (g t) d", kv=key.shape[1])
    scores = grouped @ key.to(query.dtype).transpose(-1, -2)
    return rearrange(scores, "r kv (g t) c -> r (kv g) t c", t=query.shape[2])


def _weighted(
    weights: Float[Tensor, "rows heads text columns"],
    value: Float[Tensor, "rows kv_heads columns head_dim"],
) -> Float[Tensor, "rows heads text head_dim"]:
    grouped = rearrange(weights.to(value.dtype), "r (kv g) t c -> r kv (g t) c", kv=value.shape[1])
    return rearrange(grouped @ value, "r kv (g t) d -> r (kv g) t d", t=weights.shape[2])


def _segment_output(
    segment: CrossModalSegment, weights: Float[Tensor, "rows heads text image"]
) -> Float[Tensor, "rows heads text head_dim"]:
    """`((1 - M) * A) V + (M * A) V'`, where the method replaced the values of the cells M."""
    if segment.replaced is None or segment.replacement is None:
        return _weighted(weights, segment.image.values)
    kept = weights.masked_fill(segment.replaced, 0)
    return _weighted(kept, segment.image.values) + _weighted(weights - kept, segment.replacement)


def _record(
    call: AttentionCall,
    branch: str,
    layer: int,
    before: CrossModalSegment,
    after: CrossModalSegment,
    weights: Float[Tensor, "rows heads text image"],
) -> None:
    if "image_attention" in call.wanted:
        call.step.image_attention.setdefault(branch, {})[layer] = weights[:, :, -1].clone()
    if "mask" in call.wanted:
        cut = torch.isneginf(after.logits) & ~torch.isneginf(before.logits)
        mask = cut if after.replaced is None else cut | after.replaced
        call.step.mask.setdefault(branch, {})[layer] = mask
