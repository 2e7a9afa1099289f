"""What to run: each set of branches once, whichever methods read it.

Methods that calibrate and intervene alike have the same original branch, so all their distorted
branches go through the model together; contrast, constraint, sharpening and every sweep of alpha
and beta are then functions of the branches' logits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

import cdkit
from cdkit.calibrator import PositionCalibrator
from cdkit.combiner import LogitCombiner
from cdkit.evals.ablation.grid import Grid
from cdkit.method import ORIGINAL, Branch, Method
from cdkit.strategies.contrast import Contrast
from cdkit.strategy import DistortionStrategy


@dataclass(frozen=True)
class Arm:
    """A method under the name that tables and predictions call it by."""

    name: str
    method: Method


@dataclass(frozen=True)
class Pass:
    """One run of the model: the original branch, distorted ones, and the arms that read them."""

    method: Method
    arms: tuple[Arm, ...]
    places: Mapping[tuple[str, str], str]
    """(arm's name, its own name of a branch) -> the branch's name in `method`."""

    def branches_of(self, arm: Arm, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits that the arm's combiner reads beside the original ones, by its own names."""
        if self.method is arm.method:
            return {name: value for name, value in logits.items() if name != ORIGINAL}
        own = [branch.name for branch in arm.method.live_branches]
        return {name: logits[self.places[arm.name, name]] for name in own}


@dataclass(frozen=True)
class SweepPoint:
    """One value of one parameter of a grid's method."""

    method: str
    parameter: str
    value: Any
    arm: Arm


def arms(grid: Grid) -> tuple[Arm, ...]:
    """The grid's methods, each parameter checked by `cdkit.load`."""
    return tuple(
        Arm(name, cdkit.load(spec.preset, **spec.overrides)) for name, spec in grid.methods.items()
    )


def sweep_points(grid: Grid) -> tuple[SweepPoint, ...]:
    """Every value of every sweep, over the method's own other parameters."""
    return tuple(
        SweepPoint(name, parameter, value, Arm(f"sweep of {name}: {parameter} {value}", method))
        for name, sweep in grid.sweeps.items()
        for parameter, values in sweep.values.items()
        for value in values
        for spec in (grid.methods[name],)
        for method in (cdkit.load(spec.preset, **{**spec.overrides, parameter: value}),)
    )


def passes(arms: Iterable[Arm]) -> tuple[Pass, ...]:
    """The fewest runs of the model that give every branch of every arm."""
    groups: dict[object, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(_shared(arm.method), []).append(arm)
    return tuple(_pass(tuple(group)) for group in groups.values())


def unconstrained(combiner: LogitCombiner) -> LogitCombiner:
    """The combiner without its plausibility constraint, which is its field `beta` 0."""
    names = [f.name for f in fields(combiner)]  # type: ignore[arg-type]
    return replace(combiner, beta=0.0) if "beta" in names else combiner  # type: ignore[type-var]


def _shared(method: Method) -> object:
    """Equal for two methods whose branches may go through the model together."""
    calibrator: PositionCalibrator | None = method.calibrator
    if calibrator is not None and calibrator.idle:
        calibrator = None
    if method.interventions or method.readout is not None:
        # these name branches, or hand their own logits to the combiner: such a method runs alone
        return (calibrator, method.interventions, method.readout, method.branches)
    # a branch with its own pixels or prompt cannot share the original's prefix, and would keep the
    # other branches of a pass from sharing it
    apart = any(branch.pixel or branch.prompt for branch in method.live_branches)
    return (calibrator, apart)


def _pass(arms: tuple[Arm, ...]) -> Pass:
    first = arms[0].method
    if first.interventions or first.readout is not None:
        places = {(a.name, b.name): b.name for a in arms for b in a.method.branches}
        return Pass(first, arms, places)
    names: dict[tuple[DistortionStrategy, ...], str] = {}
    places = {}
    for arm in arms:
        for branch in arm.method.live_branches:
            name = names.setdefault(branch.distortions, f"branch_{len(names)}")
            places[arm.name, branch.name] = name
    union = Method(
        name="+".join(dict.fromkeys(arm.name for arm in arms)),
        combiner=Contrast(alpha=1.0 if names else 0.0, beta=0.0),  # reads, so computes, all
        calibrator=first.calibrator,
        branches=tuple(Branch(name, distortions) for distortions, name in names.items()),
    )
    return Pass(union, arms, places)
