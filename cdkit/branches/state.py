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
from cdkit.execution.packing import PackedSteps
from cdkit.execution.plan import GroupPlan, PromptPlan
from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.interfaces.combiner import State
from cdkit.states.answer_states import AnswerStates


@dataclass(eq=False)
class GrowingPositions:
    """Positions of all tokens so far, as the decoder got them, but with the axes last."""

    known: Int[Tensor, "all_rows tokens *axes"]
    """The joined ones, of the rows of all branches."""
    branches: int
    late: list[Int[Tensor, "rows new *axes"]] = field(default_factory=list)
    """What came after them, of the original branch alone."""
    distance: Int[Tensor, "all_rows 1 *axes"] | None = None
    """How far each row is ahead of the original branch, whose prompt may be shorter; None where
    none is."""
    has_distance: bool | None = None
    """Whether `distance` is found out: that waits for the device, once an answer."""

    @property
    def length(self) -> int:
        return self.known.shape[1] + sum(x.shape[1] for x in self.late)

    def append(self, positions: Int[Tensor, "rows new *axes"]) -> None:
        """Add columns of the original branch."""
        self.late.append(positions)

    def beside(self) -> Int[Tensor, "rows branches *axes"]:
        """The last column, where single columns are added, with the branches beside each other."""
        rows = self.known.shape[0] // self.branches
        last = self.late[-1] if self.late else self.known[:rows, -1:]
        each, ahead = last.expand(-1, self.branches, *last.shape[2:]), self.ahead()
        if ahead is None:
            return each
        return each + ahead[:, 0].view(self.branches, rows, *ahead.shape[2:]).transpose(0, 1)

    def latest(self) -> Int[Tensor, "all_rows new *axes"]:
        """The columns of all branches that were added last."""
        return self._of_branches(self.late[-1])

    def joined(self) -> Int[Tensor, "all_rows tokens *axes"]:
        """All columns of all branches."""
        if self.late:
            late = self.late[0] if len(self.late) == 1 else torch.cat(self.late, dim=1)
            self.known = torch.cat((self.known, self._of_branches(late)), dim=1)
            self.late.clear()
        return self.known

    def ahead(self) -> Int[Tensor, "all_rows 1 *axes"] | None:
        """How far each row is ahead of the original branch; None where none is."""
        if self.has_distance is None:
            last = self.known[:, -1:]
            distance = last - torch.cat([last[: len(last) // self.branches]] * self.branches)
            self.has_distance = self.branches > 1 and bool(distance.any())
            self.distance = distance if self.has_distance else None
        return self.distance

    def _of_branches(self, positions: Int[Tensor, "rows new *axes"]) -> Tensor:
        if self.branches == 1:
            return positions
        positions, ahead = torch.cat([positions] * self.branches), self.ahead()
        return positions if ahead is None else positions + ahead


@dataclass(eq=False)
class GrowingMask:
    """False on padding, for all tokens so far."""

    known: Bool[Tensor, "all_rows tokens"]
    """The joined columns, of the rows of all branches."""
    branches: int
    given: Shaped[Tensor, "rows columns"] | None = None
    """The mask that came with the latest columns: it ends with all those that are not joined."""
    late: int = 0
    """How many columns are not joined."""

    def append(self, given: Shaped[Tensor, "rows columns"] | None, new: int) -> None:
        """Add columns of the original branch.

        Args:
            given: A mask that ends with theirs; None where none of them is padding.
            new: How many they are.
        """
        fits = given is None or given.shape[1] >= self.late + new
        if self.late and (not fits or (given is None) != (self.given is None)):
            self.joined()
        self.given, self.late = given, self.late + new

    def joined(self) -> Bool[Tensor, "all_rows tokens"]:
        """All columns of all branches."""
        if self.late:
            rows = self.known.shape[0] // self.branches
            if self.given is None:
                late = self.known.new_ones(rows, self.late)
            else:
                late = self.given[:, -self.late :].bool()
            self.known = torch.cat((self.known, late.repeat(self.branches, 1)), dim=1)
            self.given, self.late = None, 0
        return self.known


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
    positions: GrowingPositions
    token_mask: GrowingMask
    caches: list[Any]
    """One for each group of the plan."""
    seen: list[int]
    """How many columns of each group went through the decoder."""
    ids: Int[Tensor, "rows tokens"] | None = None
    """Token ids of all tokens so far; None where the decoder gets embeddings alone."""
    prefix: SharedPrefix | None = None
    packed: PackedSteps | None = None
    """The columns of all branches, where they are in one row a sample."""
    step: int = 0
    states: Mapping[str, State] = field(default_factory=dict)
    """What the combiner and each schedule carry along, by their place in the method."""
    answer_cache: AnswerCache = field(default_factory=dict)
    answer_states: AnswerStates | None = None
    """What state interventions keep of the prompts; None where there is none. A beam never leaves
    its sample, so it needs no reordering."""
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
        plan, known = self.plan, self.positions.known
        if positions is None:
            # Hugging Face's default: the number of columns before it
            before = self.positions.length - (plan.padding.stop - plan.padding.start)
            positions = torch.arange(before, before + new, device=known.device)[None]
        elif positions.ndim > 2:
            positions = positions.movedim(0, -1)
        if positions.ndim < known.ndim:
            positions = positions[..., None]
        wanted = plan.rows, new, *known.shape[2:]
        if positions.shape != wanted:
            positions = positions.expand(wanted)
        if positions.dtype != known.dtype:
            positions = positions.to(known.dtype)
        self.positions.append(positions)
        self.token_mask.append(token_mask, new)
        if self.ids is not None:
            if ids is None:
                raise CdkitError("this model's layers read token ids: pass input_ids")
            late = ids[:, -new:].repeat(len(plan.branches), 1)
            self.ids = torch.cat((self.ids, late), dim=1)

    def positions_of(self, rows: slice, start: int, stop: int) -> Int[Tensor, "rows some *axes"]:
        """The positions of some rows' columns."""
        positions, count = self.positions, stop - start
        if positions.late and stop == positions.length and count == positions.late[-1].shape[1]:
            some = positions.latest()
        else:
            some = positions.joined()[:, start:stop]
        return some if rows == slice(0, some.shape[0]) else some[rows]

    def stays_packed(self, new: int, *, gives_layers: bool) -> bool:
        """Whether the `new` columns that were just noted can be a packed step.

        Where queries of generated tokens might move, the first step waits for the device once.
        """
        packed = self.packed
        if packed is None or new != 1 or gives_layers:
            return False
        if packed.done > 0:
            return True
        if len({layer.keys.device for layer in packed.layers}) > 1:
            return False
        if packed.text_is_still:
            return True
        _, offsets = self.next_columns(self.plan.groups[0], self.seen[0], self.seen[0] + 1)
        return offsets.query is None and offsets.key is None

    def advance(self) -> Int[Tensor, "samples branches *axes"]:
        """Begin a packed step: the positions of its tokens."""
        assert self.packed is not None
        positions = self.positions.beside()
        self.packed.advance()
        return positions

    def leave_packing(self) -> None:
        """Put each branch's columns into rows of its own, for what reads or chooses rows."""
        if self.packed is None:
            return
        self.prefix = self.packed.prefix()
        self.caches[0].layers[:] = self.packed.row_layers()
        self.packed = None

    def next_columns(self, group: GroupPlan, start: int, stop: int) -> tuple[Chunk, CallOffsets]:
        """The columns from `start` to `stop` of a group's rows, and by how much they move."""
        plan, mask = self.plan, self.token_mask
        chunk = make_chunk(group.layout, lambda: mask.joined()[group.rows, :stop], start, stop)
        calibrator = plan.calibrator
        if calibrator is None or (chunk.first_text == chunk.length and not chunk.completes_prompt):
            return chunk, CallOffsets()
        if not chunk.generated:
            is_text = text_after_image(chunk)
            made = prompt_offsets(
                calibrator,
                self.positions.joined()[:, :stop],
                plan.layout,
                branches=len(plan.branches),
                whole=chunk.completes_prompt,
                rows=group.rows,
                is_text=is_text,
            )
            if chunk.completes_prompt:
                self.key_offset, self.reference_offset = made.key, made.reference
            return chunk, CallOffsets(made.key[group.rows], made.query)
        offset = self.generated_offset
        if offset is None or not calibrator.constant_after_prompt:
            image_index, has_image = plan.layout.image_index, plan.layout.valid.any(1, keepdim=True)
            assert self.reference_offset is not None
            every = position_offset(calibrator, self.positions.joined()[:, :stop], image_index)
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
        self.leave_packing()
        for group, cache in zip(plan.groups, self.caches, strict=True):
            cache.reorder_cache(plan.in_every_branch(beams, len(group.branches)))
        every = plan.in_every_branch(beams)
        self.positions, self.token_mask = self._columns_of(every)
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
        positions, token_mask = self._columns_of(every)
        return replace(
            self,
            plan=self.plan.select(rows),
            positions=positions,
            token_mask=token_mask,
            ids=own(self.ids),
            caches=caches,
            seen=list(self.seen),
            prefix=None if self.prefix is None else self.prefix.select(rows),
            states=_selected(self.states, rows),
            answer_cache=answer_cache,
            answer_states=None
            if self.answer_states is None
            else self.answer_states.select(rows, every),
            key_offset=own(self.key_offset),
            reference_offset=own(self.reference_offset),
            generated_offset=own(self.generated_offset),
        )

    def fork(self, caches: list[Any]) -> "BranchState":
        """A separate state with the same rows; no tensor of either is written to."""
        kept: dict[tuple[int, str], dict[Hashable, Tensor]] = dict(self.answer_cache)
        return replace(
            self,
            positions=GrowingPositions(self.positions.joined(), self.positions.branches),
            token_mask=GrowingMask(self.token_mask.joined(), self.token_mask.branches),
            caches=caches,
            seen=list(self.seen),
            states=dict(self.states),
            answer_cache=kept,
        )

    def _columns_of(self, rows: Int[Tensor, " all_rows"]) -> tuple[GrowingPositions, GrowingMask]:
        """Positions and padding of these rows of all branches."""
        branches = len(self.plan.branches)
        return (
            GrowingPositions(self.positions.joined()[rows], branches),
            GrowingMask(self.token_mask.joined()[rows], branches),
        )


def _selected(states: Mapping[str, State], rows: Int[Tensor, " chosen"]) -> dict[str, State]:
    return {
        place: {name: value[rows] for name, value in state.items()}
        for place, state in states.items()
    }
