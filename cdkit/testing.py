"""The contract suite: run `check_strategy` and its like on your own class, as our tests do on ours.

Each check takes an instance, raises an AssertionError that says which promise is broken, and
returns None. Nothing is loaded and no model is needed: a check takes milliseconds.

    from cdkit.testing import check_strategy
    check_strategy(MyDistortion(strength=0.5))
"""

import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from cdkit.calibrator import PositionCalibrator
from cdkit.combiner import LayerReadout, LogitCombiner, OnEmpty
from cdkit.method import ORIGINAL
from cdkit.segment import CrossModalSegment, ImageColumns
from cdkit.strategy import (
    AttentionDistortion,
    DistortionStrategy,
    Intervention,
    PixelDistortion,
    Prompt,
    PromptDistortion,
    Touch,
)

Change = Callable[[CrossModalSegment], CrossModalSegment]


def variants(cls: type) -> Iterator[Any]:
    """`cls()`, and one instance for every other value of each field that is a choice or a switch."""
    default = cls()
    yield default
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = get_args(hint) if get_origin(hint) is Literal else (False, True) * (hint is bool)
        for choice in choices:
            if choice != getattr(default, field.name):
                yield dataclasses.replace(default, **{field.name: choice})


def check_strategy(strategy: DistortionStrategy | Intervention) -> None:
    """The promises of a distortion, of any of the three kinds, or of an intervention."""
    _check_value(strategy)
    match strategy:
        case PixelDistortion():
            _check_touches(strategy, {"pixels"})
            _check_pixels(strategy)
        case PromptDistortion():
            _check_touches(strategy, {"prompt"})
            _check_prompt(strategy)
        case AttentionDistortion():
            _check_touches(strategy, {"logits", "values"})
            _check_segment(
                strategy, strategy.distort, strategy.touches, whole_prompt=strategy.whole_prompt
            )
            _check_mask_ignores_constants(strategy)
        case Intervention():
            _promise(
                isinstance(strategy.branches, tuple),
                strategy,
                "branches is a tuple of branch names",
            )
            _check_segment(
                strategy,
                strategy.intervene,
                frozenset({"logits", "values"}),
                whole_prompt=strategy.whole_prompt,
            )
        case _:
            raise AssertionError(
                f"{_name(strategy)} must subclass PixelDistortion, PromptDistortion, "
                "AttentionDistortion or Intervention"
            )


def check_calibrator(calibrator: PositionCalibrator) -> None:
    """The promises of a position calibrator."""
    _check_value(calibrator)
    _promise(
        isinstance(calibrator, PositionCalibrator), calibrator, "it subclasses PositionCalibrator"
    )
    is_image = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0, 0, 0, 0]]).bool()
    positions = torch.arange(is_image.shape[1]).expand(is_image.shape)
    new = _pure(calibrator, calibrator.calibrate, positions, is_image)
    _promise(new.shape == positions.shape, calibrator, "one position a token", new.shape)
    _promise(new.dtype == torch.float64, calibrator, "positions are float64", new.dtype)
    _promise(bool(new.isfinite().all()), calibrator, "positions are finite", new)
    _promise(bool((new.diff() >= 0).all()), calibrator, "positions never decrease", new)
    for stop in range(1, is_image.shape[1]):
        part = calibrator.calibrate(positions[:, :stop], is_image[:, :stop])
        _same(part, new[:, :stop], calibrator, "a position depends on no later token")
    for row in range(2):
        alone = calibrator.calibrate(positions[row : row + 1], is_image[row : row + 1])
        _same(alone, new[row : row + 1], calibrator, "rows of the batch are independent")
    moved = calibrator.calibrate(positions + 5, is_image)
    _same(moved.diff(), new.diff(), calibrator, "a constant added to all positions only moves them")
    padded = calibrator.calibrate(
        torch.nn.functional.pad(positions, (3, 0)), torch.nn.functional.pad(is_image, (3, 0))
    )
    _same(padded[:, 3:].diff(), new.diff(), calibrator, "padding on the left changes no distance")
    unmoved = torch.allclose(new.diff(), positions.diff().double(), rtol=0, atol=1e-12)
    _promise(unmoved == calibrator.idle, calibrator, "idle says whether every distance stays", new)


