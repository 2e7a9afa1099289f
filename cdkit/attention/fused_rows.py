"""Generated rows through a fused kernel: what it needs to know of a method, found out once."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.columns import Columns
from cdkit.attention.image_columns import CachedImageColumns, ImageColumnIndex
from cdkit.attention.softmax_form import SoftmaxForm
from cdkit.branches.layout import Layout
from cdkit.interfaces.cell_change import CellChange
from cdkit.interfaces.segment import ImageColumns
from cdkit.row_kernels.choice import programs
from cdkit.row_kernels.generated_rows import (
    CUTS,
    LARGEST_HEAD,
    NOTHING,
    REPLACES,
    RowRules,
    attend_rows,
    splits_for,
)

Images = Mapping[str, tuple[slice, ImageColumnIndex]]
"""Branch -> its rows among those of its group, and its image columns."""
RowChanges = tuple[CellChange | None, ...]
"""For each branch of a group what changes in its generated rows; None for nothing."""


@dataclass(frozen=True, eq=False)
class FusedRows:
    """The generated rows of one group of branches: made with the plan of a prompt."""

    kernels: Any
    """The module `cdkit.row_kernels.triton_rows`."""
    branches: tuple[str, ...]
    images: Images
    image_place: Int[Tensor, "rows prompt"]
    """For each column of the prompt the number of the image token in its row, from 0; -1 on text
    and padding."""
    rules: dict[int, RowRules | None] = field(default_factory=dict)
    """Layer -> what it does to every generated row: found out at the first one. None where the
    layer's attention has a form that the kernel does not know."""
    tables: dict[RowChanges, Tensor] = field(default_factory=dict)
    """Changes -> `RowRules.table`: most layers have the same."""

    @classmethod
    def of(
        cls, kernels: Any, branches: tuple[str, ...], layout: Layout, images: Images
    ) -> "FusedRows":
        """For rows whose prompts have this layout."""
        is_image = layout.image_index >= 0
        place = is_image.cumsum(dim=-1).sub(1).masked_fill(~is_image, -1)
        return cls(kernels, branches, images, place.int())

    def attend(
        self,
        layer: int,
        depth: int,
        changes: RowChanges,
        query: Float[Tensor, "rows heads 1 head_dim"],
        keys: Columns,
        values: Columns,
        *,
        form: SoftmaxForm,
        token_mask: Bool[Tensor, "rows columns"] | None,
        answer_cache: dict[tuple[int, str], dict[Hashable, Tensor]],
    ) -> Float[Tensor, "rows 1 heads value_dim"] | None:
        """The output of one layer.

        Args:
            layer: The layer's index.
            depth: How many layers there are.
            changes: What it changes.
            query: Rotated queries of the rows of all branches.
            keys: Keys of all columns, calibrated.
            values: Their values.
            form: How logits become weights.
            token_mask: False on padding; None where there is none.
            answer_cache: What strategies keep for the whole answer.

        Returns:
            The output; None where the operators must compute it.
        """
        if layer not in self.rules:
            self.rules[layer] = self._rules(
                layer, depth, changes, query, keys, values, form, answer_cache
            )
        rules = self.rules[layer]
        if rules is None:
            return None
        return attend_rows(
            rules,
            query,
            keys.prefix,
            values.prefix,
            keys.suffix,
            values.suffix,
            rows_per_sample=keys.rows_per_sample,
            image_place=self.image_place,
            token_mask=token_mask,
            scaling=form.scaling,
            sinks=form.sinks,
        )

    def _rules(
        self,
        layer: int,
        depth: int,
        changes: RowChanges,
        query: Tensor,
        keys: Columns,
        values: Columns,
        form: SoftmaxForm,
        answer_cache: dict[tuple[int, str], dict[Hashable, Tensor]],
    ) -> RowRules | None:
        own, own_values = keys.suffix, values.suffix
        # capped logits have no mean that the mean key would give
        if form.cap is not None or max(own.shape[-1], own_values.shape[-1]) > LARGEST_HEAD:
            return None
        if not query.dtype == own.dtype == own_values.dtype:
            return None
        mean_keys, replacements = list[Tensor](), list[Tensor]()
        for branch, change in zip(self.branches, changes, strict=True):
            if change is None:
                continue
            rows, index = self.images[branch]
            image = CachedImageColumns(
                index,
                keys,
                values,
                rows,
                layer=layer,
                depth=depth,
                answer_cache=answer_cache.setdefault((layer, branch), {}),
            )
            mean_keys.append(_mean_key(image))
            if change.replacement is not None:
                made = change.replacement(image)
                # one number for all dimensions is a view of itself
                replacements.append(made if made.stride(-1) == 1 else made.contiguous())
        cuts = any(change is not None and change.replacement is None for change in changes)
        return RowRules(
            kernels=self.kernels,
            splits=splits_for(query.shape[0] * own.shape[1], keys.total, programs(query.device)),
            table=self._table(changes, query.device),
            replaces=bool(replacements),
            cuts=cuts,
            mean_keys=torch.stack(mean_keys, dim=1) if mean_keys else None,
            replacements=_stacked(replacements),
        )

    def _table(self, changes: RowChanges, device: torch.device) -> Tensor:
        if changes not in self.tables:
            table, means, replaced = [], 0, 0
            for change in changes:
                if change is None:
                    table.append((NOTHING, 0, 0, 0))
                    continue
                by_head = int(change.selector.mean_scope == "head")
                effect = CUTS if change.replacement is None else REPLACES
                table.append((effect, by_head, means, replaced))
                means, replaced = means + 1, replaced + (effect == REPLACES)
            self.tables[changes] = torch.tensor(table, dtype=torch.int32, device=device)
        return self.tables[changes]


def _mean_key(image: ImageColumns) -> Float[Tensor, "rows kv_heads head_dim"]:
    """The mean of a row's image keys, in float32 or better."""
    wide = torch.promote_types(image.keys.dtype, torch.float32)
    keys = image.keys.masked_fill(~image.valid[:, None, :, None], 0)
    return keys.sum(dim=2, dtype=wide) / image.valid.sum(dim=1).clamp(min=1)[:, None, None]


def _stacked(
    replacements: Sequence[Float[Tensor, "rows kv_heads _ value_dim"]],
) -> Float[Tensor, "rows branches kv_heads #image value_dim"] | None:
    """One replacement is a view: that of value noise is as large as the image's values."""
    if not replacements:
        return None
    if len(replacements) == 1:
        return replacements[0][:, None]
    most = max(x.shape[2] for x in replacements)
    return torch.stack([x.expand(-1, -1, most, -1) for x in replacements], dim=1)
