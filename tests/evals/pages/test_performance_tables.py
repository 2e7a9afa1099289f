"""The measured tables of docs/performance.md are those of the files in docs/measured."""

import json
from pathlib import Path
from typing import Any

from cdkit.evals.pages.performance_tables import BLOCK, COMMAND, GOALS, MEASURED, PAGE, filled

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / PAGE).read_text("utf-8")
MARKS = "<!-- {0}: begin -->\n<!-- {0}: end -->\n"


def test_the_page_is_not_stale() -> None:
    assert filled(TEXT, ROOT / MEASURED) == TEXT, f"{PAGE} is stale: run `{COMMAND}` in the root"


def test_every_file_has_its_place() -> None:
    names = [found["name"] for found in BLOCK.finditer(TEXT)]
    assert len(names) == len(set(names))
    assert {path.name for path in (ROOT / MEASURED).iterdir()} <= set(names)
    assert {"goals", *(goal.file for goal in GOALS)} <= set(names)


def row(variant: str, method: str | None, ratio: float, operators: float) -> dict[str, Any]:
    spread = {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
    measures = "first_token", "per_token", "whole_answer"
    return {
        "variant": variant,
        "method": method,
        "seconds": dict.fromkeys(measures, spread),
        "ratio": dict.fromkeys(measures, spread),
        "tokens_per_second": spread,
        "peak_bytes": 10**6,
        "peak_ratio": ratio,
        "operators_per_token": operators,
        "kernels_per_token": None,
        "profile": None,
    }


def test_what_a_file_fills_in(tmp_path: Path) -> None:
    rows = [row("plain", None, 1.0, 200.0), row("two-pass", "cmac", 2.2, 500.0)]
    rows.append(row("cdkit", "cmac", 1.25, 240.0))
    section = {"batch": 1, "text_tokens": 50, "image_tokens": 576, "new_tokens": 64}
    bench = {
        "settings": {"shape": "deep", "rounds": 3},
        "machine": {
            "device": "cpu",
            "device_name": "some CPU",
            "dtype": "float32",
            "threads": 1,
            "versions": {"torch": "2", "transformers": "5", "cdkit": "1"},
        },
        "started": "2026-11-26T01:54:30+00:00",
        "sections": [section | {"one_candidate": {}, "rows": rows}],
    }
    (tmp_path / "bench_deep.json").write_text(json.dumps(bench), encoding="utf-8")
    names = "goals", "bench_deep.json", "bench_7b.json"
    page = filled("before\n" + "".join(map(MARKS.format, names)) + "after\n", tmp_path)
    assert filled(page, tmp_path) == page
    assert page.startswith("before\n") and page.endswith("after\n")
    cells = "| `cmac` | 2.20 [2.10, 2.30] |  | **1.25 [1.15, 1.35]** | 1.30 |"
    assert f"| launches dominate (`deep`) | a further token {cells}" in page
    assert "| operators a token | `cmac` | 2.50 |  | **1.20** | 1.35 |" in page
    assert "| a further token | `vcd` |  |  | **not measured** | 1.15 |" in page
    assert "deep, float32, some CPU, 1 thread, 3 rounds, torch 2" in page
    table = "| cdkit | cmac | 1.25 [1.15, 1.35] | 1.25 [1.15, 1.35] | 1.25 [1.15, 1.35] | 1.25 |"
    assert f"{table} 1.25 | 240 (1.20) |" in page
    assert "Not measured: there is no `docs/measured/bench_7b.json`." in page
