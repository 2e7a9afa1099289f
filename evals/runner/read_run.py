"""A finished run, read back from its folder."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError, check_file
from cdkit.evals.benchmarks.benchmark_files import read_source as read_text
from cdkit.evals.runner.batches import asked_samples
from cdkit.evals.runner.checked import NUMBER, ROWS, TABLE, TEXT, WHOLE, checked
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.predictions import ADVICE, Prediction, Predictions, read_predictions
from cdkit.evals.runner.run_folder import MANIFEST, PREDICTIONS, SETTINGS
from cdkit.evals.runner.run_settings import settings_of
from cdkit.interfaces.benchmark import BENCHMARKS, Answer, Benchmark, sha256
from cdkit.methods.presets import build

MANIFEST_TYPES: Mapping[str, str] = {
    "settings": TABLE,
    "parts": TABLE,
    "model": TABLE,
    "pieces": ROWS,
    "model_seconds": NUMBER,
    "tokens": WHOLE,
}
BENCHMARK_TYPES: Mapping[str, str] = {"benchmark": TEXT, "sources": TABLE}
PART_TYPES: Mapping[str, str] = {"images": TEXT, "benchmark": TABLE}


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
    recorded = read_manifest(folder)
    settings = settings_of(recorded["settings"], str(folder / MANIFEST))
    read = read_predictions(folder / PREDICTIONS)
    rows: dict[str, dict[int | None, dict[str, Answer]]] = {name: {} for name in recorded["parts"]}
    errors: dict[str, dict[str, str]] = {name: {} for name in recorded["parts"]}
    benchmarks = {n: _benchmark(n, p["benchmark"], folder) for n, p in recorded["parts"].items()}
    for part, seed, name, row in _rows(read):
        if part not in benchmarks:
            raise CdkitError(
                f"{row.where} is of {part}, which is no part of the run ({', '.join(benchmarks)}): "
                f"{ADVICE}"
            )
        if seed not in settings.draws:
            drawn = ", ".join(map(str, settings.draws))
            raise CdkitError(f"{row.where} has seed {seed}, and the run has {drawn}: {ADVICE}")
        by_id = rows[part].setdefault(seed, {})
        if row.answer is None:
            errors[part][name] = str(row.error)
        else:
            by_id[name] = row.answer
    unasked: dict[str, frozenset[str]] = {}
    for name, benchmark in benchmarks.items():
        asked = {sample.id for sample in asked_samples(benchmark, settings.limit)}
        known = frozenset(sample.id for sample in benchmark.samples())
        unasked[name] = known - asked
        for _, _, each, row in _rows({name: read.get(name, {})}):
            if each not in asked:
                what = "was not asked" if each in known else "is not there"
                raise CdkitError(f"{row.where} answers {each} of {name}, which {what}: {ADVICE}")
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run, its types checked."""
    path = folder / MANIFEST
    if not path.is_file():
        known = (folder / SETTINGS).is_file()
        raise CdkitError(
            f"{folder} holds a run that is not finished: go on with cdkit eval --resume"
            if known
            else f"{folder} holds no run of cdkit eval (no {MANIFEST})"
        )
    advice = "run it again with --resume, which writes this file anew"
    content = checked(read_text(path).json(unique=True), MANIFEST_TYPES, str(path), advice)
    for name, part in content["parts"].items():
        where = f"{path}: parts.{name}"
        benchmark = checked(part, PART_TYPES, where, advice)["benchmark"]
        checked(benchmark, BENCHMARK_TYPES, f"{where}.benchmark", advice)
        hashes = dict.fromkeys(benchmark["sources"], TEXT)
        checked(benchmark["sources"], hashes, f"{where}.benchmark.sources", advice)
    return content


def _rows(read: Predictions) -> Iterator[tuple[str, int | None, str, Prediction]]:
    for part, by_seed in read.items():
        for seed, by_id in by_seed.items():
            for name, row in by_id.items():
                yield part, seed, name, row


def _benchmark(part: str, recorded: Mapping[str, Any], folder: Path) -> Benchmark:
    kind = BENCHMARKS[recorded["benchmark"]]
    where = f"{part} of {folder}"
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for path, digest in recorded["sources"].items():
        advice = f"restore it, or run {folder.name} again on the files there are"
        try:
            check_file(Path(path))
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
