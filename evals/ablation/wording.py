"""Numbers and headings as all tables and plots write them."""

from cdkit.evals.ablation.results import direction, scale
from cdkit.evals.statistics import Estimate

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
}
ARROWS = {1: " ↑", -1: " ↓", 0: ""}
MINUS = "\N{MINUS SIGN}"


def heading(metric: str) -> str:
    """The column's title with its unit, and an arrow to the better side."""
    unit = " %" if scale(metric) == 100 else ""
    plain = metric.removesuffix(".score") if metric.endswith(".score") else metric
    return HEADINGS.get(metric, plain.replace("_", " ") + unit) + ARROWS[direction(metric)]


def number(value: float, metric: str) -> str:
    return f"{value * scale(metric):.1f}".replace("-", MINUS)


def interval(estimate: Estimate, metric: str) -> str:
    return f"[{number(estimate.low, metric)}, {number(estimate.high, metric)}]"


def difference(estimate: Estimate, metric: str) -> str:
    """`+4.0 [2.5, 5.5]`: in points where the metric is a share."""
    value, low, high = (
        f"{v * scale(metric):+.1f}" for v in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]".replace("-", MINUS)


def p_value(p: float | None) -> str:
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
