"""Scores of answers in files, whichever program made them (`cdkit score`)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.answer_files import AnswerFormat, matched_answers
from cdkit.evals.benchmarks.benchmark_files import digest
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.benchmarks.mme import MME, TOTALS
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.runner.run_answers import RunAnswers, is_predictions, run_answers
from cdkit.interfaces.benchmark import Benchmark

WHOLE = ("unknown", "truncated")
"""Metrics that are counts."""
SHARED = ("truncated",)
"""What no parser decides."""
TEXT = ("text", "answer", "response")
POPE_FORM = AnswerFormat(("question_id", "id"), TEXT)
CAPTION_FORM = AnswerFormat(
    ("image_id", "id"), ("caption", *TEXT), prompts=(), about="is about the image"
)
MME_FORM = AnswerFormat(("id", "question_id"), TEXT)
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


@dataclass(frozen=True)
class Picked:
    """Which answers of a run's predictions.jsonl are scored.

    Args:
        part: The part; None: the one that was run on the questions.
        seed: The seed; None: the mean over all.
        method: The method; it, the model and the mode are needed where the run has several.
        model: The model.
        mode: The decode mode.
    """

    part: str | None = None
    seed: int | None = None
    method: str | None = None
    model: str | None = None
    mode: str | None = None

    @property
    def who(self) -> dict[str, str]:
        """What is said of who answered, and how."""
        said = {"model": self.model, "method": self.method, "mode": self.mode}
        return {key: value for key, value in said.items() if value is not None}


ALL = Picked()


def score_pope(
    questions: Path, answers: Path, parsers: Sequence[str], picked: Picked = ALL
) -> Scored:
    """Score answers to a POPE file.

    Args:
        questions: The POPE file.
        answers: JSON lines with `question_id` and `text`, or the predictions.jsonl of a run.
        parsers: The parsers; metrics of the first have plain names.
        picked: Which answers of a run.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    pope = POPE(questions, parsers=tuple(parsers))
    said = answers_in(pope, questions, answers, POPE_FORM, picked)
    scored = as_scored("pope", pope, said, parsers[0], answers)
    return replace(scored, shared=SHARED)


