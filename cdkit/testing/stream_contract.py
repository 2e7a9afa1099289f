"""What a stream readout promises besides what a layer readout does; see `cdkit.testing`."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.stream_readout import AttentionRow, StreamReadout, Sublayers
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import normal, pure, takes

INDEPENDENT = "rows of the batch are independent"
OWN_ROW = "reduce over columns and heads (dim=-1, dim=1), never over the rows of the batch"
DEPTH, HIDDEN = 8, 6


@dataclass
class _ExampleSublayers(Sublayers):
    """Sublayers that a stream can be sent through, each of which leaves a trace."""

    depth: int = DEPTH
    passed: list[int] = field(default_factory=list)

    def attention_norm(self, layer: int, states: Tensor) -> Tensor:
        self.passed.append(layer)
        return states / (1 + states.square().mean(dim=-1, keepdim=True)).sqrt() * (1 + layer)

    def feed_forward(self, layer: int, states: Tensor) -> Tensor:
        self.passed.append(layer)
        return states + torch.tanh(states) * (1 + layer)


def check_stream(readout: StreamReadout) -> None:
    """Check the promises of a stream readout.

    Args:
        readout: The readout.

    Raises:
        AssertionError: Where a promise is broken.
    """
    for count in (1, 8, 32):
        layer = readout.attention_layer(count)
        require(
            isinstance(layer, int) and 0 <= layer < count,
            readout,
            f"its attention is that of one of {count} layers",
            layer,
            todo="count layers from 0, and never beyond the depth",
        )
    row = _row()
    what = "one token's attention over padding, text, image tokens and its own column"
    with takes(readout, what, todo="use row.visible, which may be any of these"):
        made = pure(readout, readout.reweigh, row)
    require(
        made.shape == row.weights.shape and bool(made.isfinite().all()),
        readout,
        "its weights are finite, and have the shape of those it gets",
        made.shape,
        todo="return (rows, heads, columns)",
    )
    hidden = made.masked_fill(row.visible[:, None], 0)
    require(
        not hidden.any(),
        readout,
        "no weight lies where the token may not attend",
        hidden,
        todo="multiply with row.visible[:, None]",
    )
    states = {name: normal(7 + i, 3, HIDDEN) for i, name in enumerate(readout.layers(DEPTH))}
    attended = normal(5, 3, HIDDEN)
    sublayers = _ExampleSublayers()
    with takes(readout, "states of three rows", todo="return (rows, hidden)"):
        out = pure(readout, readout.stream, attended, states, sublayers)
    require(
        out.shape == attended.shape,
        readout,
        "its stream has the shape of the states",
        out.shape,
        todo="return (rows, hidden)",
    )
    require(
        all(0 <= layer < DEPTH for layer in sublayers.passed),
        readout,
        f"its stream passes layers from 0 to {DEPTH - 1}",
        sublayers.passed,
        todo="count layers by sublayers.depth",
    )
    for order in ([1, 2, 0], [2], [0, 0, 1, 2]):
        some = torch.tensor(order)
        mixed = readout.reweigh(_of(row, some))
        require_same(mixed, made[some], readout, INDEPENDENT, todo=OWN_ROW)
        own = {name: x[some] for name, x in states.items()}
        again = readout.stream(attended[some], own, sublayers)
        require_same(again, out[some], readout, INDEPENDENT, todo=OWN_ROW)


def _row() -> AttentionRow:
    """Three rows of 12 columns: with padding, with an image at the start, with two images."""
    kinds = ("..bttiiiiitt", "iiiiiitttttt", "btiiitiiiitt")
    visible = torch.tensor([[kind != "." for kind in row] for row in kinds])
    first = visible & (visible.cumsum(dim=-1) == 1)
    weights = normal(3, 3, 4, 12).masked_fill(~visible[:, None], -torch.inf).softmax(dim=-1)
    image = torch.tensor([[kind == "i" for kind in row] for row in kinds])
    return AttentionRow(weights, visible, image, first, layer=0, depth=DEPTH)


def _of(row: AttentionRow, some: Tensor) -> AttentionRow:
    values: dict[str, Any] = {one.name: getattr(row, one.name) for one in fields(row)}
    of_some: dict[str, Any] = {
        name: value[some] if isinstance(value, Tensor) else value for name, value in values.items()
    }
    return AttentionRow(**of_some)
