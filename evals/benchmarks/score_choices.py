"""Scores of answers in files to HallusionBench and to ScienceQA."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cdkit.evals.benchmarks.answer_files import AnswerFormat
from cdkit.evals.benchmarks.benchmark_files import read_source, rows
from cdkit.evals.benchmarks.hallusionbench import KEYS, HallusionBench
from cdkit.evals.benchmarks.scienceqa import ScienceQA
from cdkit.evals.benchmarks.score_files import (
    ALL,
    SHARED,
    Picked,
    Scored,
    answers_in,
    as_scored,
)
from cdkit.evals.runner.run_answers import is_predictions

HALLUSION_FORM = AnswerFormat(
    ("id",), ("model_prediction", "prediction", "text", "response", "answer"), named_by=KEYS
)
SCIENCE_FORM = AnswerFormat(("question_id", "id"), ("prediction", "text", "response", "answer"))


def score_hallusionbench(
    questions: Path, answers: Path, parsers: Sequence[str], picked: Picked = ALL
) -> Scored:
    """Score answers to HallusionBench.

    The questions without a figure count if the file answers one of them: then it must answer all.

    Args:
        questions: HallusionBench.json.
        answers: The same rows with `model_prediction`, as the official script reads them; or JSON
            lines with `id` (the row's keys, joined by "_") and `text`; or the predictions.jsonl of
            a run.
        parsers: The parsers; metrics of the first have plain names.
        picked: Which answers of a run.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    benchmark = HallusionBench(questions, parsers=tuple(parsers))
    bare = benchmark.without_figure()
    if not is_predictions(answers) and _names(answers) & bare:
        benchmark = replace(benchmark, text_only=True)
    said = answers_in(benchmark, questions, answers, HALLUSION_FORM, picked)
    count = "count too" if benchmark.text_only else "are not asked"
    note = f"the {len(bare)} questions without a figure {count}"
    by_rule = "read by rule: published numbers have the answers judged by GPT-4"
    scored = as_scored("hallusionbench", benchmark, said, parsers[0], answers, note, by_rule)
    counted = {
        "questions": scored.counted["questions"],
        "sets of figures": scored.counted["images"],
    }
    return replace(scored, shared=SHARED, counted=counted)


def score_scienceqa(
    questions: Path,
    answers: Path,
    parsers: Sequence[str],
    picked: Picked = ALL,
    *,
    splits: Path | None = None,
    split: str = "test",
) -> Scored:
    """Score answers to ScienceQA's questions about images.

    Args:
        questions: problems.json.
        answers: JSON lines with `question_id` and `text`, or the predictions.jsonl of a run;
            answers to the split's problems without an image are passed over.
        parsers: The parsers; metrics of the first have plain names.
        picked: Which answers of a run.
        splits: pid_splits.json; None: beside the problems.
        split: The split.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    benchmark = ScienceQA(questions, splits, split, parsers=tuple(parsers))
    bare = benchmark.without_image()
    said = answers_in(benchmark, questions, answers, SCIENCE_FORM, picked, skip=bare)
    note = f"problems of the split without an image, which are not asked: {len(bare):,}"
    scored = as_scored("scienceqa", benchmark, said, parsers[0], answers, note)
    return replace(scored, shared=(*SHARED, "chance"))


def _names(answers: Path) -> frozenset[str]:
    """The questions that a file of answers names, as far as its rows say so."""
    placed = rows(read_source(answers))
    return frozenset(HALLUSION_FORM.name_of(r, w) for w, r in placed if HALLUSION_FORM.names(r))
