"""Two runs on the same questions, metric by metric: values, difference, interval and tests.

The image is the unit of everything here but McNemar's test, which takes questions for independent.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cdkit.evals.statistics.bootstrap import Estimate, difference, resample
from cdkit.evals.statistics.defaults import RESAMPLES
from cdkit.evals.statistics.power import standard_error
from cdkit.evals.statistics.significance import DRAWS, Run, checked, mcnemar, paired, swap_tests
from cdkit.interfaces.tally import Tally


@dataclass(frozen=True)
class Comparison:
    """One metric of a run compared with a plain run.

    Args:
        run: The metric of the run.
        plain: The metric of the plain run.
        difference: `run - plain`, with a paired interval.
        p: The two-sided p of the sign-flip test by image.
        gained: How many answers became right (of CHAIR_s: began to hallucinate); None for a metric
            that is not a plain share of answers, and for runs of several seeds.
        lost: How many answers ceased to be right, or None as above.
        mcnemar: The exact p of McNemar's test of the two, which treats questions as independent,
            or None as above.
        error: The standard error of the difference over images, for the given seeds.
        step: How much one answer of one seed changes the metric if it is a plain share, else 0.
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


def compare(
    run: Run,
    plain: Run,
    *,
    resamples: int = RESAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> dict[str, Comparison]:
    """Compare two runs on the same samples.

    Args:
        run: One tally for each seed.
        plain: The run to compare with; as many seeds as `run`, or one.
        resamples: Bootstrap resamples behind the intervals.
        draws: Draws of the sign-flip test.
        seed: The seed of resamples and draws.
        only: The metrics to compare; by default all that both runs have.

    Returns:
        Metric -> comparison.

    Raises:
        CdkitError: The runs are of different samples or cannot be paired by seeds, or a metric is
            missing.
    """
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
    """Count the answers that gained and that lost the property that the metric is the share of.

    Args:
        run: One tally for each seed.
        plain: The run to compare with; as many seeds, or one, which is paired with each.
        metric: A metric of both.

    Returns:
        (gained, lost), summed over all seeds; None if the metric is not a plain share of answers.
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
