"""What runs, decided once: for a layer when a method is attached, for a prompt at its start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from cdkit.attention.context import LayerWork
from cdkit.attention.fused_rows import FusedRows, RowChanges
from cdkit.attention.image_columns import ImageColumnIndex
from cdkit.branches.layout import Layout
from cdkit.branches.positions import Calibration
from cdkit.execution.optimizations import Optimization
from cdkit.execution.packing import Packing, takes_packed
from cdkit.functional.rope import Rotary
from cdkit.interfaces.cell_change import CellChange
from cdkit.interfaces.depth import layers_within
from cdkit.interfaces.distortion import AttentionDistortion
from cdkit.interfaces.intervention import Intervention
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.part_results import CheckedChange

MIN_SHARED_FRACTION = 0.1
"""The share of all prompts' tokens that sharing must save: another call reads all weights again.

At a tenth of a prompt of some 600 tokens the saved columns cost about as much as that."""


@dataclass(frozen=True, eq=False)
class GroupPlan:
    """Branches whose rows go through the decoder together, with one cache."""

    branches: tuple[str, ...]
    rows: slice
    """The group's rows among all rows of the batch."""
    layout: Layout
    layers: tuple[LayerWork, ...]
    """What each layer does; empty where the attention stays the stock one."""
    images: Mapping[str, tuple[slice, ImageColumnIndex]]
    """Rows (of the group's) and image columns of each branch whose segment some layer builds."""
    layouts: Mapping[str, Layout]
    """The layouts of those branches."""
    fused: FusedRows | None
    """How a kernel computes generated rows; None where operators do."""


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """What runs for a batch of prompts and the answers to them."""

    branches: tuple[str, ...]
    """"original", then the distorted branches that run."""
    layout: Layout
    """The layout of the prompts of all rows."""
    padding: slice
    """Columns of padding in the original prompts, where prompts of other branches are longer."""
    groups: tuple[GroupPlan, ...]
    shared: int
    """How many first columns are the same in all branches, and run once."""
    keeps_prefix_once: bool
    """Whether their keys and values then stand once for all branches and beams."""
    packing: Packing | None
    """How the first call goes in as one row a sample; None where it does not."""
    packs_steps: bool
    """Whether steps after it do so, too."""
    packs_text: bool
    """Whether text of the first call is attended in packed rows, as every step is, as long as its
    queries do not move."""
    materialize_all: bool
    """Whether all attention weights are made, not only those that the method changes or reads."""
    calibration: Calibration | None
    caches_keys: bool
    """As `AttachedMethod.caches_keys`: whether rotated keys replace those of a cache."""
    rotary: Sequence[Rotary | None] | None
    """That of each layer with keys of its own, where the method has a calibrator."""
    rng_keys: Int[Tensor, " rows"] | None
    """A random key for each row; None where the attention stays the stock one."""
    deepstack: tuple[Float[Tensor, "rows prompt hidden"], ...]
    """What deeper layers add at the prompt's tokens, 0 on text; empty where they add nothing."""
    token_values: Mapping[str, Shaped[Tensor, "rows prompt"]]
    """Arguments of the decoder with a value for each token, in the prompts of all rows."""

    @property
    def rows(self) -> int:
        """Rows of one branch."""
        return self.layout.rows // len(self.branches)

    def in_every_branch(
        self, rows: Int[Tensor, " chosen"], branches: int | None = None
    ) -> Int[Tensor, " all_rows"]:
        """Rows of the original branch, then the same rows of each distorted branch."""
        count = len(self.branches) if branches is None else branches
        return torch.cat([rows + k * self.rows for k in range(count)])

    def without_padding(self, x: Tensor, dim: int = -1) -> Tensor:
        """The columns that the caller of the model gave to the original branch."""
        return without_columns(x, self.padding, dim=dim)

    def deepstack_of(
        self, rows: slice, start: int, stop: int
    ) -> tuple[Bool[Tensor, "rows tokens"], list[Float[Tensor, "_ hidden"]]] | None:
        """Where these columns have image tokens, and what deeper layers add there; None for
        nothing."""
        end = min(stop, self.layout.length)
        if not self.deepstack or start >= end:
            return None
        on_image = self.layout.image_index[rows, start:end] >= 0
        added = [features[rows, start:end][on_image] for features in self.deepstack]
        return torch.nn.functional.pad(on_image, (0, stop - end)), added

    def select(self, rows: Int[Tensor, " chosen"]) -> "PromptPlan":
        """For a batch of copies of these rows, in every branch."""
        every = self.in_every_branch(rows)
        layout = self.layout.select(every)
        rng_keys = None if self.rng_keys is None else self.rng_keys[every.to(self.rng_keys.device)]
        each, groups = len(rows), []
        for group in self.groups:
            first = self.branches.index(group.branches[0]) * each if group.branches else 0
            own = slice(first, first + each * len(group.branches))
            kernels = None if group.fused is None else group.fused.kernels
            made = make_group(group.branches, own, layout, rng_keys, group.layers, kernels)
            groups.append(made)
        return replace(
            self,
            layout=layout,
            groups=tuple(groups),
            calibration=None
            if self.calibration is None
            else self.calibration.select(rows.tolist()),
            rng_keys=rng_keys,
            deepstack=tuple(features[every] for features in self.deepstack),
            token_values={name: values[every] for name, values in self.token_values.items()},
        )


