"""What a schedule of alpha promises; see `cdkit.testing`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.schedule import AlphaSchedule, Signals
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import check_value, normal, pure


def check_schedule(schedule: Any) -> None:
    """Check the promises of a schedule of alpha.

    Args:
        schedule: An instance of a subclass of `cdkit.AlphaSchedule`.

    Raises:
        AssertionError: Where a promise is broken.
    """
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
