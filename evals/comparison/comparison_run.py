"""`cdkit compare`: finished runs in, tables, tests and a page out."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.comparison import (
    changes,
    common_facts,
    comparable,
    comparison_galleries,
    lmms_logs,
    logged_tallies,
)
from cdkit.evals.comparison.changes import Change
from cdkit.evals.comparison.run_names import NamedRuns
from cdkit.evals.comparison.tallies import seeds, tallies
from cdkit.evals.reports import glossary, method_tables, page_files
from cdkit.evals.reports.numbers import numbers
from cdkit.evals.reports.results import POINTS, SIGNIFICANT, Results, Table, TextTable
from cdkit.evals.runner.example_gallery import OverlaySource
from cdkit.evals.runner.progress import Stages
from cdkit.evals.statistics.defaults import RESAMPLES
from cdkit.evals.statistics.power import POWER
from cdkit.evals.statistics.significance import checked
from cdkit.interfaces.tally import Tally
from cdkit.registry import unknown

TABLES = "intervals and tests"
NAMED = 6
"""Runs that the page's head names, at most."""
GALLERY = 4
"""Questions of each part that the page shows, at most."""


@dataclass(frozen=True, eq=False)
class ComparedRuns:
    """Runs, what was found, and what a reader must know beside it."""

    runs: NamedRuns
    results: Results
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    resamples: int
    started: datetime
    seconds: float
    benchmarks: Mapping[str, Mapping[str, object]]
    """Part -> its settings."""

    @property
    def base(self) -> str:
        return next(iter(self.runs))


