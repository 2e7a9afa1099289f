"""Decode steps through `torch.compile`: one graph of the decoder, whatever the length."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdkit.attention_call import AttentionCall
from cdkit.chunk import Chunk
from cdkit.errors import CdkitWarning
from cdkit.limits import setting
from cdkit.static import FixedLayer, is_fixed

if TYPE_CHECKING:
    from cdkit.engine import Engine

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
        device = given["inputs_embeds"].device
        shared = 0 if batch.prefix is None else batch.prefix.length
        total = shared + layers[0].size
        if chunk.stop > total or not all(
            layer.in_room and layer.keys.device == device and layer.size == layers[0].size
            for layer in layers
        ):
            return None
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


def compiled_steps(
    engine: "Engine",
    given: Mapping[str, Any],
    defaults: Sequence[object],
    earlier: CompiledSteps | None,
) -> CompiledSteps | None:
    """What `compile_config` of `generate` asks for: the steps of an earlier call, where they do."""
    config = setting("compile_config", given, defaults)
    if config is None or setting("disable_compile", given, defaults):
        return None
    decoder: Any = engine.adapter.decoder(engine.model)
    kernel, why = str(decoder.config._attn_implementation), None
    if setting("cache_implementation", given, defaults) != "static":
        why = "pass cache_implementation='static' as well"
    elif engine.method.loop is not None:
        why = f"{engine.method.name} brings a loop of its own, which copies its cache"
    elif not engine.hooked and kernel != "sdpa":
        why = f"the model's attention is {kernel}; load it with attn_implementation='sdpa'"
    if why is not None:
        warnings.warn(
            f"compile_config changes nothing here: {why}", CdkitWarning, stacklevel=2
        )
        return None
    options = {name: value for name, value in config.to_dict().items() if value is not None}
    if earlier is not None and earlier.options == options:
        return earlier
    return CompiledSteps(options)


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
            _fixed(x, 2, stays=True)
    if batch.prefix is not None:
        for x in (*batch.prefix.keys, *batch.prefix.values):
            _fixed(x, 2, stays=True)
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


def _fixed(x: Tensor | None, *lengths: int, stays: bool = False) -> None:
    """All but these dimensions of it. `stays`: it is the same tensor in every step of an answer."""
    if x is None or hasattr(x, "_dynamo_static_indices"):
        return
    for dim in range(x.ndim):
        if dim not in lengths:
            torch._dynamo.mark_static(x, dim)
    if stays:  # else a CUDA graph would copy it in every step
        torch._dynamo.mark_static_address(x, guard=False)