def without_columns(x: Tensor, gap: slice, *, dim: int) -> Tensor:
    """All columns but those of `gap`, which may begin before the first one."""
    start, stop = max(0, gap.start), max(0, gap.stop)
    if stop == start:
        return x
    return torch.cat((x.narrow(dim, 0, start), x.narrow(dim, stop, x.shape[dim] - stop)), dim=dim)


def layer_works(
    attached: AttachedMethod, branches: Sequence[str], *, records_image: bool, traces: bool
) -> tuple[LayerWork, ...]:
    """What each layer does for a group of branches: distortions, then interventions.

    `records_image` says that the original branch's attention to the image is recorded; `traces`
    that a trace records that of every branch.
    """
    method, depth = attached.method, attached.depth
    if not attached.hooked:
        return ()
    acting: dict[str, list[tuple[AttentionDistortion | Intervention, CheckedChange]]] = {}
    for name in branches:
        distortions = [d for b in attached.every_branch if b.name == name for d in b.attention]
        interventions = [i for i in method.interventions if name in i.branches]
        acting[name] = [
            *((d, CheckedChange(d, d.distort)) for d in distortions),
            *((i, CheckedChange(i, i.intervene)) for i in interventions),
        ]
    works = []
    for layer in range(depth):
        inside = {
            name: [one for one in parts if layer in layers_within(one[0].layers, depth)]
            for name, parts in acting.items()
        }
        changes = {name: tuple(change for _, change in parts) for name, parts in inside.items()}
        last = attached.records_weights and layer == depth - 1
        stream = attached.stream
        reweigh = stream.part.reweigh if stream is not None and stream.layer == layer else None
        reads_row = records_image or last or reweigh is not None
        recorded = {ORIGINAL} & set(branches) if reads_row else set()
        number, readers = attached.attention_layers[layer], frozenset[str]()
        if attached.states is not None:
            readers = attached.states.attention_readers(number) & frozenset(branches)
        segments = {name for name, own in changes.items() if own or traces} | recorded | readers
        works.append(
            LayerWork(
                index=layer,
                depth=depth,
                rotary=None if attached.rotary is None else attached.rotary[layer],
                changes={name: own for name, own in changes.items() if own},
                unchecked_changes={
                    name: tuple(one.change for one in own) for name, own in changes.items() if own
                },
                segments=frozenset(segments),
                records_image=records_image,
                records_weights=last,
                head_readers=readers,
                reweigh=reweigh,
                row_changes=None
                if traces or recorded or readers
                else _row_changes(branches, inside),
            )
        )
    return tuple(works)


