"""The rows of predictions.jsonl, checked: each sample of a part stands once under each seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import json_rows, located, read_source
from cdkit.evals.runner.checked import FLAG, NUMBER, TEXT, WHOLE, checked
from cdkit.interfaces.sample import Answer

Seed = int | None
ADVICE = "the file is not as `cdkit eval` wrote it; --resume on the run writes it anew"
KEYS: Mapping[str, str] = {
    **dict.fromkeys(("model", "part", "method", "mode", "id"), TEXT),
    "seed": f"{WHOLE}?",
}
ERROR: Mapping[str, str] = {"error": TEXT}
ANSWER: Mapping[str, str] = {
    "text": TEXT,
    "yes_score": f"{NUMBER}?",
    "truncated": FLAG,
    "tokens": WHOLE,
}


@dataclass(frozen=True)
class Prediction:
    """One row: an answer, or why there is none."""

    where: str
    answer: Answer | None
    error: str | None


@dataclass(frozen=True)
class Answerer:
    """Who gave answers, and how they were decoded."""

    model: str
    method: str
    mode: str


Parts = Mapping[str, Mapping[Seed, Mapping[str, Prediction]]]
"""Part -> seed -> sample id -> row."""
Predictions = Mapping[Answerer, Parts]


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Args:
        path: The file.

    Returns:
        Its rows by answerer, part, seed and sample, in the file's order.

    Raises:
        CdkitError: The file cannot be read, a value has another type than it must have, or a
            sample stands twice under a seed.
    """
    found: dict[Answerer, dict[str, dict[Seed, dict[str, Prediction]]]] = {}
    for where, value in json_rows(read_source(path)):
        row = checked(value, KEYS, where, ADVICE)
        who = Answerer(row["model"], row["method"], row["mode"])
        by_id = found.setdefault(who, {}).setdefault(row["part"], {}).setdefault(row["seed"], {})
        if row["id"] in by_id:
            raise CdkitError(
                f"{where} answers {row['id']} of {row['part']} (seed {row['seed']}) a second time, "
                f"after {by_id[row['id']].where}: {ADVICE}"
            )
        if "error" in row:
            checked(row, ERROR, where, ADVICE)
            by_id[row["id"]] = Prediction(where, None, row["error"])
            continue
        checked(row, ANSWER, where, ADVICE)
        with located(where):
            answer = Answer(row["text"], row["yes_score"], row["truncated"], row["tokens"])
        by_id[row["id"]] = Prediction(where, answer, None)
    return found
