"""One batch of prompts while it is decoded: the rows of all branches, and what each step needs."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.calibrator import PositionCalibrator
from cdkit.combiner import State
from cdkit.layout import Layout
from cdkit.segment import ImageColumns


@dataclass(frozen=True, eq=False)
class Chunk:
    """The columns that one forward call of the decoder adds."""

    start: int
    length: int
    first_text: int
    """The first of the chunk's columns, counted from `start`, in which any row is text after an
    image; `length` where there is none."""
    is_text: Bool[Tensor, "rows tokens"]
    token_index: Int[Tensor, "rows tokens"]
    """The place of the chunk's tokens in their rows, padding not counted."""
    is_image: Bool[Tensor, "rows columns"]
    """All columns up to `stop`: True on image tokens."""
    before_image: Bool[Tensor, "rows columns"]
    """All columns up to `stop`: True on text before the first image."""
    predicts: Bool[Tensor, "rows tokens"]
    """The chunk's tokens that predict the next one: a prompt's last, and each generated one."""
    query_shift: Float[Tensor, "rows tokens *axes"] | None
    """Calibrated minus ordinary position of the chunk's tokens; None without a calibrator."""

    @property
    def stop(self) -> int:
        return self.start + self.length


def axes_last(positions: Int[Tensor, "..."] | None) -> Int[Tensor, "rows tokens *axes"] | None:
    """Positions as the decoder takes them, (axes, rows, tokens), with their axes last."""
    return positions if positions is None or positions.ndim == 2 else positions.movedim(0, -1)


def rotated_axes(
    positions: Int[Tensor, "rows tokens *axes"],
) -> Int[Tensor, "rows tokens *rotated"]:
    """The axes that the rotary embedding turns by: of four the first only counts text tokens."""
    return positions[..., 1:] if positions.shape[2:] == (4,) else positions


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
    streams: Int[Tensor, " rows"] | None
    """A random key for each row; None where the attention is left alone."""
    padding: int
    """How many columns stand before the original prompts, for longer ones of other branches."""
    real: Bool[Tensor, "rows tokens"]
    levels: tuple[Float[Tensor, "rows prompt hidden"], ...] = ()
    """What deeper layers add at the prompt's tokens, 0 on text; empty where they add nothing."""
    seen: int = 0
    step: int = 0
    states: dict[str, State] = field(default_factory=dict)
    """What the combiner and each schedule carry along, by their place in the method."""
    columns: dict[tuple[int, str], ImageColumns] = field(default_factory=dict)
    """(layer, branch) -> its image columns, kept once the whole prompt is there."""

    @property
    def rows(self) -> int:
        """Rows of one branch."""
        return self.layout.rows // len(self.branches)

    def rows_of(self, branch: str) -> slice:
        index = self.branches.index(branch)
        return slice(index * self.rows, (index + 1) * self.rows)

    def image_shift(self) -> Float[Tensor, "rows image *axes"] | None:
        """Calibrated minus ordinary position of the image tokens."""
        shift = self._shift(min(self.layout.length, self.positions.shape[1]))
        if shift is None:
            return None
        # where only a part of the prompt is there yet, the columns that lack are not read
        columns = self.layout.columns.clamp(max=shift.shape[1] - 1)
        rows = torch.arange(columns.shape[0], device=columns.device)[:, None]
        return shift[rows, columns]

    def _shift(self, total: int) -> Float[Tensor, "rows tokens *axes"] | None:
        if self.calibrator is None:
            return None
        positions = rotated_axes(self.positions[:, :total])
        calibrated = self.calibrator.calibrate(positions, self._image_index(total))
        return calibrated - positions.double()

    def _image_index(self, total: int) -> Int[Tensor, "rows columns"]:
        """The images of the first `total` columns; what was generated is text."""
        index = self.layout.image_index[:, :total]
        return torch.nn.functional.pad(index, (0, total - index.shape[1]), value=-1)

    def levels_of(
        self, rows: int, chunk: Chunk
    ) -> tuple[Bool[Tensor, "rows tokens"], list[Float[Tensor, "_ hidden"]]] | None:
        """Where the chunk has image tokens, and what deeper layers add there; None for nothing."""
        stop = min(chunk.stop, self.layout.length)
        if not self.levels or chunk.start >= stop:
            return None
        on_image = self.layout.image_index[:rows, chunk.start : stop] >= 0
        added = [level[:rows, chunk.start : stop][on_image] for level in self.levels]
        return torch.nn.functional.pad(on_image, (0, chunk.stop - stop)), added

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
            positions = torch.arange(new, device=device)[None] + self.seen - self.padding
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

    def chunk(self, stop: int) -> Chunk:
        """The columns from `seen` to `stop`."""
        start, prompt = self.seen, self.layout.length
        has_image = self.layout.valid.any(dim=1, keepdim=True)
        generated = has_image & self.real[:, max(start, prompt) : stop]
        first_text = self.layout.first_text - start
        if not self.layout.valid.shape[1]:
            first_text = stop - start
        shift = self._shift(stop)
        token_index = (self.real[:, :stop].long().cumsum(dim=-1) - 1).clamp(min=0)
        columns = torch.arange(stop, device=self.real.device)
        is_image = self._image_index(stop) >= 0
        before_image = ~is_image.cummax(dim=-1).values & self.real[:, :stop]
        return Chunk(
            start=start,
            length=stop - start,
            first_text=max(0, min(stop - start, first_text)),
            is_text=torch.cat((self.layout.is_text[:, start:stop], generated), dim=1),
            token_index=token_index[:, start:],
            is_image=is_image,
            before_image=before_image & (columns < prompt),
            predicts=(columns >= self.layout.last[:, None])[:, start:],
            query_shift=None if shift is None else shift[:, start:],
        )

    def mask(self, rows: int, stop: int) -> Bool[Tensor, "rows tokens"] | None:
        """The decoder's mask up to `stop`; None without padding, which keeps the fast kernels."""
        return self.real[:rows, :stop] if self.layout.padded else None

    def reorder(self, indices: Int[Tensor, " rows"]) -> None:
        """Follow the beams. A beam never leaves its sample, so what the prompt decided stays."""
        self.positions, self.real = self.positions[indices], self.real[indices]
        own = indices[: self.rows]
        self.states = {
            place: {name: value[own] for name, value in state.items()}
            for place, state in self.states.items()
        }

    def in_every_branch(self, rows: Int[Tensor, " chosen"]) -> Int[Tensor, " all_rows"]:
        """Rows of the original branch, then the same rows of each distorted branch."""
        return torch.cat([rows + k * self.rows for k in range(len(self.branches))])

    def select(self, rows: Int[Tensor, " chosen"]) -> "BranchedBatch":
        """A batch of its own that goes on with copies of these rows."""
        every = self.in_every_branch(rows)
        return replace(
            self,
            layout=self.layout.select(every),
            positions=self.positions[every],
            streams=None if self.streams is None else self.streams[every.to(self.streams.device)],
            real=self.real[every],
            levels=tuple(level[every] for level in self.levels),
            states={
                place: {name: value[rows] for name, value in state.items()}
                for place, state in self.states.items()
            },
            columns={place: image.select(rows) for place, image in self.columns.items()},
        )
