"""A finished run as read from its folder: its questions and every answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdkit.interfaces.benchmark import Answer, Benchmark


@dataclass(frozen=True, eq=False)
class FinishedPart:
    """One benchmark of a run, such as one negative sampling of POPE.

    Args:
        name: The part's name, such as "pope_coco_random".
        benchmark: Its questions, read anew from the files of the run.
        images: The folder of its images.
        answers: Seed (None: greedy or beam search) -> sample id -> answer. Samples that failed are
            not in it.
        errors: Sample id -> why it has no answer.
        unasked: Those of `errors` that the run was not asked (`--limit`).
    """

    name: str
    benchmark: Benchmark
    images: Path
    answers: Mapping[int | None, Mapping[str, Answer]]
    errors: Mapping[str, str]
    unasked: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One method of one model on one or more benchmarks, in one decode mode.

    Args:
        folder: The run's folder.
        model: The model's name.
        method: The method's name, as in tables.
        mode: "greedy", "sample" or "beam".
        parts: Name -> part.
        manifest: The content of manifest.json.
        seconds: Time spent in the model, summed over all processes and restarts.
        tokens: Tokens generated in that time.
    """

    folder: Path
    model: str
    method: str
    mode: str
    parts: Mapping[str, FinishedPart]
    manifest: Mapping[str, object]
    seconds: float
    tokens: int
