"""From tallies to tables: each method against the base, under the same decode mode."""

import math
from collections.abc import Mapping, Sequence

from cdkit.evals.reports.results import SIGNIFICANT, Cell, MethodRow, Table, direction, scale
from cdkit.evals.runner.modes import GREEDY, PLAIN
from cdkit.evals.statistics.bootstrap import resample
from cdkit.evals.statistics.power import detectable
from cdkit.evals.statistics.ranking import threshold_curve
from cdkit.evals.statistics.run_comparison import Comparison, compare
from cdkit.evals.statistics.significance import holm
from cdkit.interfaces.tally import Tally

Runs = Mapping[str, Sequence[Tally]]
"""Method -> one tally a seed (greedy: one)."""


def method_table(
    benchmark: str,
    mode: str,
    runs: Runs,
    *,
    sections: Mapping[str, Sequence[str]],
    show: Sequence[str] = (),
    absent: Mapping[str, tuple[str, ...]] | None = None,
    refused: Mapping[str, str] | None = None,
    failed: int = 0,
    base: str = PLAIN,
    resamples: int = 2000,
) -> Table:
    """The table of one benchmark and mode. Holm's family is all of its tests.

    A metric that is neither good nor bad (the yes ratio, a length) has an interval but no test. One
    that a method's tallies lack, or whose value is no number, has no cell. `absent` maps methods
    that are not defined for the mode to those that they are defined for, and `refused` those that
    the model cannot run to the reason; `failed` samples are left out of all tallies. Differences
    are taken to the method `base`.
    """
    absent, refused, tally = absent or {}, refused or {}, runs[base][0]
    metrics = tuple(show) or tally.metrics
    of_base = resample(runs[base], resamples=resamples, only=metrics)
    known = [m for m in metrics if math.isfinite(of_base.values[m])]
    compared = {
        method: {
            m: found
            for m, found in compare(
                run, runs[base], resamples=resamples, only=_had(run, metrics)
            ).items()
            if math.isfinite(found.difference.value)
        }
        for method, run in runs.items()
        if method != base
    }
    tested = [(method, m) for method, of in compared.items() for m in of if direction(m)]
    p_values = [compared[method][metric].p for method, metric in tested]
    adjusted = dict(zip(tested, holm(p_values), strict=True))
    top = {
        m: max(
            direction(m) * value
            for value in (of_base.values[m], *(c[m].run.value for c in compared.values() if m in c))
        )
        for m in metrics
    }
    images, level = len(tally.images), SIGNIFICANT / max(1, len(tested))
    rows = {base: MethodRow(base, {m: Cell(of_base.estimate(m)) for m in known})} | {
        method: MethodRow(
            method,
            {
                m: _cell(c, m, adjusted.get((method, m)), top[m], images, level)
                for m, c in of.items()
            },
        )
        for method, of in compared.items()
    }
    return Table(
        benchmark,
        mode,
        seeds=max(map(len, runs.values())),
        images=images,
        samples=len(tally.samples),
        metrics=metrics,
        sections={
            title: tuple(
                name for name in names if name in rows or name in absent or name in refused
            )
            for title, names in sections.items()
        },
        rows=rows,
        absent=absent,
        refused=refused,
        failed=failed,
        shifted=_shifted(tally) if mode == GREEDY else (),
        base=base,
        tests=len(tested),
    )


def _had(run: Sequence[Tally], metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of the metrics that every tally of the run has."""
    return tuple(m for m in metrics if all(m in tally.metrics for tally in run))


def _shifted(tally: Tally) -> tuple[tuple[float, float], ...]:
    if not {"yes_score", "label"} <= tally.columns.keys():
        return ()
    ratios, right = threshold_curve(tally.columns["yes_score"], tally.columns["label"])
    return tuple(zip(ratios.tolist(), right.tolist(), strict=True))


def _cell(
    comparison: Comparison,
    metric: str,
    p_holm: float | None,
    top: float,
    images: int,
    strict: float,
) -> Cell:
    sign, verdict = direction(metric), ""
    if p_holm is not None and p_holm < SIGNIFICANT:
        verdict = "better" if sign * comparison.difference.value > 0 else "worse"

    def least(level: float) -> float | None:
        if not sign:
            return None
        most = 1.0 if scale(metric) == 100 else math.inf  # shares differ by all at most
        return detectable(comparison.error, images, level=level, step=comparison.step, most=most)

    return Cell(
        comparison.run,
        comparison.difference,
        p=comparison.p if sign else None,
        p_holm=p_holm,
        verdict=verdict,
        best=verdict == "better" and sign * comparison.run.value == top,
        gained=comparison.gained,
        lost=comparison.lost,
        mcnemar=comparison.mcnemar,
        detectable=least(SIGNIFICANT),
        detectable_holm=least(strict),
    )
