"""Results by hand, whose names and texts are as hostile as a file or a model can make them."""

import io

import numpy as np
from PIL import Image

from cdkit.evals.reports.results import (
    AttentionOverlay,
    Cell,
    Costs,
    Curve,
    Example,
    Figure,
    Gallery,
    LayerHeatmap,
    MethodRow,
    Results,
    SharedAnswer,
    Table,
    TextTable,
)
from cdkit.evals.statistics.bootstrap import Estimate

SCRIPT = "<script>alert('x')</script>"
METHODS = (
    "plain",
    SCRIPT,
    "=1+1",
    r"$\frac$ _^&%#{}~\end",
    "_hidden",
    "[a]*",
    "'quoted",
    "中文 <b>",
)
METRICS = ("accuracy", "yes_ratio", "auc", "unknown")
MANIFEST = {
    "name": f"trial {SCRIPT}",
    "about": f"about {SCRIPT}",
    "date": "2026-11-22",
    "wall_seconds": 12.3,
    "model": {"name": SCRIPT},
    "platform": {"machine": "x86_64", "cores": 2},
    "world": None,
    "summary": {"prompt": f"USER: <image>\n{SCRIPT} ASSISTANT:"},
}


def cell(rng: np.random.Generator, *, base: bool, verdict: str = "") -> Cell:
    value, apart = rng.random(), rng.random() - 0.5
    estimate = Estimate(value, value - 0.1 / 3, value + 0.1 / 3)
    if base:
        return Cell(estimate)
    return Cell(
        estimate,
        Estimate(apart, apart - 0.01, apart + 0.01),
        p=rng.random() / 7,
        p_holm=rng.random(),
        verdict=verdict,
        best=verdict == "better",
        gained=int(rng.integers(99)),
        lost=3,
        mcnemar=1 / 3,
    )


def table(benchmark: str = f"pope {SCRIPT}", mode: str = "greedy") -> Table:
    """One method lacks an AUC; the last but one is absent from the mode."""
    rng = np.random.default_rng(0)
    rows = {}
    for number, name in enumerate(m for m in METHODS if m != "'quoted"):
        metrics = METRICS if name != "=1+1" else ("accuracy", "yes_ratio", "unknown")
        verdict = ("", "better", "worse")[number % 3]
        cells = {m: cell(rng, base=name == "plain", verdict=verdict) for m in metrics}
        rows[name] = MethodRow(name, cells)
    return Table(
        benchmark,
        mode,
        seeds=1,
        images=5,
        samples=20,
        metrics=METRICS,
        sections={f"ours {SCRIPT}": METHODS[:4], "-theirs": METHODS[4:]},
        rows=rows,
        absent={"'quoted": ("beam",)},
        shifted=((0.0, 0.5), (0.5, 0.9), (1.0, 0.5)),
    )


def gallery() -> Gallery:
    with io.BytesIO() as file:
        Image.new("RGB", (64, 48), "teal").save(file, "PNG")
        picture = file.getvalue()
    rng = np.random.default_rng(1)
    heatmaps = tuple(
        LayerHeatmap(
            name, f"branch {SCRIPT}: {what}", mask=what == "mask", layers=rng.random((3, 16)) / 16
        )
        for name in METHODS[:2]
        for what in ("attention", "mask")
    )
    overlay = AttentionOverlay(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8), (4, 4), heatmaps)
    said = (
        SharedAnswer(f"no {SCRIPT}", METHODS[:3], True, note=SCRIPT),
        SharedAnswer("word" * 60, METHODS[3:5], False),
        SharedAnswer("", METHODS[5:], None),
    )
    example = Example(
        f"id {SCRIPT}",
        "mended",
        f"is there {SCRIPT} ?",
        SCRIPT,
        picture,
        "image/png",
        said,
        overlay,
    )
    return Gallery(f"pope {SCRIPT}", f"rule {SCRIPT}", (example,), notes=(f"note {SCRIPT}",))


def results() -> Results:
    band = tuple(Estimate(y, y - 1, y + 1) for y in (70.0, 80.0, 75.0))
    curves = tuple(Curve(name, (1.0, 2.0, 3.0), band) for name in METHODS)
    figure = Figure(SCRIPT, "$x", SCRIPT, curves, ticks=("$", SCRIPT, "_"), note=SCRIPT)
    costs = Costs(
        {name: Estimate(1.0 + i, 0.5 + i, 2.0 + i) for i, name in enumerate(METHODS[:4])}, SCRIPT
    )
    text_table = TextTable(SCRIPT, (SCRIPT, "n_1"), (("&", "=1+1"), ("[b]", SCRIPT)), (SCRIPT,))
    return Results(
        (table(), table(mode="sample")),
        (figure,),
        (gallery(),),
        text_tables=(text_table,),
        costs=costs,
    )
