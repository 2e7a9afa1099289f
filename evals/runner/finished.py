"""A finished run as read from its folder: its questions and every answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer


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


@dataclass(frozen=True)
class LoggedDocument:
    """What lmms-eval logged of one document.

    Args:
        question: The text that the model was asked.
        target: The right answer, as text.
        digest: lmms-eval's hash of the document.
        scores: Metric -> the document's number.
    """

    question: str
    target: str
    digest: str
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class LoggedTask:
    """The log of one task of lmms-eval.

    Args:
        settings: What must be equal for two logs to be compared: the task's version, its shots and
            its decoding.
        documents: Number of a document -> what was logged of it, sorted.
        higher_is_better: Metric -> whether more of it is better, as far as the task says so.
        reported: Metric -> the task's number as lmms-eval aggregated it.
        without_number: Metrics that have no number for a single document.
    """

    settings: Mapping[str, object]
    documents: Mapping[int, LoggedDocument]
    higher_is_better: Mapping[str, bool]
    reported: Mapping[str, float]
    without_number: tuple[str, ...] = ()


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
        logged: Task -> its per-document log, of a run of lmms-eval, which has no parts.
    """

    folder: Path
    model: str
    method: str
    mode: str
    parts: Mapping[str, FinishedPart]
    manifest: Mapping[str, object]
    seconds: float
    tokens: int
    logged: Mapping[str, LoggedTask] = field(default_factory=dict)
