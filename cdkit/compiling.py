"""Decode steps through `torch.compile`: one graph of the decoder, whatever the length."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cdkit.attention_call import AttentionCall
from cdkit.chunk import Chunk
from cdkit.static import FixedLayer, is_fixed

Forward = Callable[..., Any]


@dataclass(eq=False)
class CompiledSteps:
    """The decoder's forward of generated tokens, compiled once for all of a `generate`'s steps.

    What changes from step to step goes in as tensors: the chunk says that all room of the cache is
    there, and its mask which columns are written. So a step has the shapes of every other one.
    Of a second prompt the lengths alone may differ without a new graph, if it is of as many rows
    with as many images: graphs of any number of rows take minutes to make.
    """

    options: Mapping[str, Any]
    """Of `torch.compile`."""
    compiled: Forward | None = None

    def prepare(
        self, forward: Forward, call: AttentionCall, given: dict[str, Any]
    ) -> tuple[Forward, AttentionCall, dict[str, Any]] | None:
        """(forward, what layers are told, what it is given) of a step; None where it runs as ever.

        A first token does: it makes the room, and what strategies keep for the whole answer.
        """
        cache, chunk, batch = call.cache, call.chunk, call.batch
        if not (chunk.generated and chunk.length == 1 and is_fixed(cache)) or call.looks:
            return None
        layers: list[FixedLayer] = cache.layers
        if not all(layer.in_room for layer in layers):
            return None
        shared = 0 if batch.prefix is None else batch.prefix.length
        total = shared + layers[0].size
        if chunk.stop > total:
            return None
        device = given["inputs_embeds"].device
        real = torch.nn.functional.pad(chunk.real, (0, total - chunk.stop)).to(device)
        turn = None if chunk.query_turn is None else chunk.query_turn.contiguous()
        whole = Chunk(total - 1, 1, chunk.layout, real, None, turn, open=True)
        told = replace(call, chunk=whole, prefixed=True, made={}, held=[])
        if batch.streams is not None:
            for branch in call.branches:
                told.cells(branch, None, 0, device)
        told.masks(None, slice(None), 0, device)
        at = torch.tensor([chunk.start - shared], device=device)
        own = given | {
            "attention_mask": real[:, None, None, :].clone(),
            "position_ids": given["position_ids"].contiguous(),  # no stride tells the length
        }
        for layer in layers:
            layer.at = at
        _fix(told, own)
        if self.compiled is None:
            self.compiled = torch.compile(forward, **self.options)
        return self.compiled, told, own


def finish(call: AttentionCall) -> None:
    """Show the column of a compiled step as written."""
    layers: list[FixedLayer] = call.cache.layers
    for layer in layers:
        layer.at = None
        layer.write_up_to(layer.keys.shape[2] + 1)


def _fix(call: AttentionCall, given: Mapping[str, Any]) -> None:
    """Say that nothing but the numbers of columns, written or shared, may differ in a graph."""
    batch = call.batch
    for x in (given["inputs_embeds"], given["position_ids"], call.chunk.query_turn):
        _fixed(x)
    _fixed(given["attention_mask"], 3)
    for layer in call.cache.layers:
        for x in layer.room:
            _fixed(x, 2)
    if batch.prefix is not None:
        for x in (*batch.prefix.keys, *batch.prefix.values):
            _fixed(x, 2)
    for kept in batch.memory.values():
        for x in kept.values():
            _fixed(x)
    columns = call.chunk.stop
    for made in call.made.values():
        for x in made:
            if isinstance(x, Tensor):
                _fixed(x, *(d for d in range(x.ndim) if x.shape[d] == columns))
    for places in batch.known_places.values():
        for x in places:
            if isinstance(x, Tensor):
                _fixed(x)


def _fixed(x: Tensor | None, *lengths: int) -> None:
    if x is not None and not hasattr(x, "_dynamo_static_indices"):
        for dim in range(x.ndim):
            if dim not in lengths:
                torch._dynamo.mark_static(x, dim)
