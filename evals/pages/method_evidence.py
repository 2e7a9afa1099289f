"""What each preset costs and shows: `python -m cdkit.evals.pages.method_evidence RUN`.

RUN is the folder of a finished `cdkit ablate methods`. The operators of a token are counted on the
embedded model, and its time is measured on a deep and narrow one, which takes ten minutes of a
machine that does nothing else.
"""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import torch

import cdkit
from cdkit.evals.pages.methods_page import presets_of_cdkit
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.speed.bench_runners import BenchRunner, GenerateRunner
from cdkit.evals.speed.bench_settings import CDKIT, DEEP, MICRO, BenchSettings
from cdkit.evals.speed.counting import counted
from cdkit.evals.speed.measuring import measure
from cdkit.evals.speed.prompts import make_prompts
from cdkit.evals.speed.shapes import build
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName
from cdkit.methods.method import Method

FILE = "method_evidence.json"
PAGE = Path("evals/pages") / FILE
METRICS: Mapping[str, tuple[str, str]] = {
    "pope": ("pope_adversarial", "accuracy"),
    "chair": ("chair", "chair_s"),
}
"""Name in the file -> benchmark and metric of the grid."""
TEXT_TOKENS, NEW_TOKENS = 24, 9
TIMED_TOKENS = 25
TOGETHER = 6
"""So many methods are timed in turn beside plain decoding."""


@dataclass(frozen=True)
class ShownDifference:
    """A difference to the plain model under greedy decoding, as a share of one."""

    difference: float
    low: float
    high: float
    verdict: str
    """As the grid's table says: "better", "worse", or nothing."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one preset."""

    operators: float | None
    """PyTorch operators that Python calls for one token, over those of plain decoding; None where
    the preset does not decode greedily, or needs a file."""
    seconds: float | None
    """The time of a token over that of plain decoding; None as for the operators."""
    shown: Mapping[str, ShownDifference]
    """Key of `METRICS` -> what the grid found; without those that it did not run."""


def evidence() -> Mapping[str, Evidence]:
    """What the packaged file holds, by preset."""
    text = (resources.files("cdkit.evals.pages") / FILE).read_text("utf-8")
    return {
        name: Evidence(
            own["operators"],
            own["seconds"],
            {key: ShownDifference(**cell) for key, cell in own["shown"].items()},
        )
        for name, own in json.loads(text)["presets"].items()
    }


def operators(names: Iterable[str]) -> dict[str, float | None]:
    """Count the operators of a token on the embedded model, one prompt, for each preset."""
    settings = BenchSettings(shape=MICRO, methods=())
    model, processor = build(settings, torch.float32, torch.device("cpu"))
    prompts = make_prompts(model, batch=1, text_tokens=TEXT_TOKENS, new_tokens=NEW_TOKENS, seed=0)

    def of(method: Method | None) -> float:
        runner = GenerateRunner(model, prompts, method, processor, True)
        return counted(runner, model.device, further=NEW_TOKENS - 1).operators

    plain = of(None)
    found: dict[str, float | None] = {}
    for name in names:
        method = cdkit.load(name)
        runs = "greedy" in method.modes and not method.lacks
        found[name] = round(of(method) / plain, 2) if runs else None
    return found


def seconds(names: Sequence[str], *, rounds: int = 9) -> dict[str, float]:
    """Measure the time of a token after the first over that of plain decoding, for each preset.

    On the shape `deep` of `cdkit bench`, where calls are the cost, with one prompt and one thread.
    The median of the rounds; plain decoding runs anew in every round of a few methods.
    """
    settings = BenchSettings(shape=DEEP, methods=())
    model, processor = build(settings, torch.float32, torch.device("cpu"))
    prompts = make_prompts(model, batch=1, text_tokens=TEXT_TOKENS, new_tokens=TIMED_TOKENS, seed=0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    try:
        for start in range(0, len(names), TOGETHER):
            group = names[start : start + TOGETHER]
            runners: dict[VariantName, BenchRunner] = {
                VariantName(CDKIT, name): GenerateRunner(
                    model, prompts, cdkit.load(name), processor, True
                )
                for name in group
            }
            runners[PLAIN_NAME] = GenerateRunner(model, prompts)
            taken = measure(runners, model, new_tokens=TIMED_TOKENS, rounds=rounds)
            stock = taken.pop(PLAIN_NAME).times
            for own, name in zip(taken.values(), group, strict=True):
                ratios = (a.per_token / b.per_token for a, b in zip(own.times, stock, strict=True))
                found[name] = round(median(ratios), 2)
    finally:
        torch.set_num_threads(before)
    return found


def shown_in(run: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The differences of a finished grid, by preset."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with (run / "tables" / "tables.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for key, (benchmark, metric) in METRICS.items():
                here = (row["benchmark"], row["metric"], row["mode"]) == (
                    benchmark,
                    metric,
                    "greedy",
                )
                if here and row["difference"]:
                    found.setdefault(row["method"], {})[key] = {
                        "difference": round(float(row["difference"]), 4),
                        "low": round(float(row["difference_low"]), 4),
                        "high": round(float(row["difference_high"]), 4),
                        "verdict": row["verdict"],
                    }
    return found


def main(arguments: list[str]) -> None:
    """Write the file."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "tables" / "tables.csv").is_file():
        sys.exit(
            "usage: python -m cdkit.evals.pages.method_evidence RUN, from the root of a checkout; "
            "RUN is the folder of a finished `cdkit ablate methods`"
        )
    names = [entry.name for entry in presets_of_cdkit()]
    counts, shown = operators(names), shown_in(Path(arguments[0]))
    times = {PLAIN: 1.0} | seconds([n for n in names if counts[n] is not None and n != PLAIN])
    presets = {
        name: {
            "operators": counts[name],
            "seconds": times.get(name),
            "shown": shown.get(name, {}),
        }
        for name in sorted(names)
    }
    if not PAGE.parent.is_dir():
        sys.exit(f"error: {PAGE} is written from the root of a checkout; {Path.cwd()} is none")
    PAGE.write_text(json.dumps({"presets": presets}, indent=1) + "\n", "utf-8", newline="\n")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
