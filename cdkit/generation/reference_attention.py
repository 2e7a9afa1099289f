"""One layer's attention with every weight made, as the equations have it: no kernels, no sharing.

What follows is computed in float32 or better, for all rows of one branch.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from cdkit.branches.layout import Layout, text_after_image
from cdkit.branches.positions import Offsets
from cdkit.functional.rope import Rotary, rotate
from cdkit.interfaces.segment import CrossModalSegment, ImageColumns, softmax
from cdkit.interfaces.stream_readout import AttentionRow, StreamReadout

Change = Callable[[CrossModalSegment], CrossModalSegment]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Where the tokens of one branch stand: what all layers of a decoder call have in common.

    The call's tokens are the last `new` of all columns so far.
    """

    is_image: Bool[Tensor, "rows columns"]
    token_mask: Bool[Tensor, "rows columns"]
    """False on padding."""
    before_image: Bool[Tensor, "rows columns"]
    """Text before the first image."""
    generated: Bool[Tensor, "rows columns"]
    """True behind the prompt."""
    is_text: Bool[Tensor, "rows new"]
    """Text after an image."""
    of_prompt: Bool[Tensor, "rows new"]
    predicts_next: Bool[Tensor, "rows new"]
    """A prompt's last token, and each generated one."""
    token_index: Int[Tensor, "rows new"]
    """A token's index in its row, padding not counted."""
    image_columns: Int[Tensor, "rows image"]
    """The columns of the prompt's image tokens; rows with fewer are filled up."""
    image_there: Bool[Tensor, "rows image"]
    """True where a column holds an image token, not padding, and is among the columns so far."""
    image_index: Int[Tensor, "rows image"]
    image_token_index: Int[Tensor, "rows image"]
    rng_keys: Int[Tensor, " rows"]
    shift: Offsets | None
    """Calibrated minus ordinary position; None without a calibrator."""

    @classmethod
    def of(
        cls,
        layout: Layout,
        token_mask: Bool[Tensor, "rows columns"],
        rng_keys: Int[Tensor, " rows"],
        shift: Offsets | None,
        *,
        new: int,
    ) -> "Tokens":
        """`layout` is that of the whole prompt, of which more may be to come."""
        total, prompt = token_mask.shape[1], layout.length
        late = max(0, total - prompt)
        index = pad(layout.image_index, (0, late), value=-1)
        of_all = torch.cat((layout.token_mask, token_mask[:, prompt:]), dim=1)
        columns = torch.arange(total, device=token_mask.device)
        is_text = text_after_image(index, of_all)[:, total - new : total]
        now = columns[total - new :]
        return cls(
            is_image=index[:, :total] >= 0,
            token_mask=token_mask,
            before_image=pad(layout.before_image, (0, late))[:, :total],
            generated=(columns >= prompt).expand(len(token_mask), -1),
            is_text=is_text,
            of_prompt=(now < prompt) & is_text,
            predicts_next=(now >= layout.last_token[:, None]) & is_text,
            token_index=(token_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, total - new :],
            image_columns=layout.columns.clamp(max=total - 1),
            image_there=layout.valid & (layout.columns < total),
            image_index=layout.image_index.gather(1, layout.columns),
            image_token_index=layout.token_index.gather(1, layout.columns),
            rng_keys=rng_keys,
            shift=shift,
        )

    def to(self, device: torch.device) -> "Tokens":
        """The same on the device of a layer."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {n: v if v is None else v.to(device) for n, v in values.items()}
        return Tokens(**moved)

    @property
    def earlier(self) -> Bool[Tensor, "new columns"]:
        """True for the columns before a token's column."""
        columns = torch.arange(self.token_mask.shape[1], device=self.token_mask.device)
        return columns < columns[-self.is_text.shape[1] :, None]

    @property
    def itself(self) -> Bool[Tensor, "new columns"]:
        columns = torch.arange(self.token_mask.shape[1], device=self.token_mask.device)
        return columns == columns[-self.is_text.shape[1] :, None]

    def visible(self, mask: Tensor | None) -> Bool[Tensor, "rows new columns"]:
        """Where a token may attend: what the decoder's mask says, or everything before it."""
        if mask is None:
            return (self.earlier | self.itself) & self.token_mask[:, None]
        if mask.dtype != torch.bool:
            mask = mask >= 0  # additive: 0 or a large negative number
        rows, total = self.token_mask.shape
        return mask[:, 0, :, :total].expand(rows, -1, -1)

    def at_image(
        self, x: Float[Tensor, "rows heads new columns"] | Bool[Tensor, "rows heads new columns"]
    ) -> Tensor:
        """What stands in the columns of the image tokens."""
        index = self.image_columns[:, None, None].expand(-1, *x.shape[1:3], -1)
        return x.gather(-1, index)

    def at_columns(self, x: Tensor) -> Tensor:
        """The inverse along the last axis of (rows, ..., image); anything off the image."""
        token = (self.is_image.long().cumsum(dim=1) - 1).clamp(min=0)
        return x.gather(-1, token[:, None, None].expand(-1, *x.shape[1:3], -1))


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the decoder."""

    index: int
    depth: int
    """How many layers the decoder has."""
    rotary: Rotary | None
    """Its rotary embedding; None where the method has no calibrator, or the layer rotates nothing.
    """
    image_rows: bool = False
    """Whether queries of image tokens, too, see image tokens at calibrated positions."""


@dataclass(frozen=True, eq=False)
class Attended:
    """What one layer computed for one branch."""

    out: Float[Tensor, "rows new heads head_dim"]
    weights: Float[Tensor, "rows heads new columns"]
    before: CrossModalSegment | None
    """As the calibrator left it; None where no token is text after an image."""
    after: CrossModalSegment | None
    """As the distortions and interventions left it."""
    visible: Bool[Tensor, "rows new columns"]
    """Where a token may attend."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What strategies keep: for the whole answer by layer, and within one call of the decoder."""

    answer: Mapping[int, dict[Hashable, Tensor]]
    remembered: Mapping[int, dict[Hashable, Tensor]]
    call: dict[Hashable, Tensor] = field(default_factory=dict)


