"""Numbers and headings as all tables and figures write them."""

import math

from cdkit.evals.reports.results import KINDS, direction, scale
from cdkit.evals.statistics.bootstrap import Estimate

HEADINGS = {
    "accuracy": "accuracy %",
    "f1": "F1 %",
    "yes_ratio": "yes ratio %",
    "auc": "AUC of p(yes) %",
    "matched_accuracy": "accuracy at matched yes-rate %",
    "unknown": "unknown",
    "chair_s": "CHAIR_s %",
    "chair_i": "CHAIR_i %",
    "recall": "recall %",
    "mean_length": "length, words",
    "truncated": "truncated",
    "distinct_1": "Distinct-1 %",
    "distinct_2": "Distinct-2 %",
    "repetition_4": "repeated 4-grams %",
    "f_beta": "F_0.2 %",
    "chair": "CHAIR %",
    "cover": "Cover %",
    "hal": "Hal %",
    "cog": "Cog %",
    "chance": "random guess %",
}
ARROWS = {1: " ↑", -1: " ↓", 0: ""}
SIDES = {1: "↑ higher is better", -1: "↓ lower is better", 0: ""}
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
"""Where a method has no value."""


def how_to_read(base: str) -> str:
    """What the marks and intervals of tables mean whose differences are taken to `base`."""
    return (
        f"Differences to {base} under the same decode mode, with paired 95 % bootstrap intervals,"
        f" resampled by image and seed; {base}'s own row: its value and interval. ▲ ▼:"
        f" significantly better or worse than {base} (sign-flip test by image, Holm over the table"
        " of that mode with all its metrics, p < .05); ★ the best of a column, where that test"
        " says so. The intervals cover images and seeds, not the training of the one model."
    )


def heading(metric: str) -> str:
    """The column's title with its unit, and an arrow to the better side."""
    unit = " %" if scale(metric) == 100 else ""
    name, _, kind = metric.rpartition(".")
    plain = name if name and kind in KINDS else metric
    return HEADINGS.get(metric, plain.replace("_", " ") + unit) + ARROWS[direction(metric)]


def title_of(metric: str) -> str:
    """The heading's words alone, for sentences."""
    return heading(metric).rstrip(" ↑↓%")


def side(metric: str) -> str:
    """Which side of a metric is better, in words; empty where neither is."""
    return SIDES[direction(metric)]


def number(value: float, metric: str) -> str:
    """In the metric's unit; a dash for what is no number."""
    if not math.isfinite(value):
        return DASH
    return f"{value * scale(metric):.1f}".replace("-", MINUS)


def interval(estimate: Estimate, metric: str) -> str:
    return f"[{number(estimate.low, metric)}, {number(estimate.high, metric)}]"


def signed(value: float, metric: str) -> str:
    """`+4.0`: in points where the metric is a share."""
    if not math.isfinite(value):
        return DASH
    return f"{value * scale(metric):+.1f}".replace("-", MINUS)


def signed_interval(estimate: Estimate, metric: str) -> str:
    return f"[{signed(estimate.low, metric)}, {signed(estimate.high, metric)}]"


def difference(estimate: Estimate, metric: str) -> str:
    """`+4.0 [+2.5, +5.5]`."""
    return f"{signed(estimate.value, metric)} {signed_interval(estimate, metric)}"


def p_value(p: float | None) -> str:
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
