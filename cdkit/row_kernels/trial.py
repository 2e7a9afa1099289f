"""The kernels on a small made-up batch, against operators: whether a device computes them right."""

import math
from typing import Any

import torch
from torch import Tensor

from cdkit.row_kernels.generated_rows import CUTS, NOTHING, REPLACES, RowRules, attend_rows

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""How far an output may be off: the rounding of the dtype, of values around 1."""
BRANCHES, KV_HEADS, GROUP = 3, 2, 2
PREFIX, IMAGE, COLUMNS = 150, (20, 130), 200
"""Columns of the shared prefix; those of the image; all columns."""


def error_of(kernels: Any, device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """The largest difference between the kernels' output and the operators'.

    Args:
        kernels: The module `cdkit.row_kernels.triton_rows`.
        device: Where they run.
        dtype: Of queries, keys and values.
        head_dim: The dimensions of a head: large ones may not fit into the device.

    Returns:
        The difference; not a number where an output is none.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    prefix_keys, prefix_values = (drawn(1, KV_HEADS, PREFIX, head_dim) for _ in range(2))
    keys, values = (drawn(BRANCHES, KV_HEADS, COLUMNS - PREFIX, head_dim) for _ in range(2))
    query = drawn(BRANCHES, KV_HEADS * GROUP, 1, head_dim)
    place = torch.full((BRANCHES, COLUMNS - 1), -1, dtype=torch.int32, device=device)
    place[:, slice(*IMAGE)] = torch.arange(IMAGE[1] - IMAGE[0], dtype=torch.int32, device=device)
    wide = torch.promote_types(dtype, torch.float32)
    mean = prefix_keys[:, :, slice(*IMAGE)].to(wide).mean(dim=2)
    replacement = drawn(1, 1, KV_HEADS, 1, head_dim)
    table = [(NOTHING, 0, 0, 0), (REPLACES, 0, 0, 0), (CUTS, 1, 1, 0)]
    rules = RowRules(
        kernels=kernels,
        splits=3,
        table=torch.tensor(table, dtype=torch.int32, device=device),
        replaces=True,
        cuts=True,
        mean_keys=mean[:, None].expand(-1, 2, -1, -1).contiguous(),
        replacements=replacement,
    )
    scaling = 1 / math.sqrt(head_dim)
    found = attend_rows(
        rules, query, prefix_keys, prefix_values, keys, values,
        rows_per_sample=1, image_place=place, token_mask=None, scaling=scaling, sinks=None,
    )  # fmt: skip
    heads = [
        torch.cat((x.expand(BRANCHES, -1, -1, -1), y), dim=2).double().repeat_interleave(GROUP, 1)
        for x, y in ((prefix_keys, keys), (prefix_values, values))
    ]
    logits = query.double() @ heads[0].mT * scaling
    image = logits[..., slice(*IMAGE)]
    strong = torch.zeros_like(logits, dtype=torch.bool)
    strong[1, ..., slice(*IMAGE)] = image[1] > image[1].mean()
    strong[2, ..., slice(*IMAGE)] = image[2] > image[2].mean(dim=-1, keepdim=True)
    weights = torch.cat((logits[:2], logits[2:].masked_fill(strong[2:], -torch.inf))).softmax(-1)
    taken = weights * strong
    instead = replacement[0, 0].double().repeat_interleave(GROUP, 0)
    wanted = (weights - taken) @ heads[1] + taken.sum(dim=-1, keepdim=True) * instead
    return (found.double() - wanted.transpose(1, 2)).abs().max().item()
