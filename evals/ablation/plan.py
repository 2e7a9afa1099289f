"""What to run: each set of branches once, whichever methods read it.

Methods that calibrate, intervene, schedule and read inner layers alike have the same original
branch, so all their distorted branches go through the model together; contrast, constraint,
sharpening and every sweep of alpha and beta are then functions of the branches' logits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.reports.results import mode_names
from cdkit.evals.runner.modes import DECODE, GREEDY, PLAIN, SAMPLE
from cdkit.interfaces.position_calibrator import PositionCalibrator
from cdkit.methods.method import ORIGINAL, Branch, Method
from cdkit.strategies.combiners.contrast import Contrast


@dataclass(frozen=True)
class Variant:
    """A method under the name that tables and predictions call it by."""

    name: str
    method: Method

    @property
    def modes(self) -> tuple[str, ...]:
        """The grid's decode modes that the method is defined for.

        Sampling is greedy search over noisy logits here (`gumbel`), so it needs both.
        """
        own = self.method.modes
        return tuple(m for m in DECODE if m in own and (m != SAMPLE or GREEDY in own))

    @property
    def stepwise(self) -> bool:
        """Whether the first token depends on the first step's logits alone."""
        return self.method.loop is None


@dataclass(frozen=True)
class SharedPass:
    """One run of the model: the original branch, distorted ones, the variants that use them."""

    method: Method
    variants: tuple[Variant, ...]
    places: Mapping[tuple[str, str], str]
    """(variant's name, its own name of a branch) -> the branch's name in `method`."""

    def branches_of(self, variant: Variant, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The logits beside the original ones that the variant's combiner uses, by its names."""
        run = {ORIGINAL, *(branch.name for branch in self.method.branches)}
        reads = variant.method.combiner.uses
        inner = {name: value for name, value in logits.items() if name not in run and reads(name)}
        own = [branch.name for branch in variant.method.live_branches]
        return {name: logits[self.places[variant.name, name]] for name in own} | inner


@dataclass(frozen=True)
class SweepPoint:
    """One value of one parameter of a grid's method."""

    method: str
    parameter: str
    value: Any
    variant: Variant


def variants(grid: Grid) -> tuple[Variant, ...]:
    """The grid's methods, each parameter checked by `cdkit.load`."""
    made = tuple(
        Variant(name, cdkit.load(spec.preset, **spec.overrides))
        for name, spec in grid.methods.items()
    )
    _check_modes(grid, made)
    return made


def sweep_points(grid: Grid) -> tuple[SweepPoint, ...]:
    """Every value of every sweep, over the method's own other parameters."""
    return tuple(
        SweepPoint(name, parameter, value, Variant(f"sweep of {name}: {parameter} {value}", method))
        for name, sweep in grid.sweeps.items()
        for parameter, values in sweep.values.items()
        for value in values
        for spec in (grid.methods[name],)
        for method in (cdkit.load(spec.preset, **{**spec.overrides, parameter: value}),)
    )


def passes(variants: Iterable[Variant]) -> tuple[SharedPass, ...]:
    """The fewest runs of the model that give every branch of every stepwise variant."""
    groups: dict[object, list[Variant]] = {}
    for variant in variants:
        if variant.stepwise:
            groups.setdefault(_shared(variant.method), []).append(variant)
    return tuple(_pass(tuple(group)) for group in groups.values())


def _check_modes(grid: Grid, variants: Sequence[Variant]) -> None:
    """Raise where the grid asks for an answer in a mode that the method is not defined for."""
    decoded = {mode for name in grid.benchmarks for mode in grid.modes_of(name)}
    (plain,) = (variant for variant in variants if variant.name == PLAIN)
    if not plain.stepwise:
        raise CdkitError(
            f"[methods.{PLAIN}] brings a decode loop of its own, but every difference in every "
            "decode mode is taken to it: use preset = 'plain'"
        )
    greedily: dict[str, tuple[str, ...]] = {f"[sweeps.{n}]": (n,) for n in grid.sweeps}
    if grid.position is not None:
        greedily["methods of [position]"] = grid.position.methods
    by_name = {variant.name: variant for variant in variants}
    for where, names in greedily.items():
        for name in names:
            if GREEDY not in by_name[name].modes:
                raise CdkitError(
                    f"{where} is answered greedily, but {name} is defined for "
                    f"{mode_names(by_name[name].method.modes)} only: take it out there"
                )
    for variant in variants:
        if not decoded & {*variant.modes}:
            raise CdkitError(
                f"[methods.{variant.name}] is defined for {mode_names(variant.method.modes)} only, "
                "and no benchmark of the grid is decoded so: add it to decode, or take "
                f"{variant.name} out"
            )


def _shared(method: Method) -> object:
    """Equal for two methods whose branches may go through the model together."""
    calibrator: PositionCalibrator | None = method.calibrator
    if calibrator is not None and calibrator.is_identity:
        calibrator = None
    # a branch that cannot share the original's prefix would keep the others of a pass from it
    apart = not all(branch.keeps_prefix for branch in method.live_branches)
    # interventions name branches, so those that have any need the same ones
    named = method.branches if method.interventions else None
    return (calibrator, method.interventions, method.readout, method.schedules, named, apart)


def _pass(variants: tuple[Variant, ...]) -> SharedPass:
    first = variants[0].method
    branches: dict[object, Branch] = {}
    places = {}
    for variant in variants:
        for branch in (
            variant.method.branches if first.interventions else variant.method.live_branches
        ):
            # what interventions name keeps its name; of the others, equal ones run once
            new = branch if first.interventions else replace(branch, name=f"branch_{len(branches)}")
            key = branch.name if first.interventions else branch.distortions
            places[variant.name, branch.name] = branches.setdefault(key, new).name
    some = bool(branches) or first.readout is not None
    union = replace(
        first,
        name="+".join(dict.fromkeys(variant.name for variant in variants)),
        combiner=Contrast(alpha=1.0 if some else 0.0),  # uses, so computes, all
        constraint=None,
        branches=tuple(branches.values()),
    )
    return SharedPass(union, variants, places)
