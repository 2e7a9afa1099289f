"""Find out whether padding before a prompt changes what a decoder makes of the prompt."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from cdkit.branches.recurrent_states import has_recurrent_layers
from cdkit.errors import failure
from cdkit.interfaces.model_adapter import input_device
from cdkit.probing.promises import precision

TOKENS, PADDING = 6, 4
_FOUND: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Decoder -> whether it ignores padding; found out once, not at each attach."""


def why_padding_matters(decoder: Any) -> str:
    """Why padding before a prompt must not be added; empty where it changes no state of the prompt.

    A mask hides padding from attention. A recurrent layer goes over it, and is right only if what
    it makes of a masked token is nothing; a bias may spoil that. Such a decoder runs some random
    embeddings, with padding before them and without.

    Args:
        decoder: The text decoder.
    """
    changes = f"padding changes the recurrent state in layers of {type(decoder).__name__}"
    if not has_recurrent_layers(decoder.config):
        return ""
    if decoder not in _FOUND:
        try:
            with torch.no_grad():
                _FOUND[decoder] = _ignores(decoder)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an unknown decoder may fail in any way
            return f"whether {changes} was not found out: {failure(error)}"
    return "" if _FOUND[decoder] else changes


def _ignores(decoder: Any) -> bool:
    device = input_device(decoder)
    random = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, PADDING + TOKENS, decoder.config.hidden_size, generator=random)
    embeds = embeds.to(device, decoder.dtype)
    mask = (torch.arange(PADDING + TOKENS, device=device) >= PADDING).long()[None]
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    states = [
        type(decoder)  # of the class: the instance's may be wrapped by an attachment
        .forward(
            decoder,
            inputs_embeds=embeds[:, first:],
            attention_mask=mask[:, first:],
            position_ids=positions[:, first:],
            use_cache=False,
        )
        .last_hidden_state[:, -TOKENS:]
        for first in (0, PADDING)
    ]
    allowed = precision(decoder.dtype) * (1 + float(states[1].abs().max()))
    return bool((states[0] - states[1]).abs().max() <= allowed)
