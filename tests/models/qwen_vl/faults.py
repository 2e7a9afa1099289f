"""Mistakes, each as a replacement of one function of the reference."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from . import reference
from .reference import Reference

NORM, GATED = Reference._norm, reference.gated


def unnormed(left_out: str) -> Callable[[Reference, Tensor, str], Tensor]:
    """`Reference._norm` without one of the norms."""
    return lambda own, x, name: x if name == left_out else NORM(own, x, name)


def tanh_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def linear_weights(old: int, new: int) -> Tensor:
    """(new, old): bilinear in place of bicubic."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for out in range(new):
        at = (out + 0.5) * old / new - 0.5
        for tap in (math.floor(at), math.floor(at) + 1):
            weights[out, min(max(tap, 0), old - 1)] += max(0.0, 1 - abs(at - tap))
    return weights


def sine_places(resized: Tensor) -> Tensor:
    return reference.sines(round(len(resized) ** 0.5), resized.shape[1])


def query_value_key(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, value, key = fused.chunk(3, dim=1)
    return query, key, value


TOWER: Mapping[str, tuple[str, Any]] = {
    "fused_in_blocks": (
        "fused_cuts",
        lambda head, width, hidden: [part * hidden + head * width for part in range(3)],
    ),
    "tanh_gelu": ("gelu", tanh_gelu),
    "post_norm": ("Reference._block_output", lambda own, x, name: NORM(own, x, f"{name}.ln_2")),
    "no_pre_norm": ("Reference._norm", unnormed("ln_pre")),
    "eps": ("VISION_EPS", 1e-5),
    "patches_by_column": ("row_and_column", lambda place, count: divmod(place, count)[::-1]),
    "bilinear": ("cubic_weights", linear_weights),
}
RESAMPLER: Mapping[str, tuple[str, Any]] = {
    "positions_in_values": ("resampled_values", lambda kv, places: kv + places),
    "no_positions_in_queries": ("placed_queries", lambda queries, table: queries),
    "keys_by_sines": ("key_places", sine_places),
    "no_query_norm": ("Reference._norm", unnormed("attn_pool.ln_q")),
    "no_kv_norm": ("Reference._norm", unnormed("attn_pool.ln_kv")),
    "no_post_norm": ("Reference._norm", unnormed("ln_post")),
    "proj_transposed": ("projected", lambda x, proj: x @ proj.T),
    "heads_of_64": ("heads_of", lambda heads, width: width // 64),
}
TEXT: Mapping[str, tuple[str, Any]] = {
    "swapped_gate": ("gated", lambda up, gate: GATED(gate, up)),
    "no_bias": ("biased", lambda x, bias: x),
    "interleaved_rope": ("turned_pair", lambda pair, half: (2 * pair, 2 * pair + 1)),
    "qvk": ("query_key_value", query_value_key),
    "no_final_norm": ("final_norm", lambda x, weight: x),
    "image_late": ("feature_place", lambda place: place + 1),
    "not_causal": ("causal", lambda logits: logits),
}
"""Mistake -> what of the reference it changes, and how that is wrong."""


@contextmanager
def faulty(name: str) -> Iterator[None]:
    """The reference with one mistake."""
    place, wrong = {**TOWER, **RESAMPLER, **TEXT}[name]
    owner, _, function = place.rpartition(".")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getattr(reference, owner) if owner else reference, function, wrong)
        yield
