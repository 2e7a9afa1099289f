"""All branches of a sample in one row: the columns that they share, then the rest of each.

A prompt's first call is packed, so that all weights are read once. In the steps after it the new
tokens of the branches stand beside each other, in the same row. So a step has one product with all
keys, nothing of the prefix or of a suffix is copied, and a mask alone says which columns a branch
has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer

from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.execution.static_cache import FixedLayer

ROOM = 64
"""How many columns are made in advance: empty ones cost products, few ones cost copies."""


@dataclass(frozen=True)
class Packing:
    """Columns of one row of a packed batch: the shared ones, then the suffix of each branch.

    So all weights are read once, and only columns that differ go in more than once. A sample has
    one row: beams do not fit in.
    """

    shared: int
    suffix: int
    branches: int

    @property
    def length(self) -> int:
        """Columns of a packed prompt."""
        return self.shared + self.branches * self.suffix

    def columns_of(self, branch: int, columns: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Where a branch's columns are in a packed row; generated ones alternate with those of the
        other branches."""
        late = columns - self.shared - self.suffix
        of_prompt = torch.where(columns < self.shared, columns, columns + branch * self.suffix)
        return torch.where(late < 0, of_prompt, self.length + late * self.branches + branch)

    def empty_prefix(self, layers: int) -> SharedPrefix:
        """The shared columns, which each layer fills in as it runs."""
        nothing = [torch.empty(0, 0, 0, 0)] * layers
        return SharedPrefix(list(nothing), list(nothing), self.shared, rows_per_sample=1)

    def pack(
        self, x: Shaped[Tensor, "rows tokens *rest"]
    ) -> Shaped[Tensor, "samples packed *rest"]:
        """Rows of all branches, below each other, as one row a sample."""
        first = x[: x.shape[0] // self.branches, : self.shared]
        return torch.cat((first, *x[:, self.shared :].chunk(self.branches)), dim=1)

    def split(
        self, *packed: Float[Tensor, "samples _ packed head_dim"]
    ) -> list[
        tuple[
            Float[Tensor, "samples _ prefix head_dim"],
            Float[Tensor, "rows _ suffix head_dim"],
        ]
    ]:
        """For each tensor the shared columns, and the rows of all branches below each other."""
        return [
            (
                x[:, :, : self.shared],
                torch.cat(x[:, :, self.shared :].chunk(self.branches, dim=2)),
            )
            for x in packed
        ]

    def join(
        self,
        first: Float[Tensor, "samples prefix *rest"],
        suffix: Float[Tensor, "rows suffix *rest"],
    ) -> Float[Tensor, "samples packed *rest"]:
        """The inverse of `split`, tokens before heads."""
        return torch.cat((first, *suffix.chunk(self.branches)), dim=1)

    def pack_keys(
        self,
        first: Float[Tensor, "samples kv_heads prefix head_dim"],
        suffix: Float[Tensor, "rows kv_heads suffix head_dim"],
    ) -> Float[Tensor, "samples kv_heads packed head_dim"]:
        """The inverse of `split`."""
        return torch.cat((first, *suffix.chunk(self.branches)), dim=2)

    def unpack(
        self, x: Float[Tensor, "samples packed hidden"]
    ) -> Float[Tensor, "rows suffix hidden"]:
        """The suffixes of the branches, as rows below each other."""
        return torch.cat(x[:, self.shared :].chunk(self.branches, dim=1))


def takes_packed(cache: Any, layers: int) -> bool:
    """Whether each layer of a cache keeps all keys and values that it is given, and no others.

    `layers` is the number of those that have some.
    """
    if type(cache) is not DynamicCache:
        return False
    kept = [layer for layer in cache.layers if type(layer) is not DummyLayer]
    return len(kept) in (0, layers) and all(type(x) in (DynamicLayer, FixedLayer) for x in kept)


class PackedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer's packed rows, in buffers that new columns are written into."""

    keys: Any
    values: Any
    flat_keys: Float[Tensor, "heads_of_rows head_dim columns"]
    """All keys, as one product of each head of each row reads them."""
    flat_values: Float[Tensor, "heads_of_rows columns value_dim"]

    def __init__(self, columns: "PackedSteps") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kw: Any) -> Any:
        """Write the prompt, or one column of each branch. A step gets the whole buffers back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._allocate(key_states, value_states)
            return key_states, value_states
        at = self.columns.written
        self.keys.index_copy_(2, at, key_states)
        self.values.index_copy_(2, at, value_states)
        return self.keys, self.values

    def grow(self) -> None:
        """Make room in a copy of the buffers."""
        self._allocate(self.keys, self.values)

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = (_with_room(x, self.columns.total) for x in (keys, values))
        self.flat_keys = self.keys.flatten(0, 1).mT
        self.flat_values = self.values.flatten(0, 1)


def _with_room(written: Tensor, columns: int) -> Tensor:
    buffer = torch.nn.functional.pad(written, (0, 0, 0, columns - written.shape[2]))
    return buffer if buffer.is_contiguous() else buffer.contiguous()


@dataclass(eq=False)
class PackedSteps:
    """The columns of packed rows, step by step: the same in every layer."""

    packing: Packing
    token_mask: Bool[Tensor, "#samples branches prompt"]
    """Which columns of the packed prompt a branch has; one row where no sample has padding."""
    layers: list[PackedLayer] = field(default_factory=list)
    done: int = 0
    """Steps so far, the one under way included."""
    total: int = 0
    """Columns of the buffers."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What layers keep from step to step, until their buffers grow."""
    images: dict[Any, Any] = field(default_factory=dict)
    """What they keep of image columns, from the prompt on."""
    text_is_still: bool = False
    """Whether no text after the images moves, neither of the prompt nor generated."""
    segments: dict[str, Any] = field(default_factory=dict)
    """Branch -> what its cross-modal segment has in every step."""
    no_mask: Tensor = field(init=False)
    """What the decoder is given as its mask, so that it makes none: the layers have their own."""
    written: Int[Tensor, " branches"] = field(init=False)
    """The columns of the step under way, branch by branch."""
    _places: Sequence[Int[Tensor, " branches"]] = ()
    """Those of every step for which there is room."""
    masks: dict[tuple[int, int, torch.dtype], "StepMask"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.token_mask.device)
        self._make_room()

    def cache(self, layers: int) -> list[PackedLayer]:
        """The layers of an empty cache."""
        self.layers = [PackedLayer(self) for _ in range(layers)]
        return self.layers

    def advance(self) -> None:
        """One more token of each branch: its columns, and what may be seen."""
        is_full = self.done == len(self._places)
        if is_full:
            self._make_room()
            for layer in self.layers:
                layer.grow()
        self.written = self._places[self.done]
        self.done += 1
        if is_full or self.done == 1:
            if is_full:
                self.images.clear()
            self.kept.clear()
            self.masks = {key: self._made_mask(*key) for key in self.masks}
        else:
            for mask in self.masks.values():
                mask.show(self.done - 1)

    def mask(self, groups: int, rows: int, dtype: torch.dtype) -> "StepMask":
        """0 where a branch's new token may attend, -inf elsewhere; made once, extended by steps.

        Args:
            groups: How many heads share a key: the tokens of all of them are rows of one product.
            rows: How many heads of keys a sample has, where each has a mask of its own; else 1.
            dtype: Of the mask.
        """
        found = self.masks.get((groups, rows, dtype))
        if found is None:
            found = self.masks[groups, rows, dtype] = self._made_mask(groups, rows, dtype)
        return found

    def _made_mask(self, groups: int, rows: int, dtype: torch.dtype) -> "StepMask":
        seen, places = self._seen(), self._places
        if self.done == 0:
            seen, places = self._seen_by_prompt(), ()
        return StepMask.of(seen, groups, rows, dtype, places)

    @property
    def each(self) -> int:
        """How many tokens a branch has in the call under way, behind the shared columns."""
        return self.packing.suffix if self.done == 0 else 1

    def branch_columns(self, branch: int, count: int) -> Int[Tensor, " columns"]:
        """Where a branch's first `count` columns are, in their order."""
        return self.packing.columns_of(branch, torch.arange(count, device=self.token_mask.device))

    def prefix(self) -> SharedPrefix:
        """Copies of what all branches share."""
        keys, values = list[Tensor](), list[Tensor]()
        shared = self.packing.shared
        for layer in self.layers:
            keys.append(layer.keys[:, :, :shared].clone())
            values.append(layer.values[:, :, :shared].clone())
        return SharedPrefix(keys, values, shared, rows_per_sample=1)

    def row_layers(self) -> list[DynamicLayer]:
        """Plain layers of what each branch's rows have behind the shared columns."""
        made = []
        for layer in self.layers:
            plain = DynamicLayer()  # type: ignore[no-untyped-call]
            plain.lazy_initialization(layer.keys, layer.values)
            plain.keys, plain.values = self._suffixes(layer.keys), self._suffixes(layer.values)
            made.append(plain)
        return made

    def _suffixes(self, x: Float[Tensor, "samples heads total dim"]) -> Tensor:
        packing, each = self.packing, []
        stop = packing.length + self.done * packing.branches
        for branch in range(packing.branches):
            first = packing.shared + branch * packing.suffix
            of_prompt = x[:, :, first : first + packing.suffix]
            late = x[:, :, packing.length + branch : stop : packing.branches]
            each.append(torch.cat((of_prompt, late), dim=2))
        return torch.cat(each)

    def _make_room(self) -> None:
        device, branches = self.token_mask.device, self.packing.branches
        steps = self.done + max(1, ROOM // branches)
        self.total = self.packing.length + steps * branches
        places = torch.arange(self.packing.length, self.total, device=device).view(steps, branches)
        self._places = places.unbind(0)

    def _seen_by_prompt(self) -> Bool[Tensor, "#samples text total"]:
        """What the prompt's text behind the shared columns sees: its branch, up to itself."""
        packing, suffix = self.packing, self.packing.suffix
        seen = self.token_mask.repeat_interleave(suffix, dim=1)
        causal = torch.ones(suffix, suffix, dtype=torch.bool, device=seen.device).tril()
        seen[..., packing.shared :] &= torch.block_diag(*[causal] * packing.branches)  # type: ignore[no-untyped-call]
        return torch.nn.functional.pad(seen, (0, self.total - packing.length))

    def _seen(self) -> Bool[Tensor, "#samples branches total"]:
        samples, branches, prompt = self.token_mask.shape
        late = torch.eye(branches, dtype=torch.bool, device=self.token_mask.device)
        late = late.repeat(1, self.done)[None].expand(samples, -1, -1)
        seen = torch.cat((self.token_mask, late), dim=-1)
        return torch.nn.functional.pad(seen, (0, self.total - prompt - late.shape[-1]))


@dataclass(frozen=True, eq=False)
class StepMask:
    """What is added to the scores of a step."""

    added: Float[Tensor, "rows tokens total"]
    for_sdpa: Float[Tensor, "rows 1 tokens total"]
    cells: Float[Tensor, "rows tokens_total"]
    """The same numbers, in one axis."""
    places: Sequence[Int[Tensor, " tokens"]]
    """For each step which of them become visible."""

    @classmethod
    def of(
        cls,
        seen: Bool[Tensor, "#samples branches total"],
        groups: int,
        rows: int,
        dtype: torch.dtype,
        columns: Sequence[Int[Tensor, " branches"]],
    ) -> "StepMask":
        """From what is seen so far; `columns` are those of every step."""
        total = seen.shape[-1]
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        added = added.masked_fill(~seen, -torch.inf).repeat(1, groups, 1)
        if rows > 1 and seen.shape[0] > 1:
            added = added.repeat_interleave(rows, dim=0)
        places: Sequence[Tensor] = ()
        if columns:
            tokens = torch.arange(added.shape[1], device=seen.device)
            at = torch.stack(tuple(columns)).repeat(1, groups) + tokens * total
            places = at.unbind(0)
        return cls(added, added[:, None], added.flatten(1), places)

    def show(self, step: int) -> None:
        """Let the tokens of a step see themselves, in this step and in all that follow."""
        self.cells.index_fill_(1, self.places[step], 0.0)


def packed_steps(
    packing: Packing,
    token_mask: Bool[Tensor, "rows prompt"],
    *,
    padded: bool,
    cache: DynamicCache,
    layers: int,
) -> PackedSteps:
    """The steps behind a packed prompt, whose cache is empty; its layers are replaced.

    Args:
        packing: How the prompt is packed.
        token_mask: False on padding, for the rows of all branches below each other.
        padded: Whether any row has padding.
        cache: Of the decoder.
        layers: How many layers it has.
    """
    shared, suffix = packing.shared, packing.suffix
    by_sample = token_mask.view(packing.branches, -1, shared + suffix).transpose(0, 1)
    if not padded:
        by_sample = by_sample[:1]
    own = by_sample.new_zeros(*by_sample.shape[:2], packing.length)
    own[..., :shared] = by_sample[..., :shared]
    for branch in range(packing.branches):
        first = shared + branch * suffix
        own[:, branch, first : first + suffix] = by_sample[:, branch, shared:]
    steps = PackedSteps(packing, own)
    cache.layers[:] = steps.cache(layers)
    return steps
