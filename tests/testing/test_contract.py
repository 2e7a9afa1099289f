"""The contract suite over the whole registry, and over every part of every preset."""

import dataclasses
from typing import Any

import pytest

import cdkit
from cdkit.testing import (
    check_calibrator,
    check_combiner,
    check_constraint,
    check_loop,
    check_readout,
    check_schedule,
    check_selector,
    check_state_intervention,
    check_strategy,
    variants,
)

EFFECTS = [
    name
    for name, cls in cdkit.DISTORTIONS.items()
    if any(field.name == "selector" for field in dataclasses.fields(cls))  # type: ignore[arg-type]
]
PARTS = [part for name in cdkit.presets() for _, part in cdkit.load(name).parts() if not part.lacks]


@pytest.mark.parametrize("name", [*cdkit.DISTORTIONS, *cdkit.INTERVENTIONS])
def test_strategies(name: str) -> None:
    registry = cdkit.DISTORTIONS if name in cdkit.DISTORTIONS else cdkit.INTERVENTIONS
    for strategy in variants(registry[name]):
        check_strategy(strategy)


@pytest.mark.parametrize("name", cdkit.CALIBRATORS)
def test_calibrators(name: str) -> None:
    for calibrator in variants(cdkit.CALIBRATORS[name]):
        check_calibrator(calibrator)


@pytest.mark.parametrize("name", cdkit.COMBINERS)
def test_combiners(name: str) -> None:
    for combiner in variants(cdkit.COMBINERS[name]):
        check_combiner(combiner)
        check_combiner(combiner, names=())
        check_combiner(combiner, names=("a", "b"))


@pytest.mark.parametrize("name", cdkit.CONSTRAINTS)
def test_constraints(name: str) -> None:
    for constraint in variants(cdkit.CONSTRAINTS[name]):
        check_constraint(constraint)


@pytest.mark.parametrize("name", cdkit.SELECTORS)
def test_selectors(name: str) -> None:
    for selector in variants(cdkit.SELECTORS[name]):
        check_selector(selector)


@pytest.mark.parametrize("selector", cdkit.SELECTORS)
@pytest.mark.parametrize("effect", EFFECTS)
def test_each_effect_goes_with_each_selector(effect: str, selector: str) -> None:
    for choice in variants(cdkit.SELECTORS[selector]):
        strategy: Any = cdkit.DISTORTIONS[effect]
        check_strategy(strategy(selector=choice))


@pytest.mark.parametrize("name", cdkit.READOUTS)
def test_readouts(name: str) -> None:
    for readout in variants(cdkit.READOUTS[name]):
        check_readout(readout)


@pytest.mark.parametrize("name", cdkit.SCHEDULES)
def test_schedules(name: str) -> None:
    for schedule in variants(cdkit.SCHEDULES[name]):
        check_schedule(schedule)


@pytest.mark.parametrize("name", cdkit.STATE_INTERVENTIONS)
def test_state_interventions(name: str) -> None:
    for part in variants(cdkit.STATE_INTERVENTIONS[name]):
        if not part.lacks:  # its presets and controls stand below
            check_state_intervention(part)


@pytest.mark.parametrize("name", cdkit.LOOPS)
def test_loops(name: str) -> None:
    for loop in variants(cdkit.LOOPS[name]):
        check_loop(loop)


@pytest.mark.parametrize("part", dict.fromkeys(PARTS), ids=repr)
def test_the_parts_of_presets(part: object) -> None:
    match part:
        case cdkit.LogitCombiner():
            check_combiner(part)
        case cdkit.Constraint():
            check_constraint(part)
        case cdkit.CellSelector():
            check_selector(part)
        case cdkit.PositionCalibrator():
            check_calibrator(part)
        case cdkit.LayerReadout():
            check_readout(part)
        case cdkit.DecodingLoop():
            check_loop(part)
        case cdkit.AlphaSchedule():
            check_schedule(part)
        case cdkit.StateIntervention():
            check_state_intervention(part)
        case cdkit.DistortionStrategy() | cdkit.Intervention():
            check_strategy(part)
        case _:
            raise AssertionError(f"no contract for {part!r}")
