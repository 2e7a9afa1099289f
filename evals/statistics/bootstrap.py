"""Bootstrap intervals of a run's metrics, and of the difference of two runs.

Questions about one image are not independent, so images are resampled. A run is a sequence of
tallies, one a seed (greedy decoding: one); its value is the mean over its seeds. Intervals cover
the choice of images and, where a run has several, of seeds; they do not cover the training of the
one model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.statistics.defaults import RESAMPLES
from cdkit.evals.statistics.significance import Run, blocks, checked

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % percentile interval, in the metric's unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Resampled:
    """The metrics of one run as they are, and in every resample.

    Args:
        values: Metric -> its value on all images, the mean over seeds.
        draws: Metric -> its value in each resample of images and seeds.
        by_image: The same with images resampled and the seeds as they are.
        key: What the resamples were drawn from; two runs can be subtracted resample by resample if
            their keys are equal.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Float[np.ndarray, " resamples"]]
    by_image: Mapping[str, Float[np.ndarray, " resamples"]]
    key: tuple[object, ...]

    def estimate(self, metric: str) -> Estimate:
        """The metric with its 95 % interval."""
        return _estimate(self.values[metric], self.draws[metric])


def resample(
    run: Run, *, resamples: int = RESAMPLES, seed: int = 0, only: Collection[str] | None = None
) -> Resampled:
    """Bootstrap the metrics of a run.

    A resample draws as many images as there are, with replacement, and (independently) as many
    seeds as there are; the metric is computed for each drawn seed on the drawn images and averaged.
    The image weights follow from `seed`, `resamples` and the number of images alone, so that two
    runs on the same samples, with however many seeds each, are paired.

    Args:
        run: One tally for each seed, all of the same samples.
        resamples: How many resamples to draw.
        seed: The seed of the resampling.
        only: The metrics to compute; by default all that every tally has.

    Returns:
        The metrics and their resamples.

    Raises:
        CdkitError: The run is empty, its tallies are of different samples, it lacks a metric, or
            `resamples` is below 1.
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
    """The difference `run - plain` of a metric with its paired interval.

    Args:
        run: The resampled metrics of one run.
        plain: Those of the other, with the same samples, resamples and seed.
        metric: A metric that both have.

    Returns:
        The difference with its 95 % interval; each resample weights both runs alike.

    Raises:
        CdkitError: The two were not resampled alike.
    """
    if run.key != plain.key:
        raise CdkitError("two runs are compared on the same samples, resamples and seed only")
    return _estimate(
        run.values[metric] - plain.values[metric], run.draws[metric] - plain.draws[metric]
    )


def _estimate(value: float, draws: Float[np.ndarray, " resamples"]) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _mean_values(run: Run, names: Sequence[str]) -> dict[str, float]:
    ones = np.ones((1, len(run[0].images)))
    found = [tally.at(ones, names) for tally in run]
    return {name: float(np.mean([values[name][0] for values in found])) for name in names}
