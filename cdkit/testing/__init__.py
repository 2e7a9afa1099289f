"""The contract suite: run `check_strategy` and its like on your own class, as our tests do on ours.

Each check takes an instance, raises an AssertionError that says which promise is broken, and
returns None. A part's check takes milliseconds; `check_adapter` takes a model and runs it.

    from cdkit.testing import check_strategy
    check_strategy(MyDistortion(strength=0.5))
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from cdkit.interfaces.combiner import LogitCombiner
from cdkit.interfaces.constraint import Constraint, OnEmpty
from cdkit.interfaces.distortion import (
    AttentionDistortion,
    DistortionStrategy,
    FeatureDistortion,
    Modified,
    PixelDistortion,
    Prompt,
    PromptDistortion,
)
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.part import Part
from cdkit.interfaces.position_calibrator import PositionCalibrator
from cdkit.interfaces.readout import LayerReadout
from cdkit.interfaces.schedule import AlphaSchedule, Signals
from cdkit.methods.method import ORIGINAL
from cdkit.testing.adapters import check_adapter as check_adapter
from cdkit.testing.benchmarks import check_benchmark as check_benchmark
from cdkit.testing.loops import check_loop as check_loop
from cdkit.testing.segments import check_mask_ignores_constants, check_segment
from cdkit.testing.segments import check_selector as check_selector
from cdkit.testing.tools import check_value, name_of, normal, pure, require, require_same


def variants(cls: type) -> Iterator[Any]:
    """`cls()`, and an instance for every other value of each field that is a choice or a switch.

    A field that is a part itself, such as a selector, is varied in the same way.
    """
    default = cls()
    yield default
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = get_args(hint) if get_origin(hint) is Literal else (False, True) * (hint is bool)
        value = getattr(default, field.name)
        if isinstance(value, Part):
            choices = tuple(variants(type(value)))
        for choice in choices:
            if choice != value:
                yield dataclasses.replace(default, **{field.name: choice})


def check_strategy(strategy: object) -> None:
    """The promises of a distortion, of any of the four kinds, or of an intervention."""
    check_value(strategy)
    match strategy:
        case PixelDistortion():
            _check_touches(strategy, {"pixels"})
            _check_pixels(strategy)
        case FeatureDistortion():
            _check_touches(strategy, {"features"})
            _check_features(strategy)
        case PromptDistortion():
            _check_touches(strategy, {"prompt"})
            _check_prompt(strategy)
        case AttentionDistortion():
            _check_touches(strategy, {"logits", "text_logits", "values"})
            check_segment(
                strategy,
                strategy.distort,
                strategy.modifies,
                layers=strategy.layers,
                needs_whole_prompt=strategy.needs_whole_prompt,
                keeps_prefix=strategy.keeps_prefix,
            )
            check_mask_ignores_constants(strategy)
        case Intervention():
            require(
                isinstance(strategy.branches, tuple),
                strategy,
                "branches is a tuple of branch names",
            )
            check_segment(
                strategy,
                strategy.intervene,
                frozenset({"logits", "text_logits", "values"}),
                layers=strategy.layers,
                needs_whole_prompt=strategy.needs_whole_prompt,
            )
        case _:
            raise AssertionError(
                f"{name_of(strategy)} must subclass PixelDistortion, FeatureDistortion, "
                "PromptDistortion, AttentionDistortion or Intervention"
            )


def check_calibrator(calibrator: Any) -> None:
    """The promises of a position calibrator."""
    check_value(calibrator)
    require(
        isinstance(calibrator, PositionCalibrator), calibrator, "it subclasses PositionCalibrator"
    )
    index = torch.tensor([[-1, -1, 0, 0, 0, 0, -1, -1, -1], [0, 0, -1, 1, 1, -1, -1, -1, -1]])
    line = torch.arange(index.shape[1]).expand(index.shape)
    new = _check_positions(calibrator, line, index)
    require(bool((new.diff() >= 0).all()), calibrator, "positions never decrease", new)
    unmoved = torch.allclose(new.diff(), line.diff().double(), rtol=0, atol=1e-12)
    require(
        unmoved == calibrator.is_identity,
        calibrator,
        "is_identity says whether every distance stays",
        new,
    )
    # multimodal RoPE: the first image is a grid of 2 x 2, the second a row of two
    grid = line[..., None] - torch.tensor([[0, 0, 0, 1, 2, 3, 2, 2, 2], [0] * 9])[..., None]
    grid = grid.repeat(1, 1, 3)
    grid[0, 2:6] = torch.tensor([[2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3]])
    grid[1, 0:2, :2], grid[1, 3:5, :2] = 0, 3
    on_grid = _check_positions(calibrator, grid, index)
    text = on_grid[index < 0]
    equal = bool((text == text[:, :1]).all())
    require(equal, calibrator, "the axes of text stay equal", text)


def _check_positions(
    calibrator: PositionCalibrator, positions: Tensor, image_index: Tensor
) -> Tensor:
    new: Tensor = pure(calibrator, calibrator.calibrate, positions, image_index)
    require(new.shape == positions.shape, calibrator, "one position a token and axis", new.shape)
    require(new.dtype == torch.float64, calibrator, "positions are float64", new.dtype)
    require(bool(new.isfinite().all()), calibrator, "positions are finite", new)
    for stop in range(1, image_index.shape[1]):
        part = calibrator.calibrate(positions[:, :stop], image_index[:, :stop])
        require_same(part, new[:, :stop], calibrator, "a position depends on no later token")
    for row in range(2):
        alone = calibrator.calibrate(positions[row : row + 1], image_index[row : row + 1])
        require_same(alone, new[row : row + 1], calibrator, "rows of the batch are independent")
    moved = calibrator.calibrate(positions + 5, image_index)
    promise = "a constant added to all positions only moves them"
    require_same(moved.diff(dim=1), new.diff(dim=1), calibrator, promise)
    padded = calibrator.calibrate(
        torch.cat((positions[:, :1].repeat(1, 3, *[1] * (positions.ndim - 2)) * 0, positions), 1),
        torch.nn.functional.pad(image_index, (3, 0), value=-1),
    )
    promise = "padding on the left changes no distance"
    require_same(padded[:, 3:].diff(dim=1), new.diff(dim=1), calibrator, promise)
    if calibrator.constant_after_prompt:
        shift = (new - positions)[:, 6:]  # behind the last image of both rows
        promise = "with constant_after_prompt = True text after the last image moves by one shift"
        require_same(shift, shift[:, :1].expand_as(shift), calibrator, promise)
    return new


def check_combiner(combiner: Any, names: Sequence[str] = ("distorted",)) -> None:
    """The promises of a combiner, with other logits under `names`."""
    check_value(combiner)
    require(isinstance(combiner, LogitCombiner), combiner, "it subclasses LogitCombiner")
    steps = [
        (normal(step, 3, 11), {name: normal(9 + step + i, 3, 11) for i, name in enumerate(names)})
        for step in range(4)
    ]
    whole = _decoded(combiner, steps)
    for step, combined in enumerate(whole):
        require(
            combined.shape == (3, 11) and combined.is_floating_point(),
            combiner,
            "the result has the shape of the logits",
            combined.shape,
        )
        bad = combined.isnan() | (combined == math.inf)
        require(not bad.any(), combiner, "combined logits are finite, or -inf", (step, combined))
        alive = (~combined.isneginf()).any(dim=-1)
        require(bool(alive.all()), combiner, "a token is left in every row", (step, combined))
    order = torch.tensor([2, 0, 1])
    turned = [(x[order], {k: v[order] for k, v in others.items()}) for x, others in steps]
    for mixed, combined in zip(_decoded(combiner, turned), whole, strict=True):
        require_same(mixed, combined[order], combiner, "rows of the batch are independent")
    alone = [(x[:1], {k: v[:1] for k, v in others.items()}) for x, others in steps]
    for single, combined in zip(_decoded(combiner, alone), whole, strict=True):
        require_same(single, combined[:1], combiner, "rows of the batch are independent")
    original, others = steps[0]
    for name in names:
        if not combiner.uses(name):
            without, _ = combiner.combine(
                original, others | {name: others[name] + normal(3, 3, 11)}, step=0, state={}
            )
            require_same(
                without, whole[0], combiner, f"logits that it does not read ({name}) are unread"
            )
    if not combiner.stateful:
        for step, (logits, rest) in enumerate(steps):
            later, state = combiner.combine(logits, rest, step=step + 7, state={})
            require_same(
                later, whole[step], combiner, "with stateful = False no step and no state counts"
            )
            require(not state, combiner, "with stateful = False it keeps no state", state)
    if combiner.contrastive:
        equal, _ = combiner.combine(original, dict.fromkeys(names, original), step=0, state={})
        require_same(
            equal,
            original.masked_fill(equal.isneginf(), -math.inf),
            combiner,
            "with contrastive = True logits equal to the original ones change nothing",
        )
    for name in names:
        weighs, used = combiner.weight(name) != 0, combiner.uses(name)
        require(weighs == used, combiner, "weight is 0 for the branches that it does not use", name)
    if combiner.switch:
        fields = {field.name for field in dataclasses.fields(combiner)}
        require(combiner.switch in fields, combiner, "switch names a parameter", combiner.switch)
    if combiner.is_identity:
        untouched, _ = combiner.combine(original, {}, step=0, state={})
        require(torch.equal(untouched, original), combiner, "an identity returns the original")


def check_constraint(constraint: Any) -> None:
    """The promises of a constraint."""
    check_value(constraint)
    require(isinstance(constraint, Constraint), constraint, "it subclasses Constraint")
    choices = get_args(OnEmpty)
    require(constraint.on_empty in choices, constraint, "on_empty is 'raise' or 'original'")
    require(bool(constraint.description.strip()), constraint, "its description says what it is")
    for seed in range(4):
        logits = 3 * normal(seed, 3, 11)
        allowed: Tensor = pure(constraint, constraint.allowed, logits)
        mask = allowed.dtype == torch.bool and allowed.shape == logits.shape
        require(mask, constraint, "it gives a mask of the logits' shape", allowed.shape)
        left = bool(allowed.any(dim=-1).all())
        require(left, constraint, "a token is left in every row", allowed)
        for rows in (torch.tensor([2, 0, 1]), torch.tensor([1])):
            promise = "rows of the batch are independent"
            require_same(constraint.allowed(logits[rows]), allowed[rows], constraint, promise)
        promise = "a constant added to the logits changes nothing"
        require_same(constraint.allowed(logits + 2.5), allowed, constraint, promise)
        slack: Tensor = pure(constraint, constraint.slack, logits)
        agree = slack.shape == logits.shape and bool(((slack >= 0) == allowed).all())
        require(agree, constraint, "slack is 0 or more on the allowed tokens alone", slack)
        if constraint.is_identity:
            require(bool(allowed.all()), constraint, "an identity allows every token", allowed)


def check_schedule(schedule: Any) -> None:
    """The promises of a schedule of alpha."""
    check_value(schedule)
    require(isinstance(schedule, AlphaSchedule), schedule, "it subclasses AlphaSchedule")
    reads = getattr(schedule, "reads_attention", None)
    require(isinstance(reads, bool), schedule, "reads_attention is True or False", reads)
    steps = [
        Signals(
            3 * normal(step, 3, 11),
            40 * normal(70 + step, 3) if reads else None,
            normal(140 + step, 3).sigmoid() if reads else None,
        )
        for step in range(70)
    ]
    whole = _scaled(schedule, steps)
    for number, factor in enumerate(whole):
        row = factor.shape == (3,) and factor.is_floating_point()
        require(row, schedule, "it gives one factor for each row", factor.shape)
        good = bool((factor.isfinite() & (factor >= 0)).all())
        require(good, schedule, "factors are finite, 0 or more", (number, factor))
    for rows in (torch.tensor([2, 0, 1]), torch.tensor([0])):
        mixed = [
            Signals(
                signals.logits[rows],
                None if signals.image_logits is None else signals.image_logits[rows],
                None if signals.image_mass is None else signals.image_mass[rows],
            )
            for signals in steps[:6]
        ]
        for given, factor in zip(_scaled(schedule, mixed), whole, strict=False):
            require_same(given, factor[rows], schedule, "rows of the batch are independent")


def _scaled(schedule: AlphaSchedule, steps: Sequence[Signals]) -> list[Tensor]:
    """The factors of steps that follow each other."""
    state: Mapping[str, Tensor] = {}
    factors = []
    for step, signals in enumerate(steps):
        factor, state = pure(schedule, schedule.scale, signals, step=step, state=state)
        rows = {tuple(value.shape[:1]) for value in state.values()}
        wanted = {tuple(signals.logits.shape[:1])}
        require(rows <= wanted, schedule, "state tensors begin with the rows", rows)
        factors.append(factor)
    return factors


def check_readout(readout: Any) -> None:
    """The promises of a layer readout."""
    check_value(readout)
    require(isinstance(readout, LayerReadout), readout, "it subclasses LayerReadout")
    for count in (8, 32):
        layers = readout.layers(count)
        require(bool(layers), readout, "it names a layer")
        require(ORIGINAL not in layers, readout, f"no layer is called {ORIGINAL!r}")
        inside = all(0 <= passed <= count for passed in layers.values())
        require(inside, readout, f"its states have passed 0 to {count} layers", layers)


def _check_touches(strategy: DistortionStrategy, allowed: set[Modified]) -> None:
    modifies = getattr(strategy, "modifies", None)
    require(
        isinstance(modifies, frozenset) and modifies <= allowed,
        strategy,
        f"modifies is a frozenset out of {sorted(allowed)}",
        modifies,
    )


# ---- pixels and prompts --------------------------------------------------------------------------


def _check_pixels(strategy: PixelDistortion) -> None:
    def distort(pixels: Tensor) -> Tensor:
        return strategy.distort(pixels, generator=torch.Generator().manual_seed(0))

    for dtype, images in itertools.product((torch.float32, torch.float64, torch.bfloat16), (1, 2)):
        pixels = normal(1, images, 3, 8, 8).to(dtype)
        new = pure(strategy, distort, pixels)
        require(new.shape == pixels.shape, strategy, "the pixels keep their shape", new.shape)
        require(new.dtype == dtype, strategy, f"pixels in {dtype} stay in it", new.dtype)
        require(bool(new.isfinite().all()), strategy, "finite pixels stay finite")
    pixels = normal(1, 1, 3, 8, 8)
    _check_noise(strategy, lambda random: strategy.distort(pixels, generator=random), pixels)


def _check_features(strategy: FeatureDistortion) -> None:
    def distort(features: Tensor, attention: Tensor, *, seed: int = 0) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return strategy.distort(features, attention, generator=random)

    for dtype, tokens in itertools.product((torch.float32, torch.float64, torch.bfloat16), (1, 9)):
        features = normal(1, tokens, 6).to(dtype)
        attention = normal(2, 5, tokens + 4).softmax(dim=-1)[:, :tokens]  # the rest is on text
        new = pure(strategy, distort, features, attention)
        require(new.shape == features.shape, strategy, "the features keep their shape", new.shape)
        require(new.dtype == dtype, strategy, f"features in {dtype} stay in it", new.dtype)
        require(bool(new.isfinite().all()), strategy, "finite features stay finite")
    features, attention = normal(1, 9, 6), normal(2, 5, 13).softmax(dim=-1)[:, :9]
    _check_noise(
        strategy, lambda random: strategy.distort(features, attention, generator=random), features
    )


def _check_noise(part: Any, distort: Callable[[torch.Generator], Tensor], given: Tensor) -> None:
    """Where it draws from the generator, what it draws counts; where not, nothing is random."""
    random = torch.Generator().manual_seed(0)
    first, second = (distort(random) for _ in range(2))
    if random.get_state().equal(torch.Generator().manual_seed(0).get_state()):
        require_same(first, second, part, "without the generator it is deterministic")
    elif not first.equal(given):
        other = [distort(torch.Generator().manual_seed(seed)) for seed in range(1, 9)]
        moved = any(not first.equal(new) for new in other)
        require(moved, part, "another generator gives other noise")


def _check_prompt(strategy: PromptDistortion) -> None:
    needs = getattr(strategy, "needs_text", None)
    require(isinstance(needs, bool), strategy, "needs_text is True or False", needs)

    def encode(text: str) -> tuple[int, ...]:
        require(bool(needs), strategy, "it calls encode only where needs_text is True")
        return tuple(100 + ord(letter) for letter in text)

    for images in (1, 2):
        ids = (1, 2, *(7, 7, 7, 3) * images, 4, 5)
        flags = tuple(i == 7 for i in ids)
        slot = len(ids) - flags[::-1].index(True)
        prompt = Prompt(ids, flags, system_slot=1, question_slot=slot, encode=encode)
        new = strategy.distort(prompt)
        require(isinstance(new, Prompt), strategy, "it returns a Prompt", type(new))
        require(strategy.distort(prompt) == new, strategy, "it is deterministic")
        require(bool(new.ids), strategy, "a token is left in the prompt")
        kept = tuple(i for i, image in zip(new.ids, new.is_image, strict=True) if image)
        require(
            kept in ((), (7,) * 3 * images) and (7 in new.ids) == bool(kept),
            strategy,
            "image tokens are taken out all together, never added",
            new.ids,
        )


# ---- combiners over several steps


def _decoded(
    combiner: LogitCombiner, steps: Sequence[tuple[Tensor, Mapping[str, Tensor]]]
) -> list[Tensor]:
    """The combined logits of steps that follow each other."""
    state: Mapping[str, Tensor] = {}
    combined = []
    for step, (original, others) in enumerate(steps):
        result, state = pure(combiner, combiner.combine, original, others, step=step, state=state)
        rows = {tuple(value.shape[:1]) for value in state.values()}
        require(rows <= {original.shape[:1]}, combiner, "state tensors begin with the rows", rows)
        combined.append(result)
    return combined
