"""P-values for the difference of two runs, and their correction over a table.

Questions about one image are not independent, so the test swaps whole images; McNemar's exact test
stands beside it to show what ignoring that would claim.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from cdkit.errors import CdkitError
from cdkit.interfaces.tally import Tally

Run = Sequence[Tally]
"""One tally for each seed; greedy decoding has one."""

DRAWS = 9999
EXACT = 14
"""Up to this many differing images, all 2**n swappings are computed."""
_CELLS = 2_000_000  # weights held at a time, so that memory does not grow with the draws


def swap_tests(
    run: Run, plain: Run, metrics: Collection[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """Two-sided p of the paired sign-flip test by image, for any metrics.

    If the two runs were alike, an image's answers (all of them, in all seeds) could have come from
    either; so each image is swapped or not, both metrics are computed anew, and p is the share of
    swappings whose absolute difference is at least the observed one. For a mean this is the
    sign-flip test of the images' differences. Images with equal answers do not matter; up to
    `EXACT` others all swappings are computed, else `draws` of them are drawn and the observed one
    is counted with them: (1 + hits) / (1 + draws).

    Args:
        run: One tally for each seed.
        plain: The run to compare with; as many seeds, or one, which is paired with each.
        metrics: Metrics that both have.
        draws: How many swappings to draw.
        seed: The seed of the drawing.

    Returns:
        Metric -> p in (0, 1].

    Raises:
        CdkitError: The runs are of different samples or cannot be paired by seeds, a metric is
            missing, or `draws` is below 1.
    """
    if draws < 1:
        raise CdkitError(f"a test by {draws} draws says nothing: draw 1 or more")
    pairs = paired(run, plain)
    both = set(checked(run, metrics)[1]) & set(checked(plain, metrics)[1])
    joined = [_joined(a, b) for a, b in pairs]
    images = len(pairs[0][0].images)
    differ = np.flatnonzero(np.any([_differing(a, b) for a, b in pairs], axis=0))
    observed = _swapped(joined, np.ones((1, images)), both)
    exact = len(differ) <= EXACT
    count = 2 ** len(differ) if exact else draws
    generator = np.random.default_rng(seed)
    hits = dict.fromkeys(metrics, 0)
    for start, stop in blocks(count, 2 * images):
        keep = np.ones((stop - start, images))
        if exact:
            keep[:, differ] = (np.arange(start, stop)[:, None] >> np.arange(len(differ))) & 1
        else:
            keep[:, differ] = generator.integers(0, 2, size=(stop - start, len(differ)))
        found = _swapped(joined, keep, both)
        for name in hits:  # equal but for rounding is equal
            least = abs(observed[name][0]) * (1 - 1e-9) - 1e-12
            hits[name] += int(np.count_nonzero(np.abs(found[name]) >= least))
    return {n: h / count if exact else (1 + h) / (1 + count) for n, h in hits.items()}


def swap_test(run: Run, plain: Run, metric: str, *, draws: int = DRAWS, seed: int = 0) -> float:
    """`swap_tests` for one metric."""
    return swap_tests(run, plain, [metric], draws=draws, seed=seed)[metric]


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p of McNemar's test: a fair coin's share of splits at least so uneven.

    It treats questions as independent; beside the test by image it shows how much that matters.

    Args:
        gained: Answers that became right.
        lost: Answers that ceased to be right.

    Returns:
        p in (0, 1].

    Raises:
        ValueError: A count is negative.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"counts cannot be negative: {gained}, {lost}")
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << total))  # whole numbers up to the division: exact


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p-values, in the order given.

    The i-th smallest of m (from 1) becomes the largest of (m - j + 1) p_j over j <= i, at most 1;
    those at or below a level are significant together at that level.

    Args:
        p_values: p-values in [0, 1].

    Returns:
        The adjusted values.

    Raises:
        ValueError: A value is not in [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1: {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return tuple(adjusted)


def checked(run: Run, only: Collection[str] | None) -> tuple[Tally, list[str]]:
    """Check that the tallies of a run are of the same samples and have the metrics.

    Args:
        run: One tally for each seed.
        only: The metrics wanted; None: all that every tally has.

    Returns:
        The first tally, and the metrics in its order.

    Raises:
        CdkitError: The run is empty, its tallies are of different samples, or a metric is missing.
    """
    if not run:
        raise CdkitError("a run without a tally has no metrics: give one tally for each seed")
    if any(tally.samples != run[0].samples for tally in run):
        raise CdkitError("the seeds of a run answered different samples: run them on the same file")
    shared = [name for name in run[0].metrics if all(name in tally.metrics for tally in run)]
    if only is None:
        return run[0], shared
    if absent := sorted(set(only) - set(shared)):
        raise CdkitError(f"the run has no metric {', '.join(absent)}; it has: {', '.join(shared)}")
    return run[0], [name for name in shared if name in only]


def paired(run: Run, plain: Run) -> list[tuple[Tally, Tally]]:
    """Pair the tallies of two runs seed by seed; a run of one seed is paired with each seed.

    Args:
        run: One tally for each seed.
        plain: The other run.

    Returns:
        A pair of tallies for each seed.

    Raises:
        CdkitError: The runs are of different samples, or have different numbers of seeds.
    """
    if checked(run, None)[0].samples != checked(plain, None)[0].samples:
        raise CdkitError("two runs are compared on the same samples only: run both on one file")
    count = max(len(run), len(plain))
    if not {len(run), len(plain)} <= {1, count}:
        raise CdkitError(
            f"runs of {len(run)} and {len(plain)} seeds cannot be paired: use as many, or one"
        )
    return [(run[i % len(run)], plain[i % len(plain)]) for i in range(count)]


def blocks(count: int, images: int) -> Iterator[tuple[int, int]]:
    """Cut `count` rows of image weights into blocks that fit in memory.

    Args:
        count: Rows in all.
        images: Weights in a row.

    Yields:
        (start, stop) of each block.
    """
    size = max(1, _CELLS // images)
    for start in range(0, count, size):
        yield start, min(count, start + size)


def _differing(a: Tally, b: Tally) -> Bool[np.ndarray, " images"]:
    """Which images have unlike numbers in the two tallies."""
    shared = a.columns.keys() & b.columns.keys()
    unlike = np.any([a.columns[name] != b.columns[name] for name in shared], axis=0)
    return np.bincount(a.image_of, weights=unlike, minlength=len(a.images)) > 0


def _joined(a: Tally, b: Tally) -> Tally:
    """Both tallies as one: the images of `a`, then the same images again with `b`'s answers."""
    samples = tuple(
        dataclasses.replace(sample, group=f"{which}:{sample.group}")
        for which, tally in enumerate((a, b))
        for sample in tally.samples
    )
    shared = a.columns.keys() & b.columns.keys()
    columns = {name: np.concatenate([a.columns[name], b.columns[name]]) for name in shared}
    prepared = {name: a.prepared[name] for name in a.prepared if name in b.prepared}
    return Tally(samples, columns, a.sums, prepared=prepared)


def _swapped(
    joined: Sequence[Tally], keep: Float[np.ndarray, "draws images"], only: Collection[str]
) -> dict[str, Float[np.ndarray, " draws"]]:
    """The mean difference of the metrics where an image is kept (1) or swapped (0)."""
    ours, theirs = np.hstack([keep, 1 - keep]), np.hstack([1 - keep, keep])
    parts = [(tally.at(ours, only), tally.at(theirs, only)) for tally in joined]
    return {name: np.mean([a[name] - b[name] for a, b in parts], axis=0) for name in only}
