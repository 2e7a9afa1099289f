"""Scores of answers in files, whichever program made them (`cdkit score`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.answer_files import AnswerFormat, matched_answers
from cdkit.evals.benchmarks.benchmark_files import digest
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.benchmarks.mme import MME, TOTALS
from cdkit.evals.benchmarks.pope import POPE
from cdkit.interfaces.benchmark import Answer, Benchmark, Tally

WHOLE = ("unknown", "truncated")
"""Metrics that are counts."""
SHARED = ("truncated",)
"""What no parser decides."""
TEXT = ("text", "answer", "response")
POPE_FORM = AnswerFormat(("question_id", "id"), TEXT)
CAPTION_FORM = AnswerFormat(
    ("image_id", "id"), ("caption", *TEXT), prompts=(), about="is about the image"
)
AMBER_FORM = AnswerFormat(("id", "question_id"), ("response", "text", "answer"))


@dataclass(frozen=True)
class Scored:
    """The metrics of a file of answers.

    Args:
        benchmark: The benchmark's name.
        row: What tables call the metrics without a prefix.
        metrics: Metric -> value; counts are whole numbers, a total without any of its tasks is
            None.
        counted: How many questions (or captions) and images were scored.
        readers: Parser or scorer -> its version.
        files: File -> SHA-256.
        notes: Remarks for the reader.
        warnings: What makes the numbers doubtful (see `doubts`).
        shared: Metrics that are the same for every parser: a row of their own in tables.
        short: Values of `metrics` under shorter names, for JSON.
    """

    benchmark: str
    row: str
    metrics: Mapping[str, float | int | None]
    counted: Mapping[str, int]
    readers: Mapping[str, int]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    short: Mapping[str, float | int | None] = field(default_factory=dict)

    def plain(self) -> dict[str, object]:
        """One JSON object: the metrics first, each under its name."""
        return {
            **self.metrics,
            **self.short,
            "benchmark": self.benchmark,
            "counted": dict(self.counted),
            "readers": dict(self.readers),
            "files": dict(self.files),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def score_pope(questions: Path, answers: Path, parsers: Sequence[str]) -> Scored:
    """Score answers to a POPE file.

    Args:
        questions: The POPE file.
        answers: JSON lines with `question_id` and `text`.
        parsers: The parsers; metrics of the first have plain names.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    pope = POPE(questions, parsers=tuple(parsers))
    found = matched_answers(pope, questions, answers, POPE_FORM)
    scored = _scored("pope", pope, pope.tally(found), parsers[0], answers, found)
    return replace(scored, shared=SHARED)


def score_amber(
    questions: Path, annotations: Path | None, answers: Path, parsers: Sequence[str]
) -> Scored:
    """Score answers to a discriminative query file of AMBER.

    Args:
        questions: The query file.
        annotations: AMBER's annotations.json; None: near the query file.
        answers: JSON list or lines with `id` and `response`.
        parsers: The parsers; metrics of the first have plain names.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    amber = AMBER(questions, annotations, parsers=tuple(parsers))
    found = matched_answers(amber, questions, answers, AMBER_FORM)
    note = "positive is no, as in AMBER's tables: precision and recall are those of denying"
    scored = _scored("amber", amber, amber.tally(found), parsers[0], answers, found, note)
    return replace(scored, shared=SHARED)


def score_chair(chair: CHAIR, captions: Path) -> Scored:
    """Score captions; only images that have a caption count.

    Args:
        chair: The benchmark.
        captions: JSON lines with `image_id` and `caption`.

    Raises:
        CdkitError: The file cannot be read, or a caption is about an unknown image.
    """
    form = replace(CAPTION_FORM, named=chair.ground_truth is None)
    said = matched_answers(chair, chair.origin, captions, form, every=False)
    tally, known = chair.tally_of(said), len(chair.samples())
    note = f"{len(said)} of the {known} images of the ground truth have a caption"
    notes = () if len(said) == known else (note,)
    return _scored("chair", chair, tally, chair.scorer, captions, said, *notes, counted="captions")


def score_mme(folder: Path) -> Scored:
    """Score the answers in the fourth column of MME's text files.

    Args:
        folder: A folder with TASK.txt files; totals are over the tasks in it.

    Raises:
        CdkitError: A file cannot be read, or a row has no answer.
    """
    mme = MME(folder)
    if bare := mme.unanswered():
        raise CdkitError(
            f"{bare[0]} has no answer (and {len(bare) - 1} more): a row is image, question, yes or "
            "no, and the answer, with a tab between each"
        )
    said = mme.recorded()
    scored = _scored("mme", mme, mme.tally(said), "points", None, said)
    score = {name.removesuffix(".score"): v for name, v in scored.metrics.items() if ".sc" in name}
    totals: dict[str, float | int | None] = {}
    notes: list[str] = []
    for total, members in TOTALS.items():
        have = [score[task] or 0.0 for task in members if task in score]
        totals[total] = sum(have) if have else None
        if len(have) < len(members):
            notes.append(f"{total} is over {len(have)} of {len(members)} tasks")
    counts = {name: scored.metrics[name] for name in WHOLE}
    tasks = {name: value for name, value in scored.metrics.items() if "." in name}
    return replace(scored, metrics={**totals, **counts, **tasks}, short=score, notes=tuple(notes))


def _scored(
    name: str,
    benchmark: Benchmark,
    tally: Tally,
    row: str,
    answers: Path | None,
    said: Mapping[str, Answer],
    *notes: str,
    counted: str = "questions",
) -> Scored:
    files = dict(benchmark.sources())
    if answers is not None:
        files[str(answers)] = digest(answers)
    metrics = {n: int(v) if n.rsplit(".", 1)[-1] in WHOLE else v for n, v in tally.values().items()}
    warnings = doubts(tally, said)
    count = {counted: len(tally.samples), "images": len(tally.images)}
    return Scored(name, row, metrics, count, benchmark.versions(), files, notes, warnings)
