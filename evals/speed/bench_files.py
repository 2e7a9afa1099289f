"""What a bench leaves in its folder."""

import json
from pathlib import Path

from cdkit.evals.reports import svg
from cdkit.evals.speed.bench_run import Bench
from cdkit.evals.speed.bench_tables import markdown
from cdkit.evals.speed.plot import draw


def write_bench(bench: Bench, folder: Path) -> None:
    """bench.json with every time that was taken, bench.md and bench.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("bench.json", json.dumps(bench.to_dict(), indent=1) + "\n"),
        ("bench.md", markdown(bench.to_dict())),
        ("bench.svg", svg.document(draw(bench))),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
