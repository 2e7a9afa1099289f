"""A finished run, read back from its folder."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError, check_file
from cdkit.evals.benchmarks.benchmark_files import read_source as read_text
from cdkit.evals.runner.checked import NUMBER, ROWS, TABLE, TEXT, WHOLE, checked
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.modes import SAMPLE
from cdkit.evals.runner.moved_folder import with_paths_of_now
from cdkit.evals.runner.predictions import ADVICE, Answerer, Parts, Prediction, read_predictions
from cdkit.evals.runner.questions import asked_samples
from cdkit.evals.runner.run_folder import MANIFEST, PREDICTIONS, SETTINGS
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, sha256
from cdkit.interfaces.sample import Answer
from cdkit.methods.plain_data import build

MANIFEST_TYPES: Mapping[str, str] = {
    "settings": TABLE,
    "parts": TABLE,
    "methods": TABLE,
    "models": TABLE,
    "pieces": ROWS,
    "seeds": TABLE,
    "model_seconds": NUMBER,
    "tokens": WHOLE,
}
BENCHMARK_TYPES: Mapping[str, str] = {"benchmark": TEXT, "sources": TABLE}
PART_TYPES: Mapping[str, str] = {"images": TEXT, "benchmark": TABLE}


def read_run(folder: Path) -> tuple[FinishedRun, ...]:
    """Read a finished run; its benchmarks are built anew from the run's files.

    Args:
        folder: The run's folder.

    Returns:
        One run for each model, method and decode mode, with its questions and answers. Points of
        sweeps are left out.

    Raises:
        CdkitError: The folder holds no finished run, or a benchmark's file is gone or has changed
            since, so that metrics would not be those of the answers.
    """
    recorded = with_paths_of_now(read_manifest(folder), folder)
    read = read_predictions(folder / PREDICTIONS)
    benchmarks = {n: _benchmark(n, p["benchmark"], folder) for n, p in recorded["parts"].items()}
    found = []
    for who, parts in read.items():
        for where, known in (("models", who.model), ("methods", who.method)):
            if known not in recorded[where] and where == "models":
                row = next(_rows(parts))[3]
                raise CdkitError(
                    f"{row.where} is of the model {known}, which is none of the run's "
                    f"({', '.join(recorded[where])}): {ADVICE}"
                )
        if who.method in recorded["methods"]:
            mine = benchmarks
            if "parts" in recorded["models"][who.model]:  # which a protocol asks otherwise
                own = recorded["models"][who.model]["parts"]
                mine = {n: _benchmark(n, p["benchmark"], folder) for n, p in own.items()}
            found.append(_of_answerer(who, parts, recorded, mine, folder))
    return tuple(found)


def _of_answerer(
    who: Answerer,
    parts: Parts,
    recorded: Mapping[str, Any],
    benchmarks: Mapping[str, Benchmark],
    folder: Path,
) -> FinishedRun:
    draws = tuple(recorded["seeds"]["sampling"]) if who.mode == SAMPLE else (None,)
    limit = recorded["settings"].get("limit")
    rows: dict[str, dict[int | None, dict[str, Answer]]] = {name: {} for name in benchmarks}
    errors: dict[str, dict[str, str]] = {name: {} for name in benchmarks}
    for part, seed, name, row in _rows(parts):
        if part not in benchmarks:
            raise CdkitError(
                f"{row.where} is of {part}, which is no part of the run ({', '.join(benchmarks)}): "
                f"{ADVICE}"
            )
        if seed not in draws:
            drawn = ", ".join(map(str, draws))
            raise CdkitError(f"{row.where} has seed {seed}, and the run has {drawn}: {ADVICE}")
        by_id = rows[part].setdefault(seed, {})
        if row.answer is None:
            errors[part][name] = str(row.error)
        else:
            by_id[name] = row.answer
    unasked: dict[str, frozenset[str]] = {}
    for name, benchmark in benchmarks.items():
        asked = {sample.id for sample in asked_samples(benchmark, limit)}
        known = frozenset(sample.id for sample in benchmark.samples())
        unasked[name] = known - asked
        for _, _, each, row in _rows({name: parts.get(name, {})}):
            if each not in asked:
                what = "was not asked" if each in known else "is not there"
                raise CdkitError(f"{row.where} answers {each} of {name}, which {what}: {ADVICE}")
        errors[name] |= dict.fromkeys(unasked[name], f"not asked (--limit {limit})")
    return FinishedRun(
        folder=folder,
        model=who.model,
        method=who.method,
        mode=who.mode,
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
            if rows[name] or errors[name].keys() - unasked[name]
        },
        manifest=_view(recorded, who),
        seconds=_seconds(recorded, who),
        tokens=sum(row.answer.tokens for _, _, _, row in _rows(parts) if row.answer is not None),
    )


def _view(recorded: Mapping[str, Any], who: Answerer) -> dict[str, Any]:
    """The manifest as it is for one model and one method."""
    pieces = [piece for piece in recorded["pieces"] if piece.get("model") in (None, who.model)]
    return {
        **recorded,
        "model": recorded["models"][who.model],
        "method": {"name": who.method, **_method(recorded, who)},
        "pieces": pieces,
    }


def _method(recorded: Mapping[str, Any], who: Answerer) -> Mapping[str, Any]:
    methods = recorded["models"][who.model].get("methods", recorded["methods"])
    found: Mapping[str, Any] = methods[who.method]
    return found


def _seconds(recorded: Mapping[str, Any], who: Answerer) -> float:
    """Seconds in the model; 0 where methods shared passes, so that none has seconds of its own."""
    for each in recorded.get("seconds", ()):
        if (each["model"], each["method"], each["mode"]) == (who.model, who.method, who.mode):
            return float(each["seconds"])
    return 0.0


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run, its types checked."""
    path = folder / MANIFEST
    if not path.is_file():
        known = (folder / SETTINGS).is_file()
        raise CdkitError(
            f"{folder} holds a run that is not finished: go on with --resume"
            if known
            else f"{folder} holds no run of cdkit eval or cdkit ablate (no {MANIFEST})"
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


def _rows(read: Parts) -> Iterator[tuple[str, int | None, str, Prediction]]:
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
