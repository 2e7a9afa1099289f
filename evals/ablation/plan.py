"""The methods that a grid runs: its own, and the points of its sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import Grid, MethodSpec
from cdkit.evals.reports.results import mode_names
from cdkit.evals.runner.modes import GREEDY, PLAIN
from cdkit.evals.runner.shared_passes import Variant
from cdkit.methods.method import Method

PACKAGED = "packaged:"


@dataclass(frozen=True)
class SweepPoint:
    """One value of one parameter of a grid's method."""

    method: str
    parameter: str
    value: Any
    variant: Variant


def method_of(spec: MethodSpec, **more: Any) -> Method:
    """The method of a grid; `packaged:NAME` in a parameter is a file beside the packaged grids.

    Args:
        spec: The preset and the parameters that depart from it.
        more: Further parameters.

    Returns:
        The method, each parameter checked by `cdkit.load`.
    """
    given = {**spec.overrides, **more}
    return cdkit.load(spec.preset, **{name: _located(value) for name, value in given.items()})


def _located(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(PACKAGED):
        return str(Path(__file__).parent / "configs" / value.removeprefix(PACKAGED))
    return value


def variants(grid: Grid) -> tuple[Variant, ...]:
    """The grid's methods, each parameter checked by `cdkit.load`, and none without its files."""
    made = tuple(Variant(name, method_of(spec)) for name, spec in grid.methods.items())
    for variant in made:
        variant.method.check_complete()
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
        for method in (method_of(spec, **{parameter: value}),)
    )


def _check_modes(grid: Grid, variants: Sequence[Variant]) -> None:
    """Raise where the grid asks for an answer in a mode that the method is not defined for."""
    by_name = {variant.name: variant for variant in variants}
    if not by_name[grid.base].stepwise and (len(variants) > 1 or grid.base == PLAIN):
        raise CdkitError(
            f"[methods.{grid.base}] brings a decode loop of its own, but every difference in every "
            "decode mode is taken to it: use preset = 'plain'"
        )
    greedily: dict[str, tuple[str, ...]] = {f"[sweeps.{n}]": (n,) for n in grid.sweeps}
    if grid.position is not None:
        greedily["methods of [position]"] = grid.position.methods
    for where, names in greedily.items():
        for name in names:
            if GREEDY not in by_name[name].modes:
                raise CdkitError(
                    f"{where} is answered greedily, but {name} is defined for "
                    f"{mode_names(by_name[name].method.modes)} only: take it out there"
                )
    for variant in variants:
        if not grid.decoded & {*variant.modes}:
            raise CdkitError(
                f"{variant.name} is defined for {mode_names(variant.method.modes)} only, and "
                f"nothing is decoded so (decode is {', '.join(grid.decode)}): add it to decode "
                f"(--mode), or take {variant.name} out"
            )