def attend(
    tokens: Tokens,
    layer: Layer,
    changes: Sequence[Change],
    memory: Memory,
    query: Float[Tensor, "rows heads new head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
    value: Float[Tensor, "rows kv_heads columns value_dim"],
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Attended:
    """`softmax(q k^T) v`, its cross-modal segment calibrated and then changed in turn.

    Args:
        query: Rotated by the ordinary positions, as the keys are.
        mask: As the decoder gives it to its layers: boolean, additive, or None for causal.
        softcap: Logits are `softcap * tanh(logits / softcap)`; None where they are not capped.
        sinks: The logit of each head's attention sink; None where there is none.
    """
    tokens = tokens.to(query.device)
    wide, dtype = torch.promote_types(query.dtype, torch.float32), value.dtype
    queries, keys, values = query.to(wide), key.to(wide), value.to(wide)
    heads, new = query.shape[1], query.shape[2]
    visible = tokens.visible(mask)
    segment_cells = tokens.is_text[..., None] & tokens.is_image[:, None] & tokens.earlier

    logits = queries @ _each_head(keys, heads).mT * scaling
    if tokens.shift is not None and layer.rotary is not None:
        shift = tokens.shift.of(layer.index)
        queries = rotate(queries, shift[:, -new:], layer.rotary)
        keys = rotate(keys, shift, layer.rotary)
        calibrated = queries @ _each_head(keys, heads).mT * scaling
        uses = segment_cells
        if layer.image_rows:
            uses = uses | (tokens.is_image[:, -new:, None] & tokens.is_image[:, None])
        logits = torch.where(uses[:, None], calibrated, logits)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~visible[:, None], -math.inf)

    before, after = None, None
    cells = (segment_cells & visible)[:, None]
    if bool(tokens.is_text.any()):
        before = CrossModalSegment(
            image=ImageColumns(
                keys=_columns(keys, tokens).to(dtype),
                values=_columns(value, tokens),
                valid=tokens.image_there,
                image_index=tokens.image_index,
                token_index=tokens.image_token_index,
                rng_keys=tokens.rng_keys,
                layer=layer.index,
                depth=layer.depth,
                answer_cache=memory.answer[layer.index],
            ),
            queries=queries,
            logits=tokens.at_image(logits.masked_fill(~cells, -math.inf)).masked_fill(
                ~tokens.image_there[:, None, None], -math.inf
            ),
            cells=tokens.at_image(cells)[:, 0] & tokens.image_there[:, None],
            prompt=tokens.of_prompt,
            predicts_next=tokens.predicts_next,
            token_index=tokens.token_index,
            text_logits=logits.masked_fill(segment_cells[:, None], -math.inf),
            before_image=tokens.before_image,
            generated_columns=tokens.generated,
            layer_state=memory.call,
            memory=memory.remembered[layer.index],
            sinks=sinks,
        )
        after = before
        for change in changes:
            after = change(after)
        if after.pruned is not None:
            after = _hidden(after, after.pruned, tokens, visible)
        logits = torch.where(cells, tokens.at_columns(after.logits), after.text_logits)

    weights = softmax(logits, sinks)
    if after is None or after.replaced is None or after.replacement is None:
        out = weights @ _each_head(values, heads)
    else:
        replaced = tokens.at_columns(after.replaced) & cells
        instead = after.replacement.to(wide)
        instead = instead.expand(-1, -1, tokens.image_columns.shape[1], -1)
        instead = tokens.at_columns(instead.transpose(2, 3)).transpose(2, 3)
        out = (weights * ~replaced) @ _each_head(values, heads)
        out = out + (weights * replaced) @ _each_head(instead, heads)
    return Attended(out.transpose(1, 2).to(dtype), weights, before, after, visible)


def stream_heads(
    readout: StreamReadout,
    tokens: Tokens,
    layer: Layer,
    made: Attended,
    value: Float[Tensor, "rows kv_heads columns value_dim"],
    last: Int[Tensor, " rows"],
) -> Float[Tensor, "rows heads value_dim"]:
    """The values of the token that predicts the next one, weighed as a stream readout says.

    Args:
        readout: The readout.
        tokens: Of the branch, on the layer's device.
        layer: The layer.
        made: What it computed.
        value: Its values.
        last: Which of the call's tokens it is, in each row.
    """
    rows = torch.arange(len(last), device=last.device)
    visible = made.visible[rows, last]
    weights = readout.reweigh(
        AttentionRow(
            weights=made.weights[rows, :, last],
            visible=visible,
            is_image=tokens.is_image & visible,
            is_first=tokens.token_mask & (tokens.token_mask.long().cumsum(dim=1) == 1) & visible,
            layer=layer.index,
            depth=layer.depth,
        )
    )
    values = _each_head(value.to(weights), weights.shape[1])
    return (weights[:, :, None] @ values)[:, :, 0].to(value.dtype)


def plain_attention(
    query: Float[Tensor, "rows heads new head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
    value: Float[Tensor, "rows kv_heads columns value_dim"],
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    s_aux: Float[Tensor, " heads"] | None,
) -> Float[Tensor, "rows new heads value_dim"]:
    """The attention of a call in which no method acts; the names are Hugging Face's."""
    wide, heads, new = (
        torch.promote_types(query.dtype, torch.float32),
        query.shape[1],
        query.shape[2],
    )
    logits = query.to(wide) @ _each_head(key.to(wide), heads).mT * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    columns = torch.arange(key.shape[2], device=key.device)
    if mask is None:
        mask = columns <= columns[-new:, None]
    elif mask.dtype != torch.bool:
        mask = mask >= 0  # additive: 0 or a large negative number
    weights = softmax(logits.masked_fill(~mask, -math.inf), s_aux)
    out = weights @ _each_head(value.to(wide), heads)
    return out.transpose(1, 2).to(value.dtype)


def _each_head(
    x: Float[Tensor, "rows kv_heads columns dim"], heads: int
) -> Float[Tensor, "rows heads columns dim"]:
    """Heads that share a key stand beside each other."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _columns(
    x: Float[Tensor, "rows kv_heads columns dim"], tokens: Tokens
) -> Float[Tensor, "rows kv_heads image dim"]:
    """The keys or values of the image tokens."""
    index = tokens.image_columns[:, None, :, None]
    return x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))


def _hidden(
    segment: CrossModalSegment,
    pruned: Bool[Tensor, "rows image"],
    tokens: Tokens,
    visible: Bool[Tensor, "rows new columns"],
) -> CrossModalSegment:
    """No token sees pruned image tokens, those of images included; one left alone sees itself."""
    gone = tokens.at_columns(pruned[:, None, None])[:, 0] & tokens.is_image[:, None]
    seen = visible & ~gone
    seen = seen | (visible & tokens.itself & ~seen.any(dim=-1, keepdim=True))
    return replace(segment, text_logits=segment.text_logits.masked_fill(~seen[:, None], -math.inf))
