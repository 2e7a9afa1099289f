"""A finished run, read back from its folder."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import json_rows, located
from cdkit.evals.benchmarks.benchmark_files import read_source as read_text
from cdkit.evals.runner.batches import asked_samples
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.run_folder import MANIFEST, PREDICTIONS, SETTINGS
from cdkit.evals.runner.run_settings import settings_of
from cdkit.interfaces.benchmark import BENCHMARKS, Answer, Benchmark, sha256
from cdkit.methods.presets import build


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run of `cdkit eval`; its benchmarks are built anew from the run's files.

    Args:
        folder: The run's folder.

    Returns:
        The run with its questions, answers and manifest.

    Raises:
        CdkitError: The folder holds no finished run, or a benchmark's file is gone or has changed
            since, so that metrics would not be those of the answers.
    """
    recorded = _manifest(folder)
    settings = settings_of(recorded["settings"], str(folder / MANIFEST))
    rows: dict[str, dict[int | None, dict[str, Answer]]] = {name: {} for name in recorded["parts"]}
    errors: dict[str, dict[str, str]] = {name: {} for name in recorded["parts"]}
    for where, found in json_rows(read_text(folder / PREDICTIONS)):
        row: dict[str, Any] = dict(found)
        with located(where):
            try:
                part, name, seed = row["part"], row["id"], row["seed"]
                by_seed = rows[part].setdefault(seed, {})
                if "error" in row:
                    errors[part][name] = row["error"]
                else:
                    values = {f.name: row[f.name] for f in fields(Answer)}
                    by_seed[name] = Answer(**values)
            except (KeyError, TypeError) as error:
                raise CdkitError(f"this is no row of {PREDICTIONS} ({error!r})") from None
    benchmarks = {n: _benchmark(n, p["benchmark"], folder) for n, p in recorded["parts"].items()}
    unasked: dict[str, frozenset[str]] = {}
    for name, benchmark in benchmarks.items():
        asked = {sample.id for sample in asked_samples(benchmark, settings.limit)}
        unasked[name] = frozenset(s.id for s in benchmark.samples()) - asked
        errors[name] |= dict.fromkeys(unasked[name], f"not asked (--limit {settings.limit})")
    return FinishedRun(
        folder=folder,
        method=settings.shown_method,
        mode=settings.mode,
        parts={
            name: FinishedPart(
                name,
                benchmark,
                Path(recorded["parts"][name]["images"]),
                rows[name],
                errors[name],
                unasked[name],
            )
            for name, benchmark in benchmarks.items()
        },
        manifest=recorded,
        seconds=float(recorded["model_seconds"]),
        tokens=int(recorded["tokens"]),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        known = (folder / SETTINGS).is_file()
        raise CdkitError(
            f"{folder} holds a run that is not finished: go on with cdkit eval --resume"
            if known
            else f"{folder} holds no run of cdkit eval (no {MANIFEST})"
        )
    content = read_text(path).json()
    if not isinstance(content, dict) or not {"settings", "parts", "tokens"} <= content.keys():
        raise CdkitError(f"{path} is not what cdkit eval writes: run it again with --resume")
    return content


def _benchmark(part: str, recorded: Mapping[str, Any], folder: Path) -> Benchmark:
    kind = BENCHMARKS[recorded["benchmark"]]
    where = f"{part} of {folder}"
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for path, digest in recorded["sources"].items():
        advice = f"restore it, or run {folder.name} again on the files there are"
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise CdkitError(
                f"{where} was run on {path}, which cannot be read ({error}): {advice}"
            ) from None
        if sha256(data) != digest:
            raise CdkitError(f"{where} was run on {path}, which has changed since: {advice}")
    made = build(kind, {name: value for name, value in recorded.items() if name in names}, where)
    assert isinstance(made, Benchmark)
    return made
