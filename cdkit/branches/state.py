"""The state of one batch while it is decoded: positions, padding and caches of all branches."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cdkit.attention.context import AnswerCache
from cdkit.attention.masks import Chunk, make_chunk, text_after_image
from cdkit.branches.positions import any_moves, position_offset, prompt_offsets
from cdkit.errors import CdkitError
from cdkit.execution.plan import GroupPlan, PromptPlan
from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.interfaces.combiner import State


@dataclass(frozen=True, eq=False)
class CallOffsets:
    """By how many positions keys and queries of one call move."""

    key: Float[Tensor, "rows prompt *axes"] | None = None
    """Offsets of the keys of the prompt's columns so far, 0 where no image token is; None where
    nothing moves now."""
    query: Float[Tensor, "rows tokens *axes"] | None = None
    """Offsets of the queries of the call's columns, besides those keys; None where no text row
    moves."""


@dataclass(eq=False)
class BranchState:
    """Lives in the cache that `generate` holds, so that batches never mix.

    A step takes it, writes to it, and hands it on; layers write into the caches alone.
    """

    plan: PromptPlan
    positions: Int[Tensor, "rows tokens *axes"]
    """Positions of all tokens so far, as the decoder got them, but with the axes last."""
    token_mask: Bool[Tensor, "rows tokens"]
    """False on padding."""
    caches: list[Any]
    """One for each group of the plan."""
    seen: list[int]
    """How many columns of each group went through the decoder."""
    ids: Int[Tensor, "rows tokens"] | None = None
    """Token ids of all tokens so far; None where the decoder gets embeddings alone."""
    prefix: SharedPrefix | None = None
    step: int = 0
    states: Mapping[str, State] = field(default_factory=dict)
    """What the combiner and each schedule carry along, by their place in the method."""
    answer_cache: AnswerCache = field(default_factory=dict)
    key_offset: Float[Tensor, "rows prompt *axes"] | None = None
    """By how many positions the image keys that are kept have moved."""
    reference_offset: Float[Tensor, "rows 1 *axes"] | None = None
    """How much the last token of each sample's original prompt is moved: offsets are relative to
    it, since only differences of positions count."""
    generated_offset: Float[Tensor, "rows 1 *axes"] | None = None
    """By how many positions queries of the latest generated token move; of all, where the
    calibrator is constant after the prompt."""
    queries_move: bool = False
    """Whether queries of generated tokens are known to move, so that no step tests it again."""

    def extend(
        self,
        positions: Shaped[Tensor, "..."] | None,
        token_mask: Shaped[Tensor, "_ columns"] | None,
        new: int,
        ids: Int[Tensor, "given_rows given_tokens"] | None = None,
    ) -> None:
        """Note `new` more columns of the original branch.

        Args:
            positions: Their positions in the decoder's order of axes; None for Hugging Face's
                default, the number of columns before.
            token_mask: The decoder's mask, which ends with that of the new columns; None where
                none of them is padding.
            new: How many new columns there are.
            ids: Token ids that end with those of the new columns.
        """
        plan, device = self.plan, self.positions.device
        branches = len(plan.branches)
        if positions is None:
            # Hugging Face's default: the number of columns before it
            before = self.positions.shape[1] - (plan.padding.stop - plan.padding.start)
            positions = torch.arange(before, before + new, device=device)[None]
        elif positions.ndim > 2:
            positions = positions.movedim(0, -1)
        axes = self.positions.shape[2:]
        if positions.ndim < self.positions.ndim:
            positions = positions[..., None]
        if token_mask is None:
            token_mask = torch.ones(plan.rows, new, dtype=torch.bool, device=device)
        # branches whose prompt is longer or shorter keep their distance to the original branch
        last = self.positions[:, -1:]
        distance = last - torch.cat([last[: plan.rows]] * branches)
        positions = positions.expand(plan.rows, new, *axes).to(last.dtype)
        positions = torch.cat([positions] * branches) + distance
        self.positions = torch.cat((self.positions, positions), dim=1)
        if self.ids is not None:
            if ids is None:
                raise CdkitError("this model's layers read token ids: pass input_ids")
            self.ids = torch.cat((self.ids, ids[:, -new:].repeat(branches, 1)), dim=1)
        late = token_mask[:, -new:].bool().repeat(branches, 1)
        self.token_mask = torch.cat((self.token_mask, late), dim=1)

    def next_columns(self, group: GroupPlan, start: int, stop: int) -> tuple[Chunk, CallOffsets]:
        """The columns from `start` to `stop` of a group's rows, and by how much they move."""
        plan = self.plan
        chunk = make_chunk(group.layout, self.token_mask[group.rows, :stop], start, stop)
        calibrator = plan.calibrator
        if calibrator is None or (chunk.first_text == chunk.length and not chunk.completes_prompt):
            return chunk, CallOffsets()
        if not chunk.generated:
            made = prompt_offsets(
                calibrator,
                self.positions[:, :stop],
                plan.layout,
                branches=len(plan.branches),
                whole=chunk.completes_prompt,
                rows=group.rows,
                is_text=text_after_image(chunk),
            )
            if chunk.completes_prompt:
                self.key_offset, self.reference_offset = made.key, made.reference
            return chunk, CallOffsets(made.key[group.rows], made.query)
        offset = self.generated_offset
        if offset is None or not calibrator.constant_after_prompt:
            image_index, has_image = plan.layout.image_index, plan.layout.valid.any(1, keepdim=True)
            assert self.reference_offset is not None
            every = position_offset(calibrator, self.positions[:, :stop], image_index)
            offset = (every - self.reference_offset)[:, start:]
            self.queries_move = self.queries_move or any_moves(offset, has_image)
            self.generated_offset = offset[:, -1:]
        # a cache that keeps no keys gives those of ordinary positions at each step
        key = None if plan.caches_keys else self.key_offset
        if key is not None:
            key = key[group.rows]
        if not self.queries_move:
            return chunk, CallOffsets(key)
        return chunk, CallOffsets(
            key, query=offset[group.rows].expand(-1, stop - start, *offset.shape[2:])
        )

    def reorder(self, beams: Int[Tensor, " rows"]) -> None:
        """Follow the beams; `beams` are rows of the original branch.

        A beam never leaves its sample, so what the prompt decided stays, and so does a prefix.
        """
        plan = self.plan
        for group, cache in zip(plan.groups, self.caches, strict=True):
            cache.reorder_cache(plan.in_every_branch(beams, len(group.branches)))
        every = plan.in_every_branch(beams)
        self.positions, self.token_mask = self.positions[every], self.token_mask[every]
        self.ids = None if self.ids is None else self.ids[every]
        self.states = _selected(self.states, beams)

    def select(self, rows: Int[Tensor, " chosen"], caches: list[Any]) -> "BranchState":
        """A separate state, of copies of these rows of the original branch, in every branch."""
        every = self.plan.in_every_branch(rows)

        def own(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[every.to(x.device)]

        answer_cache: AnswerCache = {
            place: {key: value[rows.to(value.device)] for key, value in kept.items()}
            for place, kept in self.answer_cache.items()
        }
        return replace(
            self,
            plan=self.plan.select(rows),
            positions=self.positions[every],
            token_mask=self.token_mask[every],
            ids=own(self.ids),
            caches=caches,
            seen=list(self.seen),
            prefix=None if self.prefix is None else self.prefix.select(rows),
            states=_selected(self.states, rows),
            answer_cache=answer_cache,
            key_offset=own(self.key_offset),
            reference_offset=own(self.reference_offset),
            generated_offset=own(self.generated_offset),
        )

    def fork(self, caches: list[Any]) -> "BranchState":
        """A separate state with the same rows; no tensor of either is written to."""
        kept: dict[tuple[int, str], dict[Hashable, Tensor]] = dict(self.answer_cache)
        return replace(
            self,
            caches=caches,
            seen=list(self.seen),
            states=dict(self.states),
            answer_cache=kept,
        )


def _selected(states: Mapping[str, State], rows: Int[Tensor, " chosen"]) -> dict[str, State]:
    return {
        place: {name: value[rows] for name, value in state.items()}
        for place, state in states.items()
    }
