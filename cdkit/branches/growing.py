"""Columns of a batch that get longer step by step, and are joined when someone reads them all."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


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

    def last(self) -> Int[Tensor, "rows 1 *axes"]:
        """The last column of the original branch, where single columns are added."""
        rows = self.known.shape[0] // self.branches
        return self.late[-1] if self.late else self.known[:rows, -1:]

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