def compare_runs(
    runs: NamedRuns,
    *,
    allow_missing: bool = False,
    across_models: bool = False,
    metrics: Sequence[str] = (),
    resamples: int = RESAMPLES,
    gallery: int = GALLERY,
    overlays: OverlaySource | None = None,
    stages: Stages | None = None,
) -> ComparedRuns:
    """A table for each benchmark that all runs have, each run against the first.

    `metrics` are those to show and to test: Holm's family is what is shown. By default all of the
    base, but for readings by a second parser, which would test the same answers twice. `gallery`
    questions of each part are shown, with the attention that `overlays` gives for them. What may
    not be compared is a CdkitError before anything is computed.
    """
    started, clock, stages = datetime.now(UTC), perf_counter(), stages or Stages()
    scored = _logged if any(run.logged for run in runs.values()) else _scored
    notes, parts = scored(runs, allow_missing=allow_missing, across_models=across_models)
    base = next(iter(runs))
    shown = _shown(parts, base, metrics)
    tables, changed = list[Table](), list[Change]()
    stages.start(TABLES, len(parts))
    for part in parts:
        table = method_tables.method_table(
            part.name,
            part.mode,
            part.tallies,
            sections={"runs": tuple(runs)},
            show=shown[part.name],
            base=base,
            resamples=resamples,
        )
        tables.append(table)
        changed += changes.changes(table, part.tallies)
        stages.advance(TABLES)
    text_tables = [
        *(changes.tests(table, changed, notes=table is tables[-1]) for table in tables),
        *([changes.costs(runs)] if any(run.seconds for run in runs.values()) else []),
    ]
    if notes:
        rows = tuple((note,) for note in notes)
        text_tables.insert(
            0, TextTable("Beside the method", ("what differs or is left out",), rows)
        )
    of_parts = {part.name: part.tallies for part in parts if part.name in runs[base].parts}
    results = Results(
        tuple(tables),
        galleries=comparison_galleries.galleries(runs, of_parts, count=gallery, overlays=overlays),
        text_tables=tuple(text_tables),
        costs=comparison_galleries.costs(runs),
    )
    seconds = perf_counter() - clock
    about = {part.name: part.about for part in parts}
    return ComparedRuns(
        runs, results, tuple(changed), tuple(notes), resamples, started, seconds, about
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """A benchmark, or a task of lmms-eval, that all runs answered.

    `about` is what the manifest says of it; metrics that start with one of `again` read the same
    answers a second time.
    """

    name: str
    mode: str
    tallies: Mapping[str, Sequence[Tally]]
    about: Mapping[str, object]
    again: tuple[str, ...] = ()


def _scored(
    runs: NamedRuns, *, allow_missing: bool, across_models: bool
) -> tuple[list[str], list[_Part]]:
    notes = [*comparable.check(runs, across_models=across_models)]
    found, base = list[_Part](), next(iter(runs.values()))
    every = {
        part: tallies(runs, part, allow_missing=allow_missing) for part in comparable.shared(runs)
    }
    for part, (of_runs, left_out) in every.items():
        notes += left_out
        notes += [
            f"{part}, {name}{'' if seed is None else f', seed {seed}'}: {text}"
            for name, by_seed in of_runs.items()
            for seed, tally in zip(seeds(runs[name].parts[part]), by_seed, strict=True)
            for text in doubts(tally, runs[name].parts[part].answers[seed])
        ]
        benchmark = base.parts[part].benchmark
        again = tuple(f"{parser}." for parser in benchmark.versions())
        found.append(_Part(part, base.mode, of_runs, benchmark.describe(), again))
    return notes, found


def _logged(
    runs: NamedRuns, *, allow_missing: bool, across_models: bool
) -> tuple[list[str], list[_Part]]:
    """The same of logs of lmms-eval, which must hold the same documents."""
    notes, found = [*logged_tallies.check(runs, across_models=across_models)], list[_Part]()
    notes.append(
        "the unit of intervals and tests is the document: a log does not say which documents are "
        "about one image, and where several are, the differences are less certain than shown"
    )
    base = next(iter(runs.values()))
    for task in logged_tallies.shared(runs):
        of_runs, said = logged_tallies.tallies(runs, task)
        notes += said
        settings = base.logged[task].settings
        each = {name: (tally,) for name, tally in of_runs.items()}
        found.append(_Part(task, lmms_logs.mode_of(settings), each, settings))
    return notes, found


def new_folder(output: Path | None) -> Path:
    """Where a comparison goes: `output`, or a folder with the date; one that exists is refused."""
    folder = output or Path("runs") / datetime.now().strftime("comparison-%Y%m%d-%H%M%S")
    if folder.exists():
        raise CdkitError(f"{folder} is there already: give another --output, or remove it first")
    return folder


def write(compared: ComparedRuns, folder: Path) -> None:
    """comparison.json, and the page with what stands beside it, in a folder of their own."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise CdkitError(f"{folder} appeared meanwhile: give another --output") from None
    facts = manifest(compared, folder.name)
    text = json.dumps(data(compared), indent=1, ensure_ascii=False)
    (folder / "comparison.json").write_text(text, encoding="utf-8", newline="\n")
    page_files.write(folder, _described(compared), facts)


def _described(compared: ComparedRuns) -> Results:
    """The results with what the methods of the runs are, as the runs' manifests say."""
    made = {name: run.manifest.get("method") for name, run in compared.runs.items()}
    resolved = {
        name: method["resolved"]
        for name, method in made.items()
        if isinstance(method, Mapping) and isinstance(method.get("resolved"), Mapping)
    }
    base = compared.runs[compared.base]
    benchmarks = [part.benchmark for part in base.parts.values()]
    return glossary.described(compared.results, resolved, benchmarks)


def data(compared: ComparedRuns) -> dict[str, object]:
    """Every number with its origin, as plain data."""
    return {
        "base": compared.base,
        "runs": _runs(compared.runs),
        "notes": list(compared.notes),
        "statistics": _statistics(compared),
        **numbers(compared.results),
        "changes": [asdict(change) for change in compared.changes],
    }


def manifest(compared: ComparedRuns, name: str) -> dict[str, object]:
    """What the page shows of how it was made."""
    runs = compared.runs
    models = dict.fromkeys(comparable.model_of(run) for run in runs.values())
    names = list(runs)[1:]
    others = ", ".join(names) if len(names) <= NAMED else f"{len(names)} runs"
    common, own = common_facts.split({name: run.manifest for name, run in runs.items()})
    return {
        "kind": "comparison",
        "name": name,
        "about": f"{others} against {compared.base}.",
        "date": compared.started.isoformat(timespec="seconds"),
        "wall_seconds": compared.seconds,
        "versions": {each: importlib.metadata.version(each) for each in ("cdkit", "numpy")},
        "platform": {"machine": platform.machine(), "cores": os.cpu_count()},
        "model": {"name": ", ".join(models)},
        "world": next(
            (r.manifest["world"] for r in runs.values() if r.manifest.get("world")), None
        ),
        "common_numbers": comparable.same_seeds(runs),
        "benchmarks": dict(compared.benchmarks),
        "manifest of every run": common,
        "runs": {
            name: {**run_facts, "manifest beside that": own[name]}
            for name, run_facts in _runs(runs).items()
        },
        "statistics": _statistics(compared),
        "notes": list(compared.notes),
        "summary": {
            "base": compared.base,
            **_places(runs),
            "beside the method": "; ".join(compared.notes) or "nothing differs that was recorded",
            "statistics": "; ".join(f"{k}: {v}" for k, v in _statistics(compared).items()),
        },
    }


def _places(runs: NamedRuns) -> dict[str, str]:
    """Which runs are of which folder, a line for each folder."""
    names: dict[Path, list[str]] = {}
    for name, run in runs.items():
        names.setdefault(run.folder, []).append(name)
    found = dict[str, str]()
    for folder, of_folder in names.items():
        if len(of_folder) == 1:
            found[f"run {of_folder[0]}"] = str(folder)
        else:
            found[f"runs of {folder}"] = ", ".join(of_folder)
    return found


def _shown(parts: Sequence[_Part], base: str, metrics: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Part -> those of `metrics` that the base has there: one each at least, and none in vain."""
    known = {  # MME's totals before its tasks: the first of a table is its headline
        part.name: sorted(
            checked(part.tallies[base], None)[1], key=lambda name: not name.startswith(POINTS)
        )
        for part in parts
    }
    every = {metric for names in known.values() for metric in names}
    for metric in metrics:
        if metric not in every:
            raise CdkitError(f"--metrics: {unknown('metric', metric, every)}")
    shown = {
        part.name: [m for m in metrics if m in known[part.name]]
        or [m for m in known[part.name] if not m.startswith(part.again)]
        for part in parts
    }
    for name, names in shown.items():
        if metrics and not set(names) & set(metrics):
            raise CdkitError(
                f"--metrics names none of {name}: add one of its own, {', '.join(known[name])}"
            )
    return {name: tuple(names) for name, names in shown.items()}


def _runs(runs: NamedRuns) -> dict[str, dict[str, object]]:
    return {
        name: {
            "folder": str(run.folder),
            "method": run.method,
            "mode": run.mode,
            "model": comparable.model_of(run),
            "seeds": {part: seeds(run.parts[part]) for part in comparable.shared(runs)},
            "seconds": run.seconds,
            "tokens": run.tokens,
        }
        for name, run in runs.items()
    }


def _statistics(compared: ComparedRuns) -> dict[str, object]:
    return {
        "interval": "paired percentile bootstrap, 95 %, images (and seeds) resampled",
        "resamples": compared.resamples,
        "test": "sign-flip by image, Holm over each table",
        "level": SIGNIFICANT,
        "power": POWER,
    }
