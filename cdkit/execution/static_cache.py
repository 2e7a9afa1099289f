"""The static cache of `generate(cache_implementation="static")`, for the rows of all branches."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

STEP = 64
"""Buffers grow by multiples of this many columns, so that similar lengths have the same shape."""

Keys = Float[Tensor, "rows kv_heads new head_dim"]
Values = Float[Tensor, "rows kv_heads new value_dim"]


class FixedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values in buffers that are allocated once for the whole answer.

    Other code sees a DynamicLayer: `keys` and `values` are views of the filled part. So Hugging
    Face makes no 4-D masks for it, which would know of one branch only, and the attention needs
    none against columns that are still empty. The buffers are allocated when the first token
    follows the prompt, which by then may have left its shared columns to all branches.
    """

    keys: Any
    """Tensors, but for a layer without any."""
    values: Any

    def __init__(self, ahead: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ahead = ahead
        """How many columns may follow the prompt."""
        self.buffers: tuple[Tensor, Tensor] | None = None
        """All columns, of keys and values; None before they are allocated."""
        self.views: tuple[Tensor, Tensor] | None = None
        """`keys` and `values` as last written: code that sets others leaves the buffers."""
        self.cache_position: Tensor | None = None
        """Where a compiled step writes; None outside of one."""

    def update(self, key_states: Keys, value_states: Values, *args: Any, **kw: Any) -> Any:
        """Write new columns; a compiled step gets whole buffers back, others the filled part."""
        if self.cache_position is not None:
            assert self.buffers is not None
            for whole, new in zip(self.buffers, (key_states, value_states), strict=True):
                whole.index_copy_(2, self.cache_position, new)
            return self.buffers
        before = self.get_seq_length()
        if before == 0:
            return super().update(key_states, value_states, *args, **kw)
        stop = before + key_states.shape[2]
        keys, values = self.ensure_capacity(stop)
        keys[:, :, before:stop] = key_states
        values[:, :, before:stop] = value_states
        self.show_up_to(stop)
        return self.keys, self.values

    def ensure_capacity(self, stop: int) -> tuple[Tensor, Tensor]:
        """Buffers of at least `stop` columns, with the content so far."""
        if self.buffers is None or not self.in_buffers or self.buffers[0].shape[2] < stop:
            before = self.keys.shape[2]
            size = -(-max(before + self.ahead, stop) // STEP) * STEP
            self.buffers = _buffer(self.keys, size), _buffer(self.values, size)
            self.show_up_to(before)
        return self.buffers

    def show_up_to(self, stop: int) -> None:
        """Show the columns before `stop` as filled."""
        assert self.buffers is not None
        self.keys, self.values = self.views = (
            self.buffers[0][:, :, :stop],
            self.buffers[1][:, :, :stop],
        )

    def reorder_cache(self, beam_idx: Any) -> None:
        """In place, where it can be: a compiled step keeps its tensors."""
        if not self.in_buffers:
            super().reorder_cache(beam_idx)
            return
        for own in (self.keys, self.values):
            own.copy_(own.index_select(0, beam_idx.to(own.device)))

    @property
    def in_buffers(self) -> bool:
        """Whether `keys` and `values` are views of the buffers."""
        views = self.views
        return views is not None and self.keys is views[0] and self.values is views[1]

    @property
    def size(self) -> int:
        """How many columns the buffers hold."""
        return 0 if self.buffers is None else self.buffers[0].shape[2]

    def __copy__(self) -> "FixedLayer":
        """A separate layer: neither it nor this one writes into buffers that the other reads."""
        self.views = self.buffers = None
        own = FixedLayer(self.ahead)
        vars(own).update(vars(self))
        return own


def _buffer(written: Float[Tensor, "rows kv_heads columns dim"], size: int) -> Tensor:
    buffer = written.new_zeros(*written.shape[:2], size, written.shape[3])
    buffer[:, :, : written.shape[2]] = written
    return buffer


def fixed_cache(config: Any, ahead: int) -> DynamicCache:
    """An empty cache with buffers for `ahead` tokens after the prompt.

    Layers with a sliding window already keep a fixed number of tokens: they stay as they are.
    """
    cache: Any = DynamicCache(config=config)
    cache.layers = [FixedLayer(ahead) if type(x) is DynamicLayer else x for x in cache.layers]
    made: DynamicCache = cache
    return made


def empty_like(cache: Cache, config: Any) -> DynamicCache:
    """An empty cache of the same kind, for another group of branches."""
    layers: list[Any] = cache.layers
    ahead = [layer.ahead for layer in layers if isinstance(layer, FixedLayer)]
    return fixed_cache(config, ahead[0]) if ahead else DynamicCache(config=config)


def static_cache(config: Any, prompt: int, made: Any) -> DynamicCache:
    """What replaces the static cache that `generate` has just made, for prompts of that length.

    The layers of `generate`'s cache have one fixed number of columns and rows, which those of the
    branches do not have.
    """
    return fixed_cache(config, max(0, int(made.get_max_length()) - prompt))


def is_fixed(cache: object) -> bool:
    """Whether a cache keeps every token of every layer in fixed buffers."""
    layers: list[Any] = getattr(cache, "layers", [])
    return bool(layers) and all(isinstance(layer, FixedLayer) for layer in layers)
