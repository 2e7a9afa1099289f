"""Curves: metrics against a swept parameter, misses against the place in the image sequence."""

from collections.abc import Mapping, Sequence

import numpy as np

from cdkit.evals.ablation.placement import PlacedQuestion
from cdkit.evals.ablation.plan import SweepPoint
from cdkit.evals.benchmarks.yes_no import strict
from cdkit.evals.reports.results import Curve, Figure, scale
from cdkit.evals.statistics.bootstrap import Estimate, resample
from cdkit.interfaces.sample import Answer
from cdkit.interfaces.tally import OfSums, Tally

SHOWN = ("accuracy", "auc", "yes_ratio")
"""What a sweep shows where the benchmark has it, else its first metric."""


def sweep_figures(
    benchmark: str,
    points: Sequence[tuple[SweepPoint, Tally]],
    plain: Tally,
    *,
    resamples: int,
) -> tuple[Figure, ...]:
    """A figure for each (method, parameter), greedy decoding."""
    tallies = [plain, *(tally for _, tally in points)]
    shared = [m for m in plain.metrics if all(m in tally.metrics for tally in tallies)]
    metrics = tuple(m for m in SHOWN if m in shared) or tuple(shared[:1])
    base = resample([plain], resamples=resamples, only=metrics)
    figures = []
    for method, parameter in dict.fromkeys((p.method, p.parameter) for p, _ in points):
        mine = [(p, t) for p, t in points if (p.method, p.parameter) == (method, parameter)]
        drawn = [resample([t], resamples=resamples, only=metrics) for _, t in mine]
        numeric = all(isinstance(p.value, int | float) for p, _ in mine)
        figures.append(
            Figure(
                title=f"{method} by {parameter}, {benchmark}, greedy",
                x_label=parameter,
                y_label="%",
                curves=tuple(
                    Curve(
                        metric.replace("_", " "),
                        tuple(float(p.value) if numeric else i for i, (p, _) in enumerate(mine)),
                        tuple(_shown(d.estimate(metric), metric) for d in drawn),
                    )
                    for metric in metrics
                ),
                ticks=() if numeric else tuple(str(p.value) for p, _ in mine),
                reference=_shown(base.estimate(metrics[0]), metrics[0]),
                reference_label=f"plain, {metrics[0]}",
                note=f"Every other parameter as in the table's {method}. Bands: 95 % bootstrap by "
                "image, each point for itself.",
            )
        )
    return tuple(figures)


def position_figure(
    benchmark: str,
    places: Sequence[PlacedQuestion],
    answers: Mapping[str, Mapping[str, Answer]],
    *,
    bins: int,
    resamples: int,
) -> Figure:
    """The share of present objects that a method denies, by their place; greedy answers.

    `answers`: method -> sample id -> answer. An unknown answer is a miss too.
    """
    bin_of = np.minimum((np.array([p.at for p in places]) * bins).astype(int), bins - 1)
    names = [str(b) for b in range(bins) if (bin_of == b).any()]  # no object there, no share
    curves = []
    for method, by_id in answers.items():
        missed = np.array([strict(by_id[p.sample.id].text, "yes") != "yes" for p in places])
        tally = Tally(
            tuple(p.sample for p in places),
            {f"in {b}": (bin_of == int(b)).astype(float) for b in names}
            | {f"missed {b}": ((bin_of == int(b)) & missed).astype(float) for b in names},
            {b: _share(f"missed {b}", f"in {b}") for b in names},
        )
        drawn = resample([tally], resamples=resamples)
        curves.append(
            Curve(
                method,
                tuple((int(b) + 0.5) / bins for b in names),
                tuple(_shown(drawn.estimate(b), "missed") for b in names),
            )
        )
    return Figure(
        title=f"Misses by position in the image sequence, {benchmark}, greedy",
        x_label="place of the object among the image tokens (0 first, 1 last)",
        y_label="present objects denied, %",
        curves=tuple(curves),
        note=f"{len(places)} questions about objects that stand once in their image, in {bins} "
        "bins of raster order. Bands: 95 % bootstrap by image.",
    )


def _share(part: str, whole: str) -> OfSums:
    """One column's sum over another's; 0 where a resample has nothing there."""
    return lambda sums: sums[part] / np.maximum(sums[whole], 1)


def _shown(estimate: Estimate, metric: str) -> Estimate:
    by = scale(metric)
    return Estimate(by * estimate.value, by * estimate.low, by * estimate.high)