def check_combiner(combiner: LogitCombiner, names: Sequence[str] = ("distorted",)) -> None:
    """The promises of a combiner, with other logits under `names`."""
    _check_value(combiner)
    _promise(isinstance(combiner, LogitCombiner), combiner, "it subclasses LogitCombiner")
    _promise(combiner.on_empty in get_args(OnEmpty), combiner, "on_empty is 'raise' or 'original'")
    steps = [
        (_normal(step, 3, 11), {name: _normal(9 + step + i, 3, 11) for i, name in enumerate(names)})
        for step in range(4)
    ]
    whole = _decoded(combiner, steps)
    for step, combined in enumerate(whole):
        _promise(
            combined.shape == (3, 11) and combined.is_floating_point(),
            combiner,
            "the result has the shape of the logits",
            combined.shape,
        )
        bad = combined.isnan() | (combined == math.inf)
        _promise(not bad.any(), combiner, "combined logits are finite, or -inf", (step, combined))
        alive = (~combined.isneginf()).any(dim=-1)
        _promise(bool(alive.all()), combiner, "a token is left in every row", (step, combined))
    order = torch.tensor([2, 0, 1])
    turned = [(l[order], {k: v[order] for k, v in others.items()}) for l, others in steps]
    for mixed, combined in zip(_decoded(combiner, turned), whole, strict=True):
        _same(mixed, combined[order], combiner, "rows of the batch are independent")
    alone = [(l[:1], {k: v[:1] for k, v in others.items()}) for l, others in steps]
    for single, combined in zip(_decoded(combiner, alone), whole, strict=True):
        _same(single, combined[:1], combiner, "rows of the batch are independent")
    original, others = steps[0]
    for name in names:
        if not combiner.reads(name):
            without, _ = combiner.combine(
                original, others | {name: others[name] + _normal(3, 3, 11)}, step=0, state={}
            )
            _same(without, whole[0], combiner, f"logits that it does not read ({name}) are unread")
    if not combiner.by_step:
        for step, (logits, rest) in enumerate(steps):
            later, state = combiner.combine(logits, rest, step=step + 7, state={})
            _same(later, whole[step], combiner, "with by_step = False no step and no state counts")
            _promise(not state, combiner, "with by_step = False it keeps no state", state)
    if combiner.idle:
        untouched, _ = combiner.combine(original, {}, step=0, state={})
        _promise(
            torch.equal(untouched, original), combiner, "an idle combiner returns the original"
        )


def check_readout(readout: LayerReadout) -> None:
    """The promises of a layer readout."""
    _check_value(readout)
    for count in (8, 32):
        layers = readout.layers(count)
        _promise(bool(layers), readout, "it names a layer")
        _promise(ORIGINAL not in layers, readout, f"no layer is called {ORIGINAL!r}")
        inside = all(-count <= index < count for index in layers.values())
        _promise(inside, readout, f"its layers are among {count}", layers)


# ---- values --------------------------------------------------------------------------------------


def _check_value(part: Any) -> None:
    """A part is a value: frozen, hashable, equal to its like, and it can be pickled."""
    cls = type(part)
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    _promise(bool(frozen), part, "it is a frozen dataclass")
    _promise(bool((cls.__doc__ or "").strip()), part, "its class has a docstring")
    # a dataclass without a docstring of its own gets its signature as one
    _promise(not (cls.__doc__ or "").startswith(f"{cls.__name__}("), part, "it has a docstring")
    twin = dataclasses.replace(part)
    _promise(twin == part, part, "equal parameters make equal parts")
    try:
        equal_hash = hash(twin) == hash(part)
    except TypeError as error:
        raise AssertionError(f"{_name(part)}: it can be hashed. Got: {error}") from error
    _promise(equal_hash, part, "equal parts have equal hashes")
    try:
        copy = pickle.loads(pickle.dumps(part))
    except Exception as error:  # whatever pickle raises, the promise is the same
        raise AssertionError(
            f"{_name(part)}: it can be pickled (define its class at the top of a module). "
            f"Got: {error}"
        ) from error
    _promise(copy == part, part, "pickling returns an equal part")


