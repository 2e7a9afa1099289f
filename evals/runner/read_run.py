"""A finished run, read back from its folder."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
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

RESTORE = "restore the file, or run again with --resume"
MANIFEST_KEYS: Mapping[str, type | UnionType] = {
    "settings": dict,
    "parts": dict,
    "tokens": int,
    "model_seconds": int | float,
}
ERROR_ROW: Mapping[str, type | UnionType] = {
    "part": str,
    "id": str,
    "seed": int | None,
    "error": str,
}
ANSWER_ROW: Mapping[str, type | UnionType] = {
    "part": str,
    "id": str,
    "seed": int | None,
    "text": str,
    "yes_score": int | float | None,
    "truncated": bool,
    "tokens": int,
}
"""What each key of a row holds; there are others, which scoring does not need."""


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
        with located(where):
            part, name, seed, answer = _row(found, recorded["parts"])
            by_seed = rows[part].setdefault(seed, {})
            if name in by_seed:
                raise CdkitError(f"{name} of {part} is there a second time: {RESTORE}")
            if isinstance(answer, Answer):
                by_seed[name] = answer
            else:
                errors[part][name] = answer
    benchmarks = {n: _benchmark(n, p["benchmark"], folder) for n, p in recorded["parts"].items()}
    for name, benchmark in benchmarks.items():
        asked = {sample.id for sample in asked_samples(benchmark, settings.limit)}
        others = [sample.id for sample in benchmark.samples() if sample.id not in asked]
        errors[name] |= dict.fromkeys(others, f"not asked (--limit {settings.limit})")
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
            )
            for name, benchmark in benchmarks.items()
        },
        manifest=recorded,
        seconds=float(recorded["model_seconds"]),
        tokens=int(recorded["tokens"]),
    )


def _row(
    row: Mapping[str, object], parts: Mapping[str, object]
) -> tuple[str, str, int | None, Answer | str]:
    """(part, sample id, seed, answer or error) of a row of the predictions."""
    kinds = ERROR_ROW if "error" in row else ANSWER_ROW
    for key, kind in kinds.items():
        value = row.get(key, ...)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            shown = "lacks" if value is ... else f"has {value!r} as"
            raise CdkitError(f"this row of {PREDICTIONS} {shown} {key!r}: {RESTORE}")
    given: Mapping[str, Any] = row
    if given["part"] not in parts:
        raise CdkitError(f"{given['part']!r} is no part of the run ({', '.join(parts)}): {RESTORE}")
    answer = given.get("error")
    if answer is None:
        values = {field.name: given[field.name] for field in fields(Answer)}
        score = values["yes_score"]
        answer = Answer(**values | {"yes_score": None if score is None else float(score)})
    return given["part"], given["id"], given["seed"], answer


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
    damaged = _fault(content)
    if damaged or not isinstance(content, dict):
        raise CdkitError(
            f"{path} is not what cdkit eval writes ({damaged}): run it again with --resume"
        )
    return content


def _fault(content: object) -> str:
    """What is wrong with a manifest, or nothing."""
    if not isinstance(content, dict):
        return "it holds no JSON object"
    for key, kind in MANIFEST_KEYS.items():
        value = content.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{key!r} is {value!r}" if key in content else f"{key!r} is not there"
    for name, part in content["parts"].items():
        benchmark = part.get("benchmark") if isinstance(part, dict) else None
        whole = (
            isinstance(benchmark, dict)
            and isinstance(part.get("images"), str)
            and isinstance(benchmark.get("benchmark"), str)
            and isinstance(benchmark.get("sources"), dict)
            and all(isinstance(digest, str) for digest in benchmark["sources"].values())
        )
        if not whole:
            return f"its part {name!r} lacks its benchmark, the files of it, or the images"
    return "" if content["parts"] else "it has no part"


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
