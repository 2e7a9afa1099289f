"""What a schedule of alpha promises; see `cdkit.testing`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.schedule import AlphaSchedule, Signals
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import ROWS_FIRST, ROWS_FIRST_TODO, check_value, normal, pure

INDEPENDENT = "rows of the batch are independent"
OWN_ROW = "reduce over the vocabulary (dim=-1), never over the rows of the batch"


def check_schedule(schedule: Any) -> None:
    """Check the promises of a schedule of alpha.

    Args:
        schedule: An instance of a subclass of `cdkit.AlphaSchedule`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(schedule)
    require(
        isinstance(schedule, AlphaSchedule),
        schedule,
        "it subclasses AlphaSchedule",
        todo="write class Name(cdkit.AlphaSchedule)",
    )
    reads = getattr(schedule, "reads_attention", None)
    require(
        isinstance(reads, bool),
        schedule,
        "reads_attention is True or False",
        reads,
        todo="set it in the class: True if scale reads the image's attention",
    )
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
        require(
            row,
            schedule,
            "it gives one factor for each row",
            factor.shape,
            todo="return a tensor of shape (rows,)",
        )
        good = bool((factor.isfinite() & (factor >= 0)).all())
        require(
            good,
            schedule,
            "factors are finite, 0 or more",
            (number, factor),
            todo="clamp the factor, and divide by no zero",
        )
    for rows in (torch.tensor([2, 0, 1]), *torch.arange(3)[:, None]):
        given = _scaled(schedule, [_of_rows(signals, rows) for signals in steps[:6]])
        for mixed, factor in zip(given, whole, strict=False):
            require_same(mixed, factor[rows], schedule, INDEPENDENT, todo=OWN_ROW)
    given = _scaled(schedule, [_beside_mates(signals) for signals in steps])
    for beside, factor in zip(given, whole, strict=True):
        promise = "mates with large logits, or without an image, change nothing"
        require_same(beside[2:], factor, schedule, promise, todo=OWN_ROW)
        good = bool((beside.isfinite() & (beside >= 0)).all())
        promise = "factors are finite, 0 or more, also of a row without an image"
        todo = "expect image_mass and image_logits of 0, and divide by nothing that can be 0"
        require(good, schedule, promise, beside, todo=todo)


def _of_rows(signals: Signals, rows: Tensor) -> Signals:
    logits, mass = signals.image_logits, signals.image_mass
    return Signals(
        signals.logits[rows],
        None if logits is None else logits[rows],
        None if mass is None else mass[rows],
    )


def _beside_mates(signals: Signals) -> Signals:
    """The signals behind those of two rows more: one with large logits, one without an image."""
    logits, mass = signals.image_logits, signals.image_mass
    return Signals(
        torch.cat((40 * signals.logits[:1], signals.logits[:1], signals.logits)),
        None if logits is None else torch.cat((40 * logits[:1], 0 * logits[:1], logits)),
        None if mass is None else torch.cat((mass[:1], 0 * mass[:1], mass)),
    )


def _scaled(schedule: AlphaSchedule, steps: Sequence[Signals]) -> list[Tensor]:
    """The factors of steps that follow each other."""
    state: Mapping[str, Tensor] = {}
    factors = []
    for step, signals in enumerate(steps):
        factor, state = pure(schedule, schedule.scale, signals, step=step, state=state)
        rows = {tuple(value.shape[:1]) for value in state.values()}
        wanted = {tuple(signals.logits.shape[:1])}
        require(rows <= wanted, schedule, ROWS_FIRST, rows, todo=ROWS_FIRST_TODO)
        factors.append(factor)
    return factors
