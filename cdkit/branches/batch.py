"""One batch of prompts while it is decoded: the rows of all branches, and what each step needs."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.image_columns import Places
from cdkit.branches.chunk import Chunk
from cdkit.branches.layout import Layout
from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.functional.rope import Rotary
from cdkit.interfaces.combiner import State
from cdkit.interfaces.position_calibrator import PositionCalibrator

STILL = 1e-9
"""Positions that differ by less are the same: sums of thirds round differently."""


def axes_last(positions: Int[Tensor, "..."] | None) -> Int[Tensor, "rows tokens *axes"] | None:
    """Positions as the decoder takes them, (axes, rows, tokens), with their axes last."""
    return positions if positions is None or positions.ndim == 2 else positions.movedim(0, -1)


def rotated_axes(
    positions: Int[Tensor, "rows tokens *axes"],
) -> Int[Tensor, "rows tokens *rotated"]:
    """The axes that the rotary embedding turns by: of four the first only counts text tokens."""
    return positions[..., 1:] if positions.shape[2:] == (4,) else positions


@dataclass(eq=False)
class Group:
    """Branches whose rows go through the decoder together, with a cache of their own."""

    branches: tuple[str, ...]
    rows: slice
    """Of all rows of the batch."""
    layout: Layout
    cache: Any = None
    seen: int = 0
    """How many columns went through the decoder."""


@dataclass(eq=False)
class BranchedBatch:
    """The state that belongs to one batch: it lives in its cache, so that batches never mix."""

    calibrator: PositionCalibrator | None
    branches: tuple[str, ...]
    """"original", then the distorted branches that run."""
    layout: Layout
    """Of the prompts of all rows."""
    positions: Int[Tensor, "rows tokens *axes"]
    """Of all tokens so far, as the decoder was given them, its axes last."""
    rng_keys: Int[Tensor, " rows"] | None
    """A random key for each row; None where the attention is left alone."""
    padding: slice
    """Columns of the original prompts that stand for longer ones of other branches."""
    real: Bool[Tensor, "rows tokens"]
    shared: int = 0
    """How many first columns are the same in all branches, and go in by themselves."""
    levels: tuple[Float[Tensor, "rows prompt hidden"], ...] = ()
    """What deeper layers add at the prompt's tokens, 0 on text; empty where they add nothing."""
    step: int = 0
    states: dict[str, State] = field(default_factory=dict)
    """What the combiner and each schedule carry along, by their place in the method."""
    memory: dict[tuple[int, str], dict[Hashable, Tensor]] = field(default_factory=dict)
    """(layer, branch) -> what is kept of its image columns, once the whole prompt is there."""
    known_places: dict[tuple[str, torch.device], Places] = field(default_factory=dict)
    waiting: Float[Tensor, "rows tokens hidden"] | None = None
    """The embedded tokens that the distorted branches have not seen, where they lag behind."""
    groups: list[Group] = field(default_factory=list)
    prefix: SharedPrefix | None = None
    rotary: Sequence[Rotary | None] | None = None
    """Each layer's, where there is a calibrator."""
    image_turn: Float[Tensor, "rows prompt *axes"] | None = None
    """By how many positions the image keys that are kept have moved."""
    late_turn: Float[Tensor, "rows new *axes"] | None = None
    """By how many positions the queries of generated tokens move beside them; None for nothing."""
    late_known: bool = False

    @property
    def rows(self) -> int:
        """Rows of one branch."""
        return self.layout.rows // len(self.branches)

    @property
    def seen(self) -> int:
        """How many columns of the original branch went through the decoder."""
        return self.groups[0].seen if self.groups else 0

    def rows_of(self, branch: str) -> slice:
        index = self.branches.index(branch)
        return slice(index * self.rows, (index + 1) * self.rows)

    def group(self, branches: Sequence[str], cache: Any) -> Group:
        """A group of neighbouring branches that has seen nothing."""
        rows = slice(self.rows_of(branches[0]).start, self.rows_of(branches[-1]).stop)
        return Group(tuple(branches), rows, self.layout.select(rows), cache)

    def places(self, branch: str, device: torch.device) -> Places:
        """The image columns of a branch's rows."""
        if (branch, device) not in self.known_places:
            rows = self.rows_of(branch)
            assert self.rng_keys is not None
            places = Places.of(self.layout.select(rows), self.rng_keys[rows], device)
            self.known_places[branch, device] = places
        return self.known_places[branch, device]

    def without_padding(self, x: Tensor, dim: int = -1) -> Tensor:
        """The columns that the original branch's caller knows of."""
        gap = self.padding
        if gap.stop == gap.start:
            return x
        kept = (x.narrow(dim, 0, gap.start), x.narrow(dim, gap.stop, x.shape[dim] - gap.stop))
        return torch.cat(kept, dim=dim)

    def levels_of(
        self, rows: slice, start: int, stop: int
    ) -> tuple[Bool[Tensor, "rows tokens"], list[Float[Tensor, "_ hidden"]]] | None:
        """Where these columns have image tokens, and what deeper layers add there; None for
        nothing."""
        end = min(stop, self.layout.length)
        if not self.levels or start >= end:
            return None
        on_image = self.layout.image_index[rows, start:end] >= 0
        added = [level[rows, start:end][on_image] for level in self.levels]
        return torch.nn.functional.pad(on_image, (0, stop - end)), added

    def extend(
        self,
        positions: Int[Tensor, "_ new *axes"] | None,
        real: Bool[Tensor, "rows new"] | None,
        new: int,
    ) -> None:
        """Note `new` more columns; `positions` and `real` are the original branch's."""
        branches, device = len(self.branches), self.positions.device
        if positions is None:
            # Hugging Face's default: the number of columns before it
            before = self.positions.shape[1] - (self.padding.stop - self.padding.start)
            positions = torch.arange(before, before + new, device=device)[None]
        axes = self.positions.shape[2:]
        if positions.ndim < self.positions.ndim:
            positions = positions[..., None]
        if real is None:
            real = torch.ones(self.rows, new, dtype=torch.bool, device=device)
        # branches whose prompt is longer or shorter keep their distance to the original branch
        last = self.positions[:, -1:]
        offset = last - torch.cat([last[: self.rows]] * branches)
        positions = positions.expand(self.rows, new, *axes)
        positions = torch.cat([positions] * branches) + offset
        self.positions = torch.cat((self.positions, positions), dim=1)
        self.real = torch.cat((self.real, real.repeat(branches, 1)), dim=1)

    def positions_ahead(self, new: int) -> Int[Tensor, "*axes rows new"]:
        """Of the next tokens of the original branch, as the decoder takes them."""
        ahead = torch.arange(1, new + 1, device=self.positions.device)
        last = self.positions[: self.rows, -1:]
        return last + ahead if last.ndim == 2 else (last + ahead[:, None]).movedim(-1, 0)

    def chunk(self, group: Group, stop: int) -> Chunk:
        """The columns from those that the group has seen to `stop`, of its rows."""
        start, rows = group.seen, group.rows
        chunk = Chunk(start, stop - start, group.layout, self.real[rows, :stop])
        if self.calibrator is None or (chunk.first_text == chunk.length and not chunk.completes):
            return chunk
        if chunk.generated:
            chunk.query_turn = self._late(chunk, rows)
            return chunk
        return self._calibrate(chunk, rows)

    def _calibrate(self, chunk: Chunk, rows: slice) -> Chunk:
        """By how much keys and queries of a chunk of the prompt move.

        Only differences of positions matter, so all is told from where the tokens to come stand:
        the keys are moved once, and their queries never. A prompt of which more is to come does
        not know yet where that is.
        """
        shift, stop = self._shift(chunk.stop), min(chunk.stop, self.layout.length)
        if chunk.completes:
            shift = shift - self._reference()
        on_image = self.layout.image_index[:, :stop] >= 0
        image_turn = shift[:, :stop].masked_fill(~_on_axes(on_image, shift), 0)
        turn = shift[rows, chunk.start :]
        moves = (turn.abs() > STILL) & _on_axes(chunk.is_text, turn)
        chunk.image_turn = image_turn[rows]
        if bool(moves.any()):
            chunk.query_turn = turn
        if chunk.completes:
            self.image_turn = image_turn
        return chunk

    def _late(self, chunk: Chunk, rows: slice) -> Float[Tensor, "rows tokens *axes"] | None:
        """By how much queries of generated tokens move: whether they do is asked until they do."""
        assert self.calibrator is not None
        if not (self.calibrator.constant_after_prompt and self.late_known):
            turn = (self._shift(chunk.stop) - self._reference())[:, chunk.start :]
            has_image = _on_axes(self.layout.valid.any(dim=1, keepdim=True), turn)
            moved = self.late_turn is not None  # then a host need not wait to hear of it again
            moves = moved or bool(((turn.abs() > STILL) & has_image).any())
            self.late_turn, self.late_known = turn if moves else None, True
        late = self.late_turn
        if late is None:
            return None
        if self.calibrator.constant_after_prompt:
            return late[rows, -1:].expand(-1, chunk.length, *late.shape[2:])
        return late[rows]

    def _reference(self) -> Float[Tensor, "rows 1 *axes"]:
        """How much the last token of each sample's original prompt is moved."""
        prompt = self.layout.length
        shift = self._shift(prompt)[: self.rows]
        at = self.layout.last[: self.rows].view(-1, 1, *[1] * (shift.ndim - 2))
        last = shift.gather(1, at.expand(-1, 1, *shift.shape[2:]))
        return last.repeat(len(self.branches), *[1] * (last.ndim - 1))

    def _shift(self, total: int) -> Float[Tensor, "rows tokens *axes"]:
        """Calibrated minus ordinary position of the first `total` tokens."""
        assert self.calibrator is not None
        positions = rotated_axes(self.positions[:, :total])
        index = self.layout.image_index[:, :total]  # what was generated is text
        index = torch.nn.functional.pad(index, (0, total - index.shape[1]), value=-1)
        return self.calibrator.calibrate(positions, index) - positions.double()

    def mask(self, rows: slice, stop: int) -> Bool[Tensor, "rows tokens"] | None:
        """The decoder's mask up to `stop`; None without padding, which keeps the fast kernels."""
        return self.real[rows, :stop] if self.layout.padded else None

    def reorder(self, indices: Int[Tensor, " rows"]) -> None:
        """Follow the beams. A beam never leaves its sample, so what the prompt decided stays."""
        self.positions, self.real = self.positions[indices], self.real[indices]
        own = indices[: self.rows]
        self.waiting = None if self.waiting is None else self.waiting[own]
        self.states = {
            place: {name: value[own] for name, value in state.items()}
            for place, state in self.states.items()
        }

    def in_every_branch(
        self, rows: Int[Tensor, " chosen"], branches: int | None = None
    ) -> Int[Tensor, " all_rows"]:
        """Rows of the original branch, then the same rows of each distorted branch."""
        count = len(self.branches) if branches is None else branches
        return torch.cat([rows + k * self.rows for k in range(count)])

    def select(self, rows: Int[Tensor, " chosen"]) -> "BranchedBatch":
        """A batch of its own, of copies of these rows; its groups are still the old ones."""
        every = self.in_every_branch(rows)

        def own(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[every.to(x.device)]

        memory = {
            place: {key: value[rows.to(value.device)] for key, value in kept.items()}
            for place, kept in self.memory.items()
        }
        return replace(
            self,
            layout=self.layout.select(every),
            positions=self.positions[every],
            rng_keys=own(self.rng_keys),
            real=self.real[every],
            levels=tuple(level[every] for level in self.levels),
            states={
                place: {name: value[rows] for name, value in state.items()}
                for place, state in self.states.items()
            },
            memory=memory,
            prefix=None if self.prefix is None else self.prefix.select(rows),
            known_places={},
            waiting=None if self.waiting is None else self.waiting[rows],
            image_turn=own(self.image_turn),
            late_turn=own(self.late_turn),
        )


def _on_axes(mask: Bool[Tensor, "rows tokens"], like: Tensor) -> Bool[Tensor, "rows tokens *axes"]:
    return mask if like.ndim == 2 else mask[..., None]
