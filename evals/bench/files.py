"""What a bench leaves in its folder."""

import json
from pathlib import Path

from cdkit.evals.bench.job import Bench
from cdkit.evals.bench.plot import draw
from cdkit.evals.bench.shown import markdown


def write(bench: Bench, folder: Path) -> None:
    """bench.json with every time that was taken, bench.md, bench.svg and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bench.to_dict(), indent=1) + "\n"
    (folder / "bench.json").write_text(text, encoding="utf-8")
    (folder / "bench.md").write_text(markdown(bench), encoding="utf-8")
    draw(bench, [folder / "bench.svg", folder / "bench.png"])
