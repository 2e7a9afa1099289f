"""Decode steps through `torch.compile`: one graph of the decoder, whatever the length."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cdkit.attention.context import AttentionCall, Cells, Masks
from cdkit.branches.chunk import Chunk
from cdkit.errors import CdkitWarning
from cdkit.execution.static_cache import FixedLayer, is_fixed
from cdkit.generation.compatibility import setting
from cdkit.generation.model_checks import sliding_window

if TYPE_CHECKING:
    from cdkit.generation.engine import Engine

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
    kept: dict[tuple[str, ...], "Told"] = field(default_factory=dict)
    """Branches of a group -> what its layers were told in the step before."""

    def prepare(
        self, forward: Forward, call: AttentionCall, given: dict[str, Any]
    ) -> tuple[Forward, AttentionCall, dict[str, Any]] | None:
        """(forward, what layers are told, what it is given) of a step; None where it runs as ever.

        A first token does: it makes the room, and what strategies keep for the whole answer.
        """
        cache, chunk = call.cache, call.chunk
        if not (chunk.generated and chunk.length == 1 and is_fixed(cache)) or call.looks:
            return None
        layers: list[FixedLayer] = cache.layers
        embeds = given["inputs_embeds"]
        shared = 0 if call.batch.prefix is None else call.batch.prefix.length
        total = shared + layers[0].size
        if chunk.stop > total or not all(
            x.in_room and x.keys.device == embeds.device and x.size == layers[0].size
            for x in layers
        ):
            return None
        told = self.kept.get(call.branches)
        if told is None or not told.goes_on(call, total):
            told = self.kept[call.branches] = Told.of(call, total, embeds.device)
        told.step(call)
        own = given | {
            "attention_mask": told.mask,
            "position_ids": dense(given["position_ids"]),
        }
        fix(embeds)
        fix(own["position_ids"])
        fix(told.call.chunk.query_turn)
        at = torch.tensor([chunk.start - shared], device=embeds.device)
        for layer in layers:
            layer.at = at
        if self.compiled is None:
            self.compiled = torch.compile(forward, **self.options)
        return self.compiled, told.call, own

    def forget(self) -> None:
        """Let go of an answer's caches."""
        self.kept.clear()


@dataclass(eq=False)
class Told:
    """What the layers of a compiled step are told: the same tensors all along, written anew.

    The columns that are still empty are as padding, and a step's token stands somewhere before the
    last column: it sees no more than what is real.
    """

    call: AttentionCall
    mask: Bool[Tensor, "rows 1 1 columns"]
    """For layers that run the stock attention."""
    stop: int
    """How many columns were there in the step before."""

    @classmethod
    def of(cls, call: AttentionCall, total: int, device: torch.device) -> "Told":
        """For the steps from this one on, in room for `total` columns."""
        old, batch = call.chunk, call.batch
        real = torch.nn.functional.pad(old.real[:, :-1], (0, total - old.stop + 1)).to(device)
        # the step's own column is written by `step`; so its token is counted from the one before
        chunk = Chunk(total - 1, 1, old.layout, real, open=True)
        told = replace(call, chunk=chunk, prefixed=True, made={}, held=[])
        if batch.rng_keys is not None:
            for branch in call.branches:
                told.cells(branch, None, 0, device)
        told.masks(None, slice(None), 0, device)
        for place, cells in list(told.made.items()):
            if isinstance(cells, Cells):
                # found by their indices: a slice would be a graph's own
                told.made[place] = cells._replace(places=cells.places._replace(span=None))
        made = cls(told, real[:, None, None, :].clone(), old.stop - 1)
        made.fix(total)
        return made

    def goes_on(self, call: AttentionCall, total: int) -> bool:
        """Whether this step follows the one before, in the same room."""
        same = self.call.batch is call.batch and self.call.cache is call.cache
        return same and self.call.chunk.stop == total and self.stop == call.chunk.start

    def step(self, call: AttentionCall) -> None:
        """Write one column more."""
        column, new = call.chunk.start, call.chunk.real[:, -1].to(self.mask.device)
        self.stop = call.chunk.stop
        self.mask[..., column] = new[:, None, None]
        places: dict[Any, Any] = self.call.made
        for place, made in places.items():
            if isinstance(made, Masks):
                own = new[slice(*place[2:4])]
                made.seen[..., column] = own[:, None]
                assert made.forbidden is not None
                made.forbidden[..., column] = ~own[:, None, None]
            else:
                made.token_index.add_(new[self.call.rows_of(place[1]), None])
        told = self.call
        turn = call.chunk.query_turn
        told.chunk.query_turn = None if turn is None else dense(turn)
        told.step, told.layers_run, told.last_weights = call.step, 0, None
        told.image_logits, told.image_weights = call.image_logits, call.image_weights
        told.layer_state = call.layer_state

    def fix(self, columns: int) -> None:
        """Say that nothing but numbers of columns, written or shared, may differ in a graph."""
        batch = self.call.batch
        fix(self.mask, 3)
        for layer in self.call.cache.layers:
            for x in layer.room:
                fix(x, 2, stays=True)
        if batch.prefix is not None:
            for x in (*batch.prefix.keys, *batch.prefix.values):
                fix(x, 2, stays=True)
        for kept in batch.memory.values():
            for x in kept.values():
                fix(x)
        for made in (*self.call.made.values(), *batch.known_places.values()):
            for x in made:
                if isinstance(x, Tensor):
                    fix(x, *(d for d in range(x.ndim) if x.shape[d] == columns))


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
    elif sliding_window(decoder) is not None:
        why = "some of the model's layers keep a window of the last tokens alone, which has no room"
    if why is not None:
        warnings.warn(f"compile_config changes nothing here: {why}", CdkitWarning, stacklevel=2)
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


def dense(x: Tensor) -> Tensor:
    """A copy none of whose strides tells a length, as that of a single row's slice does."""
    return x.clone(memory_format=torch.contiguous_format)


def fix(x: Tensor | None, *lengths: int, stays: bool = False) -> None:
    """All but these dimensions of it. `stays`: it is the same tensor in every step of an answer."""
    if x is None or hasattr(x, "_dynamo_static_indices"):
        return
    for dim in range(x.ndim):
        if dim not in lengths:
            torch._dynamo.mark_static(x, dim)
    if stays:  # else a CUDA graph would copy it in every step
        torch._dynamo.mark_static_address(x, guard=False)
