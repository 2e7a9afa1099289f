"""The pure passes over a finished journal: predictions in the samples' order, then metrics."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.runner.batches import asked_samples
from cdkit.evals.runner.fingerprints import RunPart, data_hash
from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.interfaces.benchmark import Answer, Benchmark

Seed = int | None


@dataclass(frozen=True, eq=False)
class AnsweredPart:
    """A part with what came of its samples."""

    name: str
    benchmark: Benchmark
    images: Path
    rows: Mapping[Seed, Mapping[str, JournalRow]]
    """Seed -> id of each sample that was asked -> answer or error, in the samples' order."""

    @property
    def asked(self) -> tuple[str, ...]:
        """The ids of the samples that were asked."""
        return tuple(next(iter(self.rows.values())))

    @property
    def errors(self) -> dict[str, str]:
        """Sample id -> why it has no answer, under one seed or more."""
        found = [(n, row.error) for rows in self.rows.values() for n, row in rows.items()]
        return {name: error for name, error in found if error is not None}

    def answers(self, seed: Seed) -> dict[str, Answer]:
        """What is an answer."""
        return {n: row.answer for n, row in self.rows[seed].items() if row.error is None}


def collect(
    parts: Sequence[RunPart],
    rows: Mapping[Key, JournalRow],
    *,
    method: str,
    seeds: Sequence[Seed],
    limit: int | None,
) -> list[AnsweredPart]:
    """Every sample's row; a sample without one raises: the run is not finished."""
    found = []
    for part in parts:
        data = data_hash(part.benchmark)
        ids = [sample.id for sample in asked_samples(part.benchmark, limit)]
        lacking = sum((data, name, method, seed) not in rows for seed in seeds for name in ids)
        if lacking:
            raise CdkitError(
                f"{lacking} of {len(ids) * len(seeds)} answers of {part.name} are not there yet: "
                "go on with cdkit eval --resume"
            )
        by_seed = {s: {name: rows[data, name, method, s] for name in ids} for s in seeds}
        found.append(AnsweredPart(part.name, part.benchmark, part.images, by_seed))
    return found


def write_predictions(path: Path, parts: Sequence[AnsweredPart]) -> None:
    """One row an answer: part by part, seed by seed, in the samples' order."""
    write_whole(path, "".join(_prediction_lines(parts)))


def _prediction_lines(parts: Sequence[AnsweredPart]) -> Iterator[str]:
    for part in parts:
        for seed, rows in part.rows.items():
            for name, row in rows.items():
                record: dict[str, Any] = {"part": part.name, "id": name, "seed": seed}
                if row.error is None:
                    record |= {**vars(row.answer), "margin": row.margin}
                else:
                    record["error"] = row.error
                yield json.dumps(record, ensure_ascii=False) + "\n"


def metrics(parts: Sequence[AnsweredPart]) -> dict[str, Any]:
    """By part: each seed's metrics and their mean, and over how many samples they are.

    Samples that were not asked, or failed under any seed, are left out under every seed.
    """
    return {part.name: _metrics(part) for part in parts}


def _metrics(part: AnsweredPart) -> dict[str, Any]:
    samples = part.benchmark.samples()
    out = {s.id for s in samples}.difference(part.asked) | part.errors.keys()
    record: dict[str, Any] = {
        "samples": len(samples),
        "asked": len(part.asked),
        "failed": len(part.errors),
    }
    if len(out) == len(samples):
        return record | {"scored": 0, "by_seed": [], "mean": {}, "warnings": []}
    tallies = {s: part.benchmark.tally(part.answers(s), without=out) for s in part.rows}
    scores = {seed: tally.values() for seed, tally in tallies.items()}
    warnings = {s: doubts(tally, part.answers(s)) for s, tally in tallies.items()}
    first = next(iter(scores.values()))
    return record | {
        "scored": len(next(iter(tallies.values())).samples),
        "by_seed": [{"seed": seed, "metrics": values} for seed, values in scores.items()],
        "mean": {n: sum(v[n] for v in scores.values()) / len(scores) for n in first},
        "warnings": [
            text if seed is None else f"seed {seed}: {text}"
            for seed, texts in warnings.items()
            for text in texts
        ],
    }


def write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """The file has its old content or all of the new, whenever the machine stops."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