def _check_touches(strategy: DistortionStrategy, allowed: set[Touch]) -> None:
    touches = getattr(strategy, "touches", None)
    _promise(
        isinstance(touches, frozenset) and touches <= allowed,
        strategy,
        f"touches is a frozenset out of {sorted(allowed)}",
        touches,
    )


# ---- pixels and prompts --------------------------------------------------------------------------


def _check_pixels(strategy: PixelDistortion) -> None:
    def distort(pixels: Tensor, *, seed: int = 0) -> Tensor:
        return strategy.distort(pixels, generator=torch.Generator().manual_seed(seed))

    for dtype, images in itertools.product((torch.float32, torch.float64, torch.bfloat16), (1, 2)):
        pixels = _normal(1, images, 3, 8, 8).to(dtype)
        new = _pure(strategy, distort, pixels)
        _promise(new.shape == pixels.shape, strategy, "the pixels keep their shape", new.shape)
        _promise(new.dtype == dtype, strategy, f"pixels in {dtype} stay in it", new.dtype)
        _promise(bool(new.isfinite().all()), strategy, "finite pixels stay finite")
    pixels = _normal(1, 1, 3, 8, 8)
    random = torch.Generator().manual_seed(0)
    first, second = (strategy.distort(pixels, generator=random) for _ in range(2))
    if random.get_state().equal(torch.Generator().manual_seed(0).get_state()):
        _same(first, second, strategy, "without the generator it is deterministic")
    elif not first.equal(pixels):
        _promise(
            not distort(pixels, seed=1).equal(distort(pixels, seed=2)),
            strategy,
            "another generator gives other noise",
        )


def _check_prompt(strategy: PromptDistortion) -> None:
    needs = getattr(strategy, "needs_text", None)
    _promise(isinstance(needs, bool), strategy, "needs_text is True or False", needs)

    def encode(text: str) -> tuple[int, ...]:
        _promise(bool(needs), strategy, "it calls encode only where needs_text is True")
        return tuple(100 + ord(letter) for letter in text)

    for images in (1, 2):
        ids = (1, 2, *(7, 7, 7, 3) * images, 4, 5)
        flags = tuple(i == 7 for i in ids)
        slot = len(ids) - flags[::-1].index(True)
        prompt = Prompt(ids, flags, system_slot=1, question_slot=slot, encode=encode)
        new = strategy.distort(prompt)
        _promise(isinstance(new, Prompt), strategy, "it returns a Prompt", type(new))
        _promise(strategy.distort(prompt) == new, strategy, "it is deterministic")
        _promise(bool(new.ids), strategy, "a token is left in the prompt")
        kept = tuple(i for i, image in zip(new.ids, new.is_image, strict=True) if image)
        _promise(
            kept in ((), (7,) * 3 * images) and (7 in new.ids) == bool(kept),
            strategy,
            "image tokens are taken out all together, never added",
            new.ids,
        )


# ---- the cross-modal segment ---------------------------------------------------------------------


def _check_segment(
    part: Any, change: Change, touches: frozenset[Touch], *, whole_prompt: bool
) -> None:
    _promise(isinstance(whole_prompt, bool), part, "whole_prompt is True or False", whole_prompt)
    for kinds in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16)):
        segment = example_segment(*kinds)
        new = _pure(part, change, segment)
        _promise(isinstance(new, CrossModalSegment), part, "it returns a segment", type(new))
        _check_fields(part, segment, new, touches)
    segment = example_segment()
    new = change(segment)
    _same_cells(change(segment), new, part, "a second call with the same segment gives the same")
    for row in range(segment.logits.shape[0]):
        one = slice(row, row + 1)
        alone = _cut(_fresh(segment), rows=one)
        _same_cells(change(alone), _cut(new, rows=one), part, "rows of the batch are independent")
    order = torch.tensor([2, 0, 1])
    _same_cells(
        change(_cut(_fresh(segment), rows=order)),
        _cut(new, rows=order),
        part,
        "rows of the batch are independent",
    )
    generated = int(segment.prompt.any(0).sum())  # the first text row after the prompt's
    cuts = [slice(0, generated), slice(generated, None), slice(generated + 1, None)]
    if not whole_prompt:
        cuts += [slice(0, 2), slice(2, None)]
    for text in cuts:
        _same_cells(
            change(_cut(_fresh(segment), text=text)),
            _cut(new, text=text),
            part,
            "with whole_prompt = False no text row depends on another"
            if text in cuts[3:]
            else "a generated row depends on no other row, and changes none",
        )


