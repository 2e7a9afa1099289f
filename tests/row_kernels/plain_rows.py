"""What the kernels for generated rows must compute, in plain float64: one row after the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Generated rows of some branches: all columns of each, without sharing."""

    query: Tensor
    """(rows, heads, dim)."""
    keys: Tensor
    """(rows, kv_heads, columns, dim)."""
    values: Tensor
    """(rows, kv_heads, columns, value_dim)."""
    is_image: Tensor
    """(rows, columns)."""
    seen: Tensor
    """(rows, columns): False on padding."""
    scaling: float
    sinks: Tensor | None
    """(heads)."""


@dataclass(frozen=True)
class Rule:
    """What a branch does to the cells above the mean."""

    effect: str
    """"nothing", "replace" or "cut"."""
    each_head: bool = False
    replacement: Tensor | None = None
    """(rows of the branch, kv_heads, image tokens or 1, value_dim)."""


def expected(rows: Rows, rules: Sequence[Rule]) -> Tensor:
    """(rows, heads, value_dim), in float64."""
    count = rows.query.shape[0] // len(rules)
    made = [_row(rows, at, rules[at // count], at % count) for at in range(rows.query.shape[0])]
    return torch.stack(made)


def _row(rows: Rows, at: int, rule: Rule, of_branch: int) -> Tensor:
    heads, kv = rows.query.shape[1], rows.keys.shape[1]
    cells = rows.is_image[at] & rows.seen[at]
    logits = torch.stack(
        [
            rows.keys[at, head * kv // heads].double() @ rows.query[at, head].double()
            for head in range(heads)
        ]
    )
    logits = logits * rows.scaling
    strong = torch.zeros_like(cells).repeat(heads, 1)
    if rule.effect != "nothing" and bool(cells.any()):
        on_image = logits[:, cells]
        mean = on_image.mean(dim=1, keepdim=True) if rule.each_head else on_image.mean()
        strong[:, cells] = on_image > mean
    logits = logits.masked_fill(~rows.seen[at], -math.inf)
    if rule.effect == "cut":
        logits = logits.masked_fill(strong, -math.inf)
    powers = logits.exp()  # a head's logits are small here: nothing need be subtracted
    total = powers.sum(dim=1)
    if rows.sinks is not None:
        total = total + rows.sinks.double().exp()
    weights = powers / total[:, None]
    out = []
    for head in range(heads):
        values = rows.values[at, head * kv // heads].double().clone()
        if rule.effect == "replace":
            assert rule.replacement is not None
            instead = rule.replacement[of_branch, head * kv // heads].double()
            instead = instead.expand(max(int(cells.sum()), instead.shape[0]), -1)
            values[cells] = torch.where(
                strong[head, cells][:, None], instead[: int(cells.sum())], values[cells]
            )
        out.append(weights[head] @ values)
    return torch.stack(out)
