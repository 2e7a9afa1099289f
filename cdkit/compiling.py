"""Decode steps through `torch.compile`: one graph of the decoder, whatever the length."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
    """

    options: Mapping[str, Any]
    """Of `torch.compile`."""
    compiled: dict[str, Forward] = field(default_factory=dict)

    def prepare(
        self, forward: Forward, call: AttentionCall
    ) -> tuple[Forward, AttentionCall, Tensor] | None:
        """(forward, what layers are told, the mask) of a step; None where it runs as ever.

        A first token does: it makes the room, and what strategies keep for the whole answer.
        """
        cache, chunk = call.cache, call.chunk
        device = chunk.real.device
        if not (chunk.generated and chunk.length == 1 and is_fixed(cache)):
            return None
        layers: list[FixedLayer] = cache.layers
        if any(layer.room is None or not layer.in_room for layer in layers):
            return None
        before = 0 if call.batch.prefix is None else call.batch.prefix.length
        total = before + layers[0].size
        if chunk.stop > total:
            return None
        real = torch.nn.functional.pad(chunk.real, (0, total - chunk.stop))
        whole = Chunk(total - 1, 1, chunk.layout, real, None, chunk.query_turn, open=True)
        told = replace(call, chunk=whole, prefixed=True, made={}, held=[])
        for branch in call.branches if call.batch.streams is not None else ():
            told.cells(branch, None, 0, device)
        told.masks(None, slice(None), 0, device)
        at = torch.tensor([chunk.start - before], device=device)
        for layer in layers:
            layer.at = at
        if "step" not in self.compiled:
            self.compiled["step"] = torch.compile(forward, **self.options)
        return self.compiled["step"], told, real[:, None, None, :]


def finish(call: AttentionCall) -> None:
    """Show the columns of a compiled step as written."""
    layers: list[FixedLayer] = call.cache.layers
    for layer in layers:
        layer.at = None
        layer.write_up_to(layer.keys.shape[2] + 1)