def score_amber(
    questions: Path,
    annotations: Path | None,
    answers: Path,
    parsers: Sequence[str],
    picked: Picked = ALL,
) -> Scored:
    """Score answers to a discriminative query file of AMBER.

    Args:
        questions: The query file.
        annotations: AMBER's annotations.json; None: near the query file.
        answers: JSON list or lines with `id` and `response`, or the predictions.jsonl of a run.
        parsers: The parsers; metrics of the first have plain names.
        picked: Which answers of a run.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    amber = AMBER(questions, annotations, parsers=tuple(parsers))
    said = answers_in(amber, questions, answers, AMBER_FORM, picked)
    note = "positive is no, as in AMBER's tables: precision and recall are those of denying"
    scored = as_scored("amber", amber, said, parsers[0], answers, note)
    return replace(scored, shared=SHARED)


def score_chair(chair: CHAIR, captions: Path, picked: Picked = ALL) -> Scored:
    """Score captions; only images that have a caption count.

    Args:
        chair: The benchmark.
        captions: JSON lines with `image_id` and `caption`, or the predictions.jsonl of a run.
        picked: Which captions of a run.

    Raises:
        CdkitError: The file cannot be read, or a caption is about an unknown image.
    """
    form = replace(CAPTION_FORM, named=chair.ground_truth is None)
    said = answers_in(chair, chair.origin, captions, form, picked, every=False)
    known = {sample.id for sample in chair.samples()}
    some = frozenset[str]().union(*said.by_seed.values())
    note = f"{len(some)} of the {len(known)} images of the ground truth have a caption"
    notes = () if len(some) == len(known) else (note,)
    said = replace(said, without=said.without | (known - some))
    return as_scored("chair", chair, said, chair.scorer, captions, *notes, counted="captions")


def score_mme(answers: Path, questions: Path | None = None, picked: Picked = ALL) -> Scored:
    """Score answers to MME.

    Args:
        answers: A folder with TASK.txt files, whose fourth column holds the answers; totals are
            over the tasks in it. With `questions`: JSON lines with `id` (as in a run:
            "existence/1") and `text`, or the predictions.jsonl of a run.
        questions: The folder of MME's questions.
        picked: Which answers of a run.

    Raises:
        CdkitError: A file cannot be read, or a row has no answer.
    """
    if questions is None and answers.is_file():
        raise CdkitError(
            f"{answers} is a file: give the folder of MME's questions too (--questions), or a "
            "folder of TASK.txt files with the answers in their fourth column"
        )
    mme = MME(answers if questions is None else questions)
    if questions is not None:
        said = answers_in(mme, questions, answers, MME_FORM, picked)
        scored = as_scored("mme", mme, said, "points", answers)
    elif bare := mme.unanswered():
        raise CdkitError(
            f"{bare[0]} has no answer (and {len(bare) - 1} more): a row is image, question, yes or "
            "no, and the answer, with a tab between each"
        )
    else:
        scored = as_scored("mme", mme, RunAnswers({None: mme.recorded()}), "points", None)
    score = {name.removesuffix(".score"): v for name, v in scored.metrics.items() if ".sc" in name}
    totals: dict[str, float | int | None] = {}
    notes = [*scored.notes]
    for total, members in TOTALS.items():
        have = [score[task] or 0.0 for task in members if task in score]
        totals[total] = sum(have) if have else None
        if len(have) < len(members):
            notes.append(f"{total} is over {len(have)} of {len(members)} tasks")
    counts = {name: scored.metrics[name] for name in WHOLE}
    tasks = {name: value for name, value in scored.metrics.items() if "." in name}
    return replace(scored, metrics={**totals, **counts, **tasks}, short=score, notes=tuple(notes))


def answers_in(
    benchmark: Benchmark,
    questions: object,
    path: Path,
    form: AnswerFormat,
    picked: Picked,
    *,
    every: bool = True,
    skip: Collection[str] = (),
) -> RunAnswers:
    """Read answers to a benchmark's questions.

    Args:
        benchmark: The benchmark.
        questions: What errors call its questions.
        path: A file of answers, or the predictions.jsonl of a run.
        form: The keys of the rows of a file of answers.
        picked: Which answers of a run.
        every: Whether all questions need an answer.
        skip: Ids of other questions, whose answers in a file are passed over.

    Raises:
        CdkitError: The file cannot be read, or does not hold the answers to these questions.
    """
    if is_predictions(path):
        return run_answers(path, benchmark, questions, picked.part, picked.seed, picked.who)
    if picked != ALL:
        raise CdkitError(
            f"--part, --seed and the like pick answers of a run, and {path} "
            "is no predictions.jsonl: leave "
            "them out"
        )
    return RunAnswers(
        {None: matched_answers(benchmark, questions, path, form, every=every, skip=skip)}
    )


def as_scored(
    name: str,
    benchmark: Benchmark,
    said: RunAnswers,
    row: str,
    answers: Path | None,
    *notes: str,
    counted: str = "questions",
) -> Scored:
    """Score answers under each seed, and take the mean.

    Args:
        name: The benchmark's name.
        benchmark: The benchmark.
        said: The answers.
        row: What tables call the metrics without a prefix.
        answers: The file of the answers; None where the benchmark's own files hold them.
        notes: Remarks for the reader.
        counted: What the samples are called.
    """
    files = dict(benchmark.sources())
    if answers is not None:
        files[str(answers)] = digest(answers)
    tallies = {s: benchmark.tally(a, without=said.without) for s, a in said.by_seed.items()}
    values = [tally.values() for tally in tallies.values()]
    metrics = {metric: fmean(each[metric] for each in values) for metric in values[0]}
    warnings = [
        text if len(tallies) == 1 else f"seed {seed}: {text}"
        for seed, tally in tallies.items()
        for text in doubts(tally, said.by_seed[seed])
    ]
    first = next(iter(tallies.values()))
    return Scored(
        name,
        row,
        {metric: _whole(metric, value) for metric, value in metrics.items()},
        {counted: len(first.samples), "images": len(first.images)},
        benchmark.versions(),
        files,
        (*said.notes, *notes),
        tuple(warnings),
    )


def _whole(metric: str, value: float) -> float | int:
    """A count is a whole number, but where it is a mean over seeds."""
    count = metric.rsplit(".", 1)[-1] in WHOLE and value.is_integer()
    return int(value) if count else value
