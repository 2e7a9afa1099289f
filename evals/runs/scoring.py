"""The pure passes over a finished journal: predictions in the samples' order, then metrics."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.benchmark import Answer, Benchmark
from cdkit.errors import CdkitError
from cdkit.evals.runs.identity import Part, data_hash
from cdkit.evals.runs.journal import Key, Row
from cdkit.evals.runs.selected import answered, first_images

Seed = int | None


@dataclass(frozen=True, eq=False)
class Answered:
    """A part with what came of its samples."""

    name: str
    benchmark: Benchmark
    """Over the images that were asked about."""
    images: Path
    rows: Mapping[Seed, Mapping[str, Row]]
    """Seed -> sample id -> answer or error, in the samples' order."""

    @property
    def answers(self) -> dict[Seed, dict[str, Answer]]:
        """Only what is an answer."""
        return {
            seed: {name: row.answer for name, row in rows.items() if row.error is None}
            for seed, rows in self.rows.items()
        }

    @property
    def errors(self) -> dict[str, str]:
        """Sample id -> why it has no answer, under one seed or more."""
        found = [(n, row.error) for rows in self.rows.values() for n, row in rows.items()]
        return {name: error for name, error in found if error is not None}


def collect(
    parts: Sequence[Part],
    rows: Mapping[Key, Row],
    *,
    method: str,
    seeds: Sequence[Seed],
    limit: int | None,
) -> list[Answered]:
    """Every sample's row; a sample without one raises: the run is not finished."""
    found = []
    for part in parts:
        benchmark, data = first_images(part.benchmark, limit), data_hash(part.benchmark)
        ids = [sample.id for sample in benchmark.samples()]
        lacking = sum((data, name, method, seed) not in rows for seed in seeds for name in ids)
        if lacking:
            raise CdkitError(
                f"{lacking} of {len(ids) * len(seeds)} answers of {part.name} are not there yet: "
                "go on with cdkit eval --resume"
            )
        by_seed = {s: {name: rows[data, name, method, s] for name in ids} for s in seeds}
        found.append(Answered(part.name, benchmark, part.images, by_seed))
    return found


def write_predictions(path: Path, parts: Sequence[Answered]) -> None:
    """One row an answer: part by part, seed by seed, in the samples' order."""
    write_whole(path, "".join(_prediction_lines(parts)))


def _prediction_lines(parts: Sequence[Answered]) -> Iterator[str]:
    for part in parts:
        for seed, rows in part.rows.items():
            for name, row in rows.items():
                told: dict[str, Any] = {"part": part.name, "id": name, "seed": seed}
                if row.error is None:
                    told |= {**vars(row.answer), "margin": row.margin}
                else:
                    told["error"] = row.error
                yield json.dumps(told, ensure_ascii=False) + "\n"


def metrics(parts: Sequence[Answered]) -> dict[str, Any]:
    """By part: each seed's metrics and their mean, and over how many samples they are.

    A part with errors is scored over the images that all questions of were answered, under every
    seed: the same for each.
    """
    found: dict[str, Any] = {}
    for part in parts:
        asked = part.benchmark.samples()
        of_seed = part.answers
        common = set.intersection(*(set(answers) for answers in of_seed.values()))
        told: dict[str, Any] = {"samples": len(asked), "answered": len(common)}
        found[part.name] = told
        try:
            benchmark = answered(part.benchmark, common)
        except CdkitError as error:
            found[part.name] = told | {"scored": 0, "by_seed": [], "mean": {}, "note": str(error)}
            continue
        ids = [sample.id for sample in benchmark.samples()]
        scores = {s: benchmark.score({n: a[n] for n in ids}) for s, a in of_seed.items()}
        told["scored"] = len(ids)
        told["by_seed"] = [{"seed": seed, "metrics": values} for seed, values in scores.items()]
        names = next(iter(scores.values()))
        told["mean"] = {n: sum(v[n] for v in scores.values()) / len(scores) for n in names}
    return found


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
