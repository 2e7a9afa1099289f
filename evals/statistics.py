"""Intervals and tests for the difference of two runs on the same questions.

Questions about one image are not independent, so the image is the unit of everything here but
McNemar's test. A run is a sequence of tallies, one a seed (greedy decoding: one); its value is the
mean over its seeds. Intervals cover the choice of images and, where a run has several, of seeds;
they do not cover the training of the one model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.modes import RESAMPLES
from cdkit.evals.power import standard_error
from cdkit.evals.significance import (
    DRAWS,
    Run,
    blocks,
    checked,
    holm,
    mcnemar,
    paired,
    swap_test,
    swap_tests,
)
from cdkit.interfaces.benchmark import Tally

__all__ = [
    "Comparison",
    "Estimate",
    "Resampled",
    "Run",
    "compare",
    "difference",
    "holm",
    "mcnemar",
    "resample",
    "swap_test",
    "swap_tests",
    "transitions",
]

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Resampled:
    """The metrics of one run as they are, and in every resample.

    `draws` vary the images and the seeds, `by_image` the images alone. `key` names the weights: two
    runs may be subtracted draw by draw where it is the same.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Float[np.ndarray, " resamples"]]
    by_image: Mapping[str, Float[np.ndarray, " resamples"]]
    key: tuple[object, ...]

    def estimate(self, metric: str) -> Estimate:
        """The metric with its 95 % interval."""
        return _estimate(self.values[metric], self.draws[metric])


@dataclass(frozen=True)
class Comparison:
    """One metric of a run beside a plain run.

    `p` is of the sign-flip test by image. `gained` and `lost` count the answers that became
    right (of CHAIR_s: hallucinating) and that ceased to be, and `mcnemar` is the exact test of
    these two, which takes questions for independent. All three are None for a metric that is no
    no plain share, and where a run has several seeds.

    `error` is the standard error of the difference over images, with the seeds as they are: what
    the sign-flip test meets. `step` is what one answer of one seed moves it by, where the metric is
    a plain share, else 0.
    """

    run: Estimate
    plain: Estimate
    difference: Estimate
    p: float
    gained: int | None
    lost: int | None
    mcnemar: float | None
    error: float
    step: float


def resample(
    run: Run, *, resamples: int = RESAMPLES, seed: int = 0, only: Collection[str] | None = None
) -> Resampled:
    """Bootstrap of the metrics (those in `only`, or all) that every tally of `run` has.

    A resample draws as many images as there are, with replacement, and (independently) as many
    seeds as there are; the metric is computed for each drawn seed on the drawn images and averaged.
    The image weights follow from `seed`, `resamples` and the number of images alone, so that two
    runs on the same samples, with however many seeds each, are paired.
    """
    if resamples < 1:
        raise CdkitError(f"an interval from {resamples} resamples says nothing: draw 1 or more")
    first, names = checked(run, only)
    images, seeds = len(first.images), len(run)
    for_images, for_seeds = np.random.default_rng(seed).spawn(2)
    drawn = for_seeds.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    draws: dict[str, list[Float[np.ndarray, " part"]]] = {name: [] for name in names}
    by_image: dict[str, list[Float[np.ndarray, " part"]]] = {name: [] for name in names}
    for start, stop in blocks(resamples, images):
        weights = for_images.multinomial(images, np.full(images, 1 / images), size=stop - start)
        parts = [tally.at(weights.astype(np.float64), names) for tally in run]
        for name in names:
            by_seed = np.stack([part[name] for part in parts], axis=1)
            draws[name].append((by_seed * drawn[start:stop]).sum(axis=1))
            by_image[name].append(by_seed.mean(axis=1))
    return Resampled(
        values=_mean_values(run, names),
        draws={name: np.concatenate(parts) for name, parts in draws.items()},
        by_image={name: np.concatenate(parts) for name, parts in by_image.items()},
        key=(seed, resamples, first.samples),
    )


def difference(run: Resampled, plain: Resampled, metric: str) -> Estimate:
    """`run - plain` with its paired 95 % interval: both weighted alike in every resample."""
    if run.key != plain.key:
        raise CdkitError("two runs are compared on the same samples, resamples and seed only")
    return _estimate(
        run.values[metric] - plain.values[metric], run.draws[metric] - plain.draws[metric]
    )


def compare(
    run: Run,
    plain: Run,
    *,
    resamples: int = RESAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> dict[str, Comparison]:
    """Every metric (in `only`, or all) that both runs have, side by side."""
    pairs = paired(run, plain)
    theirs_too = checked(plain, only)[1]
    shared = [name for name in checked(run, only)[1] if name in theirs_too]
    ours = resample(run, resamples=resamples, seed=seed, only=shared)
    theirs = resample(plain, resamples=resamples, seed=seed, only=shared)
    p_values = swap_tests(run, plain, shared, draws=draws, seed=seed)
    images = len(pairs[0][0].images)
    found = {}
    for metric in shared:
        changed = transitions(run, plain, metric) if len(pairs) == 1 else None
        gained, lost = changed or (None, None)
        found[metric] = Comparison(
            run=ours.estimate(metric),
            plain=theirs.estimate(metric),
            difference=difference(ours, theirs, metric),
            p=p_values[metric],
            gained=gained,
            lost=lost,
            mcnemar=None if changed is None else mcnemar(*changed),
            error=standard_error(ours.by_image[metric] - theirs.by_image[metric], images),
            step=_step(pairs[0][0], metric) / len(pairs),
        )
    return found


def transitions(run: Run, plain: Run, metric: str) -> tuple[int, int] | None:
    """How many answers gained and lost the property that the metric is the share of.

    Counted over all seeds, of which a run of one stands beside each of the other's; None where the
    metric is no plain share.
    """
    gained = lost = 0
    for ours, theirs in paired(run, plain):
        column = ours.binary.get(metric)
        if column is None:
            return None
        change = ours.columns[column] - theirs.columns[column]
        gained, lost = gained + int(np.sum(change > 0)), lost + int(np.sum(change < 0))
    return gained, lost


def _step(tally: Tally, metric: str) -> float:
    """What one more 1 in the column of a plain share moves the metric by; 0 for others."""
    column = tally.binary.get(metric)
    if column is None:
        return 0.0
    sums = {name: np.array([values.sum()]) for name, values in tally.columns.items()}
    more = sums | {column: sums[column] + 1}
    of = tally.sums[metric]
    return float(abs(of(more)[0] - of(sums)[0]))


def _estimate(value: float, draws: Float[np.ndarray, " resamples"]) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _mean_values(run: Run, names: Sequence[str]) -> dict[str, float]:
    ones = np.ones((1, len(run[0].images)))
    found = [tally.at(ones, names) for tally in run]
    return {name: float(np.mean([values[name][0] for values in found])) for name in names}
