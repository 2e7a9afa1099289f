"""The state of the plain algorithm: each branch has a separate cache, positions and padding."""

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import Cache

from cdkit.branches.layout import Layout
from cdkit.branches.method_cache import MethodCache
from cdkit.branches.positions import Calibration
from cdkit.branches.recurrent_states import copied_layer
from cdkit.generation.combine import States
from cdkit.methods.branch import ORIGINAL
from cdkit.states.answer_states import AnswerStates


@dataclass(frozen=True, eq=False)
class BranchRows:
    """One branch of a batch: its prompts, and all columns that follow them."""

    layout: Layout
    """The layout of the whole prompts."""
    positions: Int[Tensor, "rows columns *axes"]
    """Positions of all tokens so far, before calibration."""
    token_mask: Bool[Tensor, "rows columns"]
    """The mask of all columns so far: False on padding."""
    deepstack: tuple[Float[Tensor, "rows prompt hidden"], ...]
    """What deeper layers add at the prompts' image tokens, 0 on text."""
    ids: Int[Tensor, "rows columns"]
    """Token ids of all tokens so far."""
    token_values: Mapping[str, Shaped[Tensor, "rows prompt"]]
    """Arguments of the decoder with a value for each token of the prompts."""
    cache: Cache | None
    answer_cache: Mapping[int, dict[Hashable, Tensor]]
    """Layer -> what strategies keep of the image columns for the whole answer."""
    answer_states: AnswerStates | None
    """What state interventions keep of the prompts; None where there is none."""
    memory: Mapping[int, dict[Hashable, Tensor]]
    """Layer -> what strategies remember of the answer so far."""

    @property
    def columns(self) -> int:
        return self.positions.shape[1]

    def chosen(self, rows: Int[Tensor, " chosen"]) -> "BranchRows":
        """Copies of these rows, with a separate cache."""

        def own(x: Tensor) -> Tensor:
            return x[rows.to(x.device)] if x.numel() else x

        return BranchRows(
            layout=self.layout.select(rows),
            positions=own(self.positions),
            token_mask=own(self.token_mask),
            deepstack=tuple(map(own, self.deepstack)),
            ids=own(self.ids),
            token_values={name: own(values) for name, values in self.token_values.items()},
            cache=None if self.cache is None else _copied(self.cache, own),
            answer_states=None
            if self.answer_states is None
            else self.answer_states.select(rows, rows),
            answer_cache=_each(self.answer_cache, own),
            memory=_each(self.memory, own),
        )


@dataclass(eq=False)
class Batch:
    """The branches of one batch of prompts, and what is carried from step to step."""

    branches: dict[str, BranchRows]
    """"original" first, then the distorted branches in their order."""
    rng_keys: Int[Tensor, " rows"]
    """A random key for each row."""
    step: int = 0
    states: States = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def original(self) -> BranchRows:
        return self.branches[ORIGINAL]

    def chosen(self, rows: Int[Tensor, " chosen"]) -> "Batch":
        return Batch(
            {name: branch.chosen(rows) for name, branch in self.branches.items()},
            self.rng_keys[rows.to(self.rng_keys.device)],
            self.step,
            _chosen_states(self.states, rows),
            None if self.calibration is None else self.calibration.select(rows.tolist()),
        )


class ReferenceCache(MethodCache):
    """What `generate` holds: a cache for each branch, of which it sees the original one's."""

    def __init__(self, batch: Batch, *, owner: object) -> None:
        assert batch.original.cache is not None
        super().__init__(layers=batch.original.cache.layers)
        self.batch, self.owner = batch, owner

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.batch.original.columns

    def reorder_cache(self, beam_idx: Any) -> None:
        """Every branch follows the beams. A beam never leaves its prompt: what is of that stays."""
        batch = self.batch
        for name, branch in batch.branches.items():
            assert branch.cache is not None
            branch.cache.reorder_cache(beam_idx)
            own = beam_idx.to(branch.token_mask.device)

            def of_beams(x: Tensor) -> Tensor:
                return x[beam_idx.to(x.device)]

            batch.branches[name] = replace(
                branch,
                positions=branch.positions[own],
                token_mask=branch.token_mask[own],
                ids=branch.ids[own],
                memory=_each(branch.memory, of_beams),
            )
        batch.states = _chosen_states(batch.states, beam_idx)

    def original(self) -> Cache:
        assert self.batch.original.cache is not None
        return self.batch.original.cache

    def select(self, rows: Int[Tensor, " chosen"]) -> "ReferenceCache":
        return ReferenceCache(self.batch.chosen(rows), owner=self.owner)

    def fork(self) -> "ReferenceCache":
        rows = torch.arange(self.batch.original.token_mask.shape[0])
        return self.select(rows)

    def positions_ahead(self, new: int) -> Int[Tensor, "*axes rows new"]:
        positions = self.batch.original.positions
        ahead = torch.arange(1, new + 1, device=positions.device)
        last = positions[:, -1:]
        return last + ahead if last.ndim == 2 else (last + ahead[:, None]).movedim(-1, 0)

    @property
    def image_columns(self) -> Bool[Tensor, "rows columns"]:
        return self.batch.original.layout.image_index >= 0

    def original_columns(
        self, x: Float[Tensor, "rows heads new columns"]
    ) -> Float[Tensor, "rows heads new columns"]:
        return x


def append(
    batch: Batch,
    positions: Shaped[Tensor, "_ new *axes"] | None,
    token_mask: Bool[Tensor, "rows new"] | None,
    ids: Int[Tensor, "rows all_new"] | None,
    new: int,
) -> None:
    """Note `new` more columns; what is given of them is the original branch's.

    `ids` end with those of the new columns; None where the model was given embeddings.
    """
    original = batch.original
    rows, axes = original.positions.shape[0], original.positions.shape[2:]
    if positions is None:
        # Hugging Face's default: the number of columns before it
        stop = original.columns + new
        positions = torch.arange(original.columns, stop, device=original.positions.device)[None]
    if positions.ndim < original.positions.ndim:
        positions = positions[..., None]
    if token_mask is None:
        token_mask = original.token_mask.new_ones(rows, new)
    positions = positions.expand(rows, new, *axes).to(original.positions.dtype)
    late = original.ids.new_zeros(rows, new) if ids is None else ids[:, -new:]
    for name, branch in batch.branches.items():
        # prompts that are longer or shorter keep their distance to the original ones
        ahead = branch.positions[:, -1:] - original.positions[:, -1:]
        batch.branches[name] = replace(
            branch,
            positions=torch.cat((branch.positions, positions + ahead), dim=1),
            token_mask=torch.cat((branch.token_mask, token_mask), dim=1),
            ids=torch.cat((branch.ids, late), dim=1),
        )


def _each(
    kept: Mapping[int, dict[Hashable, Tensor]], change: Callable[[Tensor], Tensor]
) -> dict[int, dict[Hashable, Tensor]]:
    return {layer: {k: change(x) for k, x in own.items()} for layer, own in kept.items()}


def _chosen_states(states: States, rows: Int[Tensor, " chosen"]) -> States:
    return {
        place: {name: value[rows.to(value.device)] for name, value in state.items()}
        for place, state in states.items()
    }


def _copied(cache: Cache, change: Callable[[Tensor], Tensor]) -> Cache:
    """A cache whose layers hold what `change` makes of this one's keys, values and states."""
    own: Any = copy.copy(cache)
    own.layers = [copied_layer(layer, change) for layer in cache.layers]
    made: Cache = own
    return made
