"""Random calls of the kernels for generated rows, and what they must give."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cdkit.row_kernels.generated_rows import CUTS, NOTHING, REPLACES, RowRules, attend_rows
from row_kernels.plain_rows import Rows, Rule, expected

EFFECTS = {"nothing": NOTHING, "replace": REPLACES, "cut": CUTS}
LARGEST = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
"""Dtype -> by how much an output of some units may differ."""


@dataclass(frozen=True)
class Case:
    """Sizes of a call."""

    dtype: torch.dtype
    samples: int
    beams: int
    kv_heads: int
    group: int
    dim: int
    value_dim: int
    text: int
    """Columns before the images."""
    images: int
    """Columns that are images, text between them included."""
    prefix: int
    """How many first columns the rows of a sample share."""
    generated: int
    padding: int
    splits: int
    rules: tuple[tuple[str, bool], ...]
    """(effect, whether each head has a mean of its own), for each branch."""
    one: bool
    """Whether one value replaces those of all image tokens."""
    sinks: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn, *dtypes: torch.dtype) -> Case:
    text, images = draw(st.integers(1, 70)), draw(st.integers(0, 80))
    prompt = text + images + draw(st.integers(1, 10))
    rule = st.tuples(st.sampled_from(sorted(EFFECTS)), st.booleans())
    return Case(
        dtype=draw(st.sampled_from(dtypes)),
        samples=draw(st.integers(1, 2)),
        beams=draw(st.integers(1, 2)),
        kv_heads=draw(st.integers(1, 2)),
        group=draw(st.integers(1, 3)),
        dim=draw(st.sampled_from((8, 12, 20))),
        value_dim=draw(st.sampled_from((8, 20))),
        text=text,
        images=images,
        prefix=draw(st.sampled_from((0, text, prompt - 1))),
        generated=draw(st.integers(1, 3)),
        padding=draw(st.integers(0, text - 1)),
        splits=draw(st.integers(1, 3)),
        rules=tuple(draw(st.lists(rule, min_size=1, max_size=3))),
        one=draw(st.booleans()),
        sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def check(case: Case, device: str = "cpu") -> None:
    """The kernels against the plain statement, on random tensors of a case."""
    kernels: Any = importlib.import_module("cdkit.row_kernels.triton_rows")
    random = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=random, dtype=torch.float64)
        return made.to(device, case.dtype)

    each, kv, branches = case.samples * case.beams, case.kv_heads, len(case.rules)
    rows, heads = each * branches, kv * case.group
    prompt = case.text + case.images + 1
    prompt = max(prompt, case.prefix + 1)
    total = prompt + case.generated
    query = normal(rows, heads, 1, case.dim)
    prefix_keys = normal(case.samples, kv, case.prefix, case.dim)
    prefix_values = normal(case.samples, kv, case.prefix, case.value_dim)
    # as a cache that grows in a buffer gives them: a view, its columns far apart
    keys = normal(rows, kv, total - case.prefix + 3, case.dim)[:, :, : total - case.prefix]
    values = normal(rows, kv, total - case.prefix + 3, case.value_dim)
    values = values[:, :, : total - case.prefix]
    sinks = normal(heads) if case.sinks else None

    is_image = torch.zeros(each, prompt, dtype=torch.bool, device=device)
    span = slice(case.text, case.text + case.images)
    is_image[:, span] = (torch.rand(each, case.images, generator=random) < 0.8).to(device)
    seen = torch.ones(rows, total, dtype=torch.bool, device=device)
    seen[::2, : case.padding] = False  # every second row is shorter
    is_image = is_image.repeat(branches, 1)
    place = is_image.cumsum(dim=1).sub(1).masked_fill(~is_image, -1).int()
    longest = max(1, int(is_image.sum(dim=1).max()))

    def whole(prefix: Tensor, suffix: Tensor) -> Tensor:
        each_row = prefix.repeat_interleave(case.beams, dim=0).repeat(branches, 1, 1, 1)
        return torch.cat((each_row, suffix), dim=2)

    all_keys = whole(prefix_keys, keys)
    wide = torch.promote_types(case.dtype, torch.float32)
    table, rules = list[tuple[int, int, int, int]](), list[Rule]()
    mean_keys, replacements = list[Tensor](), list[Tensor]()
    for number, (effect, each_head) in enumerate(case.rules):
        table.append((EFFECTS[effect], each_head, len(mean_keys), len(replacements)))
        replacement = None
        if effect != "nothing":
            own = slice(number * each, (number + 1) * each)
            cells = torch.nn.functional.pad(is_image[own], (0, total - prompt))[:, None, :, None]
            count = cells.sum(dim=2).clamp(min=1)
            mean_keys.append((all_keys[own].to(wide) * cells).sum(dim=2) / count)
        if effect == "replace":
            replacement = normal(each, kv, 1 if case.one else longest, case.value_dim)
            replacements.append(replacement)
        rules.append(Rule(effect, each_head, replacement))
    out = attend_rows(
        RowRules(
            kernels=kernels,
            splits=case.splits,
            table=torch.tensor(table, dtype=torch.int32, device=device),
            replaces=bool(replacements),
            cuts=any(effect == "cut" for effect, _ in case.rules),
            mean_keys=torch.stack(mean_keys, dim=1) if mean_keys else None,
            replacements=torch.stack(replacements, dim=1) if replacements else None,
        ),
        query,
        prefix_keys if case.prefix else None,
        prefix_values if case.prefix else None,
        keys,
        values,
        rows_per_sample=case.beams,
        image_place=place,
        token_mask=seen if case.padding else None,
        scaling=case.dim**-0.5,
        sinks=sinks,
    )
    wanted = expected(
        Rows(
            query=query[:, :, 0],
            keys=all_keys,
            values=whole(prefix_values, values),
            is_image=torch.nn.functional.pad(is_image, (0, total - prompt)),
            seen=seen,
            scaling=case.dim**-0.5,
            sinks=sinks,
        ),
        rules,
    )
    assert out.shape == (rows, 1, heads, case.value_dim) and out.dtype == case.dtype
    worst = float((out[:, 0].double() - wanted).abs().max())
    assert worst < LARGEST[case.dtype]