def _check_fields(
    part: Any, old: CrossModalSegment, new: CrossModalSegment, touches: frozenset[Touch]
) -> None:
    kept = ("image", "queries", "cells", "prompt", "token_index")
    for name in kept:
        _promise(getattr(new, name) is getattr(old, name), part, f"{name} stays as it is")
    cells = old.cells[:, None].expand_as(old.logits)
    if "logits" not in touches:
        _same(new.logits, old.logits, part, "without 'logits' in touches the logits stay")
    _promise(new.logits.shape == old.logits.shape, part, "the logits keep their shape")
    _promise(new.logits.dtype == old.logits.dtype, part, "the logits keep their dtype")
    bad = new.logits.isnan() | (new.logits == math.inf)
    _promise(not bad.any(), part, "logits are finite, or -inf where a cell is cut")
    _promise(bool(new.logits[~cells].isneginf().all()), part, "logits off the cells stay at -inf")
    if "values" not in touches:
        _promise(new.replaced is None, part, "without 'values' in touches no cell is replaced")
    _promise(
        (new.replaced is None) == (new.replacement is None),
        part,
        "replaced and replacement come together",
    )
    if new.replaced is None or new.replacement is None:
        return
    _promise(new.replaced.dtype == torch.bool, part, "replaced is a mask", new.replaced.dtype)
    _promise(new.replaced.shape == old.logits.shape, part, "replaced has the logits' shape")
    _promise(not new.replaced[~cells].any(), part, "nothing is replaced off the cells")
    values = old.image.values
    _promise(new.replacement.shape == values.shape, part, "replacement has the values' shape")
    _promise(new.replacement.dtype == values.dtype, part, "replacement has the values' dtype")
    _promise(bool(new.replacement.isfinite().all()), part, "replacement is finite")


def _check_mask_ignores_constants(strategy: AttentionDistortion) -> None:
    """Drawn from a continuous distribution: no logit lies within 1e-6 of another one's mean."""
    segment = example_segment()
    moved = dataclasses.replace(_fresh(segment), logits=segment.logits + 2.5)
    old, new = (_mask(s, strategy.distort(s)) for s in (segment, moved))
    _promise(
        old.equal(new), strategy, "the cells it takes stay when a constant is added to the logits"
    )


def _mask(old: CrossModalSegment, new: CrossModalSegment) -> Tensor:
    cut = new.logits.isneginf() & ~old.logits.isneginf()
    return cut if new.replaced is None else cut | new.replaced


