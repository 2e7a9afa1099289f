"""One branch on its way through the decoder under the plain algorithm, and what is noted of its
attention."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.generation.reference_attention import Attended, Layer, Memory, Tokens, stream_heads
from cdkit.generation.reference_cache import BranchRows
from cdkit.generation.trace import Step
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL
from cdkit.states.state_call import NotedAttention


@dataclass(eq=False)
class BranchCall:
    """One branch going through the decoder, and what is noted of its attention on the way."""

    name: str
    branch: BranchRows
    tokens: Tokens
    memory: Memory
    notes_image: bool
    """Whether schedules, or feature distortions, read the branch's attention to the image."""
    notes_last_layer: bool
    """Whether a loop reads the last layer's weights."""
    handed_down: frozenset[str] = frozenset()
    """Arguments that the decoder was called with: it hands them to its layers as they are."""
    layers_run: int = 0
    image_logits: list[Float[Tensor, " rows"]] = field(default_factory=list)
    """A layer each: of the row that predicts the next token, see `signals_of`."""
    image_weights: list[Float[Tensor, "rows image"]] = field(default_factory=list)
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    stream_heads: Float[Tensor, "rows heads value_dim"] | None = None
    """The predicting row's heads, as a stream readout weighs them."""
    head_attention: dict[str, NotedAttention] = field(default_factory=dict)
    """Of the latest layer whose attention to the image a state intervention reads."""


def note_attention(
    attached: AttachedMethod,
    running: BranchCall,
    layer: Layer,
    made: Attended,
    value: Tensor,
    step: Step | None,
) -> None:
    """Record what traces, schedules, feature distortions and loops read of a layer.

    Args:
        attached: The method on its model.
        running: The branch that is in the decoder; it takes the notes.
        layer: The layer.
        made: Its attention.
        value: Its values: (rows, key heads, columns, value_dim).
        step: What the trace keeps of this step; None where no step is traced.
    """
    prompt, new = running.branch.layout.length, made.weights.shape[2]
    if running.notes_last_layer and layer.index == layer.depth - 1:
        predicting = min(new, running.branch.columns - prompt + 1)
        if predicting > 0:
            running.last_weights = made.weights[:, :, -predicting:]
    if made.before is None or made.after is None:
        return
    tokens = running.tokens.to(made.weights.device)
    cells = made.before.cells[:, None]
    on_image = tokens.at_image(made.weights).masked_fill(~cells, 0)
    # with padding on the right the last row is not the last column
    last = torch.arange(new, device=cells.device).mul(tokens.predicts_next).amax(dim=-1)
    rows = torch.arange(len(last), device=cells.device)
    if running.notes_image:
        logits = made.after.logits.masked_fill(~cells, 0)
        running.image_logits.append(logits[rows, :, last].sum(-1).mean(1))
        running.image_weights.append(on_image[rows, :, last].mean(1))
    states, number = attached.states, attached.attention_layers[layer.index]
    if states is not None and running.name in states.attention_readers(number):
        seen = made.after.logits[rows, :, last], on_image[rows, :, last]
        running.head_attention[running.name] = NotedAttention(*seen, tokens.image_there)
    stream = attached.stream
    if stream is not None and stream.layer == layer.index and running.name == ORIGINAL:
        running.stream_heads = stream_heads(stream.part, tokens, layer, made, value, last)
    if step is None:
        return
    if "image_attention" in attached.traced:
        last_row = on_image[:, :, -1].clone()
        step.image_attention.setdefault(running.name, {})[layer.index] = last_row
    if "mask" in attached.traced:
        cut = made.after.logits.isneginf() & ~made.before.logits.isneginf()
        mask = cut if made.after.replaced is None else cut | made.after.replaced
        step.mask.setdefault(running.name, {})[layer.index] = mask