def _row_changes(
    branches: Sequence[str],
    acting: Mapping[str, Sequence[tuple[AttentionDistortion | Intervention, CheckedChange]]],
) -> RowChanges | None:
    """What a layer changes in generated rows, where each branch has one change of cells above a
    mean, or none; None for all else."""
    found: list[CellChange | None] = []
    for name in branches:
        parts = [
            part
            for part, _ in acting[name]
            if not isinstance(part, AttentionDistortion) or part.modifies
        ]
        if not parts:
            found.append(None)
            continue
        part = parts[0]
        change = part.cell_change() if isinstance(part, AttentionDistortion) else None
        if len(parts) > 1 or change is None or change.selector.mean_scope is None:
            return None
        found.append(change)
    return tuple(found)


def make_group(
    branches: Sequence[str],
    rows: slice,
    layout: Layout,
    rng_keys: Int[Tensor, " rows"] | None,
    layers: tuple[LayerWork, ...],
    kernels: Any = None,
) -> GroupPlan:
    """A group of neighbouring branches, whose rows are `rows` of those of `layout`.

    `kernels` are those that compute generated rows, where they know what all layers do.
    """
    own = layout.select(rows)
    images, layouts = dict[str, tuple[slice, ImageColumnIndex]](), dict[str, Layout]()
    if layers and branches:
        assert rng_keys is not None
        each = own.rows // len(branches)
        wanted = frozenset[str]().union(*(layer.segments for layer in layers))
        for k, name in enumerate(branches):
            if name in wanted:
                part = slice(k * each, (k + 1) * each)
                keys = rng_keys[rows][part]
                device = own.token_mask.device
                layouts[name] = own.select(part)
                images[name] = part, ImageColumnIndex.of(layouts[name], keys, device)
    fused = None
    if (
        branches
        and layers
        and kernels is not None
        and all(x.row_changes is not None for x in layers)
    ):
        fused = FusedRows.of(kernels, tuple(branches), own, images)
    return GroupPlan(tuple(branches), rows, own, layers, images, layouts, fused)


def shared_columns(
    attached: AttachedMethod,
    length: int,
    image_index: Int[Tensor, "rows tokens"],
    common: int,
    *,
    first_text: int,
    optimizations: frozenset[Optimization],
    compiled: bool,
    columns_are_given: bool,
) -> int:
    """How many first columns of the original prompts run once for all branches; 0 for none.

    Args:
        attached: The method on its model.
        length: How many columns of the prompts there are.
        image_index: Their images.
        common: How many first columns are the same in every branch.
        first_text: The first column that is text after an image: from there on attention differs.
        optimizations: What may be skipped.
        compiled: Whether steps are compiled.
        columns_are_given: Whether the caller counts columns: those of a plain call, or of a prompt
            that comes in chunks.
    """
    branches = attached.branches
    if (
        "shared_prefix" not in optimizations
        or not attached.has_plain_cache
        or not attached.adapter.causal_prefix
        or not all(d.keeps_prefix for branch in branches for d in branch.attention)
        or not (attached.states is None or attached.states.keeps_prefix)
        or (attached.method.calibrator is not None and attached.method.calibrator.image_rows)
    ):
        return 0
    if compiled and any(b.pixel or b.feature or b.prompt for b in branches):
        return 0  # worth it for some prompts and not for others: each would be a graph
    if columns_are_given and any(branch.prompt for branch in branches):
        return 0
    cut = min(common, length - 1)
    if attached.hooked:
        cut = min(cut, first_text)
    if attached.sees_ahead != "nowhere":
        cut = _whole_images(image_index, cut)
    if not branches:
        return cut  # saves no column, but packed text takes fewer operators
    saved, tokens = cut * len(branches), length * (1 + len(branches))
    return cut if saved >= MIN_SHARED_FRACTION * tokens else 0


def sees_chunks(decoder: Any) -> bool:
    """Whether some layers see only a chunk of the text, as in Llama 4, which no window says."""
    return "chunked_attention" in (getattr(decoder.config, "layer_types", None) or ())


def _keeps_prefix_once(attached: AttachedMethod, optimizations: frozenset[Optimization]) -> bool:
    """Whether cdkit computes every layer's attention, over the columns of the whole prompt."""
    return (
        attached.hooked
        and attached.caches_keys
        and "shared_cache" in optimizations
        and attached.sees_ahead == "nowhere"
        and attached.counts_padding_from is None
        and not sees_chunks(attached.decoder)
    )


