"""The answers of one part of a run, picked from its predictions.jsonl to be scored anew."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import read_source, rows
from cdkit.evals.runner.predictions import (
    Answerer,
    Parts,
    Prediction,
    Predictions,
    Seed,
    read_predictions,
)
from cdkit.evals.runner.questions import asked_samples
from cdkit.evals.runner.read_run import read_manifest
from cdkit.evals.runner.run_folder import MANIFEST
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.sample import Answer


@dataclass(frozen=True)
class RunAnswers:
    """Answers to a benchmark's questions.

    Args:
        by_seed: Seed (None: nothing was drawn) -> sample id -> answer.
        without: Samples that are left out under every seed: not asked, or failed.
        notes: What a reader must know of it.
    """

    by_seed: Mapping[Seed, Mapping[str, Answer]]
    without: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def is_predictions(path: Path) -> bool:
    """Whether a file holds rows of `cdkit eval`."""
    first = next(iter(rows(read_source(path))), None)
    return first is not None and {"part", "id", "seed", "method"} <= first[1].keys()


def run_answers(
    path: Path,
    benchmark: Benchmark,
    questions: object,
    part: str | None,
    seed: int | None,
    who: Mapping[str, str] | None = None,
) -> RunAnswers:
    """Pick the answers to a benchmark's questions.

    Args:
        path: The predictions.jsonl of a run; a manifest.json beside it says what was asked.
        benchmark: The benchmark.
        questions: What errors call its questions: their file.
        part: The part; None: the one that was run on these questions.
        seed: The seed; None: all that there are.
        who: Which "model", "method" and "mode", where the run has several.

    Returns:
        The answers by seed.

    Raises:
        CdkitError: A file is damaged, there is no such part, method or seed, it is not clear which
            is meant, or the part was run on other questions.
    """
    read = of_answerer(path, read_predictions(path), who or {})
    manifest = read_manifest(path.parent) if (path.parent / MANIFEST).is_file() else None
    chosen = _part(path, read, manifest, benchmark, questions, part)
    by_seed = read[chosen]
    if seed is not None and seed not in by_seed:
        drawn = ", ".join("none" if each is None else str(each) for each in by_seed)
        raise CdkitError(f"{path} has no seed {seed} of {chosen}: it has {drawn}")
    picked = {s: by_id for s, by_id in by_seed.items() if seed in (None, s)}
    samples = frozenset(sample.id for sample in benchmark.samples())
    for row_id, row in _rows(picked.values()):
        if row_id not in samples:
            raise CdkitError(f"{row.where} answers {row_id}, which is not in {questions}")
    failed = frozenset(name for name, row in _rows(picked.values()) if row.answer is None)
    limit = None if manifest is None else manifest["settings"].get("limit")
    asked = {sample.id for sample in asked_samples(benchmark, limit)}
    if manifest is not None and all(
        len(by_id) == manifest["parts"][chosen].get("asked") for by_id in picked.values()
    ):  # it may have had a list of images, of which the benchmark here knows nothing
        asked = {name for name, _ in _rows(picked.values())}
    unasked = samples - asked
    notes = [f"the answers of {chosen}" + ("" if seed is None else f", seed {seed}")]
    if seed is None and len(picked) > 1:
        notes.append(f"the mean over the seeds {', '.join(map(str, picked))}")
    if unasked and limit is not None:
        notes.append(f"{len(unasked):,} of {len(samples):,} were not asked (--limit {limit})")
    if failed:
        notes.append(f"{len(failed):,} of {len(samples):,} failed and are left out")
    answers = {
        s: {name: row.answer for name, row in by_id.items() if row.answer is not None}
        for s, by_id in picked.items()
    }
    return RunAnswers(answers, unasked | failed, tuple(notes))


def of_answerer(path: Path, read: Predictions, who: Mapping[str, str]) -> Parts:
    """The rows of the one model, method and decode mode that is meant."""
    left: list[Answerer] = list(read)
    for key, value in who.items():
        known = list(dict.fromkeys(getattr(each, key) for each in left))
        if value not in known:
            raise CdkitError(f"{path} has no {key} {value}: it has {', '.join(known)}")
        left = [each for each in left if getattr(each, key) == value]
    for key in ("model", "method", "mode"):
        known = list(dict.fromkeys(getattr(each, key) for each in left))
        if len(known) > 1:
            raise CdkitError(f"{path} has the {key}s {', '.join(known)}: say which by --{key}")
    return read[left[0]]


def _rows(seeds: Iterable[Mapping[str, Prediction]]) -> Iterable[tuple[str, Prediction]]:
    return (item for by_id in seeds for item in by_id.items())


def _part(
    path: Path,
    read: Parts,
    manifest: Mapping[str, Any] | None,
    benchmark: Benchmark,
    questions: object,
    part: str | None,
) -> str:
    """The part that is asked for, or the one part that was run on the benchmark's files."""
    if part is not None and part not in read:
        raise CdkitError(f"{path} has no part {part}: it has {', '.join(read)}")
    if manifest is None:
        if part is None and len(read) > 1:
            raise CdkitError(f"{path} has the parts {', '.join(read)}: say which by --part")
        return part or next(iter(read))
    hashes = set(benchmark.sources().values())
    kind = BENCHMARKS.name_of(type(benchmark))
    shared: dict[str, int] = {
        name: len(hashes & set(recorded["benchmark"]["sources"].values()))
        for name, recorded in manifest["parts"].items()
        if name in read and recorded["benchmark"]["benchmark"] == kind
    }
    most = max(shared.values(), default=0)
    best = [name for name, count in shared.items() if count and count == most]
    if part is None and len(best) == 1:
        return best[0]
    if part is None and best:
        raise CdkitError(f"{path} has the parts {', '.join(best)}: say which by --part")
    if part is None or not shared.get(part):
        what = f"{part} of {path} was" if part else f"no part of {path} ({', '.join(read)}) was"
        raise CdkitError(
            f"{what} run on the files of {questions} (by their SHA-256): give the questions that "
            "the run was asked"
        )
    return part