def example_segment(
    dtype: torch.dtype = torch.float64, values: torch.dtype = torch.float64
) -> CrossModalSegment:
    """A random segment of three samples: two images, one image, and one beside padding.

    Its first four text rows are the prompt's, two more were generated; two query heads share a
    key.
    """
    image_index = torch.tensor([[0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6])
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[2, 4:] = False
    cells = valid[:, None].repeat(1, 6, 1)
    cells[0, 0] &= image_index[0] == 0  # this row stands between the two images
    cells[2, 0] = False  # and this one is padding
    prompt = torch.tensor([True] * 4 + [False] * 2).repeat(3, 1)
    prompt[2, 0] = False
    keys, queries = _normal(1, 3, 2, 6, 4), _normal(2, 3, 4, 6, 4)
    logits = queries @ keys.repeat_interleave(2, dim=1).mT / 2
    image = ImageColumns(
        keys=keys.to(values),
        values=_normal(3, 3, 2, 6, 4).to(values),
        valid=valid,
        image_index=image_index,
        token_index=torch.arange(2, 8).repeat(3, 1),
        streams=torch.tensor([11, 22, 33]),
        layer=1,
    )
    return CrossModalSegment(
        image=image,
        queries=queries.to(dtype),
        logits=logits.to(dtype).masked_fill(~cells[:, None], -math.inf),
        cells=cells,
        prompt=prompt,
        token_index=torch.arange(8, 14).repeat(3, 1),
    )


def _cut(
    segment: CrossModalSegment, *, rows: slice | Tensor = slice(None), text: slice = slice(None)
) -> CrossModalSegment:
    """Some rows of the batch, or some of the text rows."""
    image = {
        field.name: getattr(segment.image, field.name)[rows]
        for field in dataclasses.fields(ImageColumns)
        if field.name not in ("layer", "memory")
    }
    return CrossModalSegment(
        image=ImageColumns(**image, layer=segment.image.layer),
        queries=segment.queries[rows][:, :, text],
        logits=segment.logits[rows][:, :, text],
        cells=segment.cells[rows][:, text],
        prompt=segment.prompt[rows][:, text],
        token_index=segment.token_index[rows][:, text],
        replaced=None if segment.replaced is None else segment.replaced[rows][:, :, text],
        replacement=None if segment.replacement is None else segment.replacement[rows],
    )


def _fresh(segment: CrossModalSegment) -> CrossModalSegment:
    """The segment with nothing remembered."""
    return dataclasses.replace(segment, image=dataclasses.replace(segment.image, memory={}))


def _same_cells(
    given: CrossModalSegment, wanted: CrossModalSegment, part: Any, promise: str
) -> None:
    """Equal logits, equal mask, and equal values wherever the mask takes them."""
    _same(given.logits, wanted.logits, part, promise)
    if given.replaced is None or wanted.replaced is None:
        _promise(given.replaced is wanted.replaced, part, promise)
        return
    _promise(given.replaced.equal(wanted.replaced), part, promise)
    assert given.replacement is not None and wanted.replacement is not None
    used = wanted.image.valid[:, None, :, None]
    _same(given.replacement * used, wanted.replacement * used, part, promise)


# ---- helpers -------------------------------------------------------------------------------------


def _decoded(
    combiner: LogitCombiner, steps: Sequence[tuple[Tensor, Mapping[str, Tensor]]]
) -> list[Tensor]:
    """The combined logits of steps that follow each other."""
    state: Mapping[str, Tensor] = {}
    combined = []
    for step, (original, others) in enumerate(steps):
        result, state = _pure(combiner, combiner.combine, original, others, step=step, state=state)
        rows = {tuple(value.shape[:1]) for value in state.values()}
        _promise(rows <= {original.shape[:1]}, combiner, "state tensors begin with the rows", rows)
        combined.append(result)
    return combined


def _pure(part: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call twice; nothing passed may change, no global random number may be drawn."""
    before = pickle.dumps([*_tensors(args), *_tensors(kwargs)])
    generator = torch.get_rng_state()
    first = function(*args, **kwargs)
    _promise(
        pickle.dumps([*_tensors(args), *_tensors(kwargs)]) == before,
        part,
        "nothing is written into what it is passed",
    )
    _promise(
        generator.equal(torch.get_rng_state()), part, "no random number comes from torch's global"
    )
    torch.rand(1)  # a call that depends on the global generator would now differ
    second = function(*args, **kwargs)
    torch.set_rng_state(generator)
    same = all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(second), strict=True))
    _promise(same, part, "equal arguments give equal results, to the bit")
    return first


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in it, but what a segment remembers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    if isinstance(value, CrossModalSegment | ImageColumns):
        names = [field.name for field in dataclasses.fields(value) if field.name != "memory"]
        return [tensor for name in names for tensor in _tensors(getattr(value, name))]
    return []


def _normal(seed: int, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def _same(given: Tensor, wanted: Tensor, part: Any, promise: str) -> None:
    close = given.shape == wanted.shape and torch.allclose(
        given, wanted, rtol=1e-9, atol=1e-9, equal_nan=True
    )
    _promise(close, part, promise, (given, wanted))


def _promise(kept: bool, part: Any, promise: str, given: object = None) -> None:
    if not kept:
        detail = "" if given is None else f" Got: {given}"
        raise AssertionError(f"{_name(part)}: {promise}.{detail}")


def _name(part: object) -> str:
    return repr(part) if dataclasses.is_dataclass(part) else type(part).__name__
