"""The layers of hybrid decoders that keep a recurrent state in the place of keys and values.

A state has one row for each row of the batch, like keys and values, so branches are rows there as
well, and beams reorder it. But it holds no single tokens, so no prefix of it can be shared. And the
model writes into it, so that a copy must be a separate tensor.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

STATES = ("conv_states", "recurrent_states")
"""Where such a layer keeps its states: by number, or one alone."""


def keeps_state(layer: object) -> bool:
    """Whether a layer of a cache keeps a recurrent state, alone or beside keys and values."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def keeps_keys(layer: object) -> bool:
    """Whether a layer of a cache has keys and values, of all tokens or of the last ones."""
    return isinstance(layer, CacheLayerMixin)


def has_recurrent_layers(config: Any) -> bool:
    """Whether a decoder of this configuration has layers with a recurrent state."""
    return any(map(keeps_state, DynamicCache(config=config).layers))


def copied_layer(layer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A separate layer of a cache: what `change` makes of its keys, its values, and its states.

    Args:
        layer: A layer of a cache, with any of the three.
        change: For example a choice of rows. It may return its argument as it is.
    """
    own = copy.copy(layer)
    if getattr(layer, "keys", None) is not None:
        own.keys, own.values = change(layer.keys), change(layer.values)
    if not keeps_state(layer):
        return own

    def separate(state: Tensor | None) -> Tensor | None:
        return None if state is None else change(state).clone()  # it may be a view

    for name, kept in vars(layer).items():
        if isinstance(kept, dict):
            is_state = name in STATES
            setattr(own, name, {k: separate(v) if is_state else v for k, v in kept.items()})
        elif name in STATES:
            setattr(own, name, separate(kept))
    return own
