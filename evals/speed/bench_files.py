"""What a bench leaves in its folder."""

import json
from pathlib import Path

from cdkit.evals.speed.bench_run import Bench
from cdkit.evals.speed.bench_tables import markdown
from cdkit.evals.speed.plot import draw


def write_bench(bench: Bench, folder: Path) -> None:
    """bench.json with every time that was taken, bench.md, bench.svg and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bench.to_dict(), indent=1) + "\n"
    (folder / "bench.json").write_text(text, encoding="utf-8", newline="\n")
    (folder / "bench.md").write_text(markdown(bench.to_dict()), encoding="utf-8", newline="\n")
    draw(bench, [folder / "bench.svg", folder / "bench.png"])