def plan_prompt(
    attached: AttachedMethod,
    layout: Layout,
    works: Mapping[tuple[str, ...], tuple[LayerWork, ...]],
    cache: Any,
    *,
    optimizations: frozenset[Optimization],
    shared: int,
    padding: slice,
    rng_keys: Int[Tensor, " rows"] | None,
    deepstack: tuple[Float[Tensor, "rows prompt hidden"], ...],
    token_values: Mapping[str, Shaped[Tensor, "rows prompt"]],
    may_pack: bool,
    kernels: Any,
    calibration: Calibration | None,
) -> PromptPlan:
    """What runs for these prompts.

    Args:
        attached: The method on its model.
        layout: The layout of the prompts of all rows.
        works: Each group of branches, in the order of their rows, and what the layers do for it.
        cache: The cache of the first group; None where nothing is cached.
        optimizations: What may be skipped.
        shared: How many first columns run once for all branches.
        padding: As `PromptPlan.padding`.
        rng_keys: As `PromptPlan.rng_keys`.
        deepstack: As `PromptPlan.deepstack`.
        token_values: As `PromptPlan.token_values`.
        may_pack: Whether the prompts come whole, one row a sample, and no caller counts columns.
        kernels: The module of kernels for generated rows, where this device runs them.
        calibration: The method's calibrator, and what it is told of these prompts.
    """
    names = tuple(name for group in works for name in group)
    constant = calibration is None or calibration.calibrator.constant_after_prompt
    each, groups = layout.rows // len(names), list[GroupPlan]()
    for branches, layers in works.items():
        first = names.index(branches[0]) * each
        rows = slice(first, first + each * len(branches))
        groups.append(make_group(branches, rows, layout, rng_keys, layers, kernels))
    once = bool(shared) and _keeps_prefix_once(attached, optimizations)
    packing = None
    if (
        once
        and may_pack
        and len(groups) == 1
        and "fast_kernels" in optimizations
        # deeper features and readouts are found by columns, which packed rows do not have
        and not deepstack
        and not token_values
        and attached.method.readout is None
        # in packed rows the tokens of several branches stand beside each other
        and attached.states is None
        and takes_packed(cache, attached.cached_depth)
    ):
        packing = Packing(shared, layout.length - shared, len(names))
    packs_steps = (
        packing is not None
        and cache is not None
        and attached.method.loop is None
        and constant
        and not attached.traced & {"image_attention", "mask"}
        and not attached.records_image
        # what a packed row has no place for: keys that layers share, ids, lengths of a cache
        and attached.cached_depth == attached.depth
        and attached.counts_padding_from is None
        and not attached.adapter.reads_ids
        and all(group.fused is None for group in groups)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )
    text = packs_steps and _packs_text(groups[0], layout, shared)
    if len(names) == 1 and not text:
        shared, once, packing, packs_steps = 0, False, None, False
    return PromptPlan(
        branches=names,
        layout=layout,
        padding=padding,
        groups=tuple(groups),
        shared=shared if cache is not None else 0,
        keeps_prefix_once=once,
        packing=packing,
        packs_steps=packs_steps,
        packs_text=text,
        materialize_all=attached.hooked and "fast_kernels" not in optimizations,
        calibration=calibration,
        caches_keys=attached.caches_keys,
        rotary=attached.rotary_of_keys,
        rng_keys=rng_keys,
        deepstack=deepstack,
        token_values=token_values,
    )


def _packs_text(group: GroupPlan, layout: Layout, shared: int) -> bool:
    """Whether all text of packed prompts follows all images, which every branch shares, and no
    sample has padding."""
    return (
        not layout.padded
        and layout.all_rows_have_images
        and layout.first_text == shared
        and all(row.first_text <= shared > row.last_image for row in layout.row_stats)
        and all(image.span is not None for _, image in group.images.values())
    )


def _whole_images(image_index: Int[Tensor, "rows tokens"], cut: int) -> int:
    """The last column before `cut` at which no row's image is torn apart."""
    while 0 < cut < image_index.shape[1]:
        left, right = image_index[:, cut - 1], image_index[:, cut]
        if not bool(((left >= 0) & (left == right)).any()):
            break
        cut -= 1
    return cut
