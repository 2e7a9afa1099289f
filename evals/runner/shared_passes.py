"""Methods under the names of tables, and the fewest runs of the model that serve several of them.

Methods that calibrate, intervene, schedule and read inner layers alike have the same original
branch, so all their distorted branches go through the model together; contrast, constraint,
sharpening and every sweep of alpha and beta are then functions of the branches' logits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from cdkit.evals.runner.modes import DECODE, GREEDY, SAMPLE
from cdkit.interfaces.position_calibrator import PositionCalibrator
from cdkit.methods.branch import ORIGINAL, Branch
from cdkit.methods.method import Method
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


def passes(variants: Iterable[Variant]) -> tuple[SharedPass, ...]:
    """The fewest runs of the model that give every branch of every stepwise variant."""
    groups: dict[object, list[Variant]] = {}
    for variant in variants:
        if variant.stepwise:
            groups.setdefault(_shared(variant.method), []).append(variant)
    return tuple(_pass(tuple(group)) for group in groups.values())


def _shared(method: Method) -> object:
    """Equal for two methods whose branches may go through the model together."""
    calibrator: PositionCalibrator | None = method.calibrator
    if calibrator is not None and calibrator.is_identity:
        calibrator = None
    # a branch that cannot share the original's prefix would keep the others of a pass from it
    apart = not all(branch.keeps_prefix for branch in method.live_branches)
    # interventions name branches, so those that have any need the same ones
    named = method.branches if _names_branches(method) else None
    states = method.state_interventions, method.prompt_branches
    return (
        calibrator,
        method.interventions,
        states,
        method.readout,
        method.schedules,
        named,
        apart,
    )


def _names_branches(method: Method) -> bool:
    return bool(method.interventions or method.state_interventions)


def _pass(variants: tuple[Variant, ...]) -> SharedPass:
    first = variants[0].method
    branches: dict[object, Branch] = {}
    places, named = {}, _names_branches(first)
    for variant in variants:
        for branch in variant.method.branches if named else variant.method.live_branches:
            # what interventions name keeps its name; of the others, equal ones run once
            new = branch if named else replace(branch, name=f"branch_{len(branches)}")
            key = branch.name if named else branch.distortions
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
