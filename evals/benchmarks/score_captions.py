"""Scores of captions in files beside CHAIR's: AMBER's generative part, and OPOPE."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.amber_generative import OFFICIAL, AMBERGenerative, amber_score
from cdkit.evals.benchmarks.benchmark_files import placed_answers
from cdkit.evals.benchmarks.opope import OPOPE, image_number
from cdkit.evals.benchmarks.score_files import (
    ALL,
    AMBER_FORM,
    CAPTION_FORM,
    Picked,
    Scored,
    answers_in,
    as_scored,
)
from cdkit.evals.runner.predictions import Seed, read_predictions
from cdkit.evals.runner.read_run import read_manifest
from cdkit.evals.runner.run_answers import RunAnswers, is_predictions, of_answerer
from cdkit.evals.runner.run_folder import MANIFEST
from cdkit.interfaces.sample import Answer

COUNTS = ("unknown", "truncated")
CAPTIONED = ("chair", "opope")
"""Benchmarks whose samples are captions of images, named by the image's number."""
DISCRIMINATIVE = "query_discriminative.json"


def score_amber_generative(
    benchmark: AMBERGenerative,
    answers: Path,
    picked: Picked = ALL,
    *,
    discriminative: Path | None = None,
    discriminative_questions: Path | None = None,
) -> Scored:
    """Score descriptions of AMBER's images, and compute the AMBER score if both parts are there.

    Args:
        benchmark: The benchmark.
        answers: JSON list or lines with `id` and `response`, or the predictions.jsonl of a run;
            answers to AMBER's other questions are passed over.
        picked: Which answers of a run.
        discriminative: Answers to the discriminative questions, which may be in the same file.
        discriminative_questions: Their query file; None: beside the generative one.

    Returns:
        The metrics; with `discriminative` also `discriminative.f1` (by AMBER's own parser) and
        `amber_score`.

    Raises:
        CdkitError: A file cannot be read, or a question has no answer.
    """
    said = answers_in(
        benchmark, benchmark.path, answers, AMBER_FORM, picked, skip=benchmark.others()
    )
    row = benchmark.scorer
    scored = replace(
        as_scored("amber_generative", benchmark, said, row, answers, counted="descriptions"),
        shared=COUNTS,
    )
    if benchmark.scorer != OFFICIAL:
        note = "not comparable with published numbers, which need the scorer 'official'"
        scored = replace(scored, notes=(*scored.notes, note))
    if discriminative is None:
        return scored
    questions = discriminative_questions or benchmark.path.with_name(DISCRIMINATIVE)
    asked = AMBER(questions, benchmark.annotations, parsers=(OFFICIAL,))
    others = {sample.id for sample in benchmark.samples()}
    denied = answers_in(asked, questions, discriminative, AMBER_FORM, ALL, skip=others)
    second = as_scored("amber", asked, denied, OFFICIAL, discriminative)
    prefix = "" if benchmark.scorer == OFFICIAL else f"{benchmark.scorer}."
    f1 = float(second.metrics["f1"] or 0)
    score = amber_score(float(scored.metrics[f"{prefix}chair"] or 0), f1)
    return replace(
        scored,
        metrics={**scored.metrics, f"{prefix}amber_score": score, "discriminative.f1": f1},
        counted={**scored.counted, "yes/no questions": second.counted["questions"]},
        readers={**scored.readers, **{f"yes/no {k}": v for k, v in second.readers.items()}},
        files={**scored.files, **second.files},
        notes=(*scored.notes, *second.notes),
        warnings=(*scored.warnings, *second.warnings),
    )


def score_opope(
    questions: Path,
    captions: Path,
    scorers: Sequence[str] = (OFFICIAL,),
    picked: Picked = ALL,
    synonyms: Path | None = None,
) -> Scored:
    """Answer POPE's questions from captions; only images that have a caption count.

    Args:
        questions: A POPE file.
        captions: JSON lines with `image_id` and `caption`, or the predictions.jsonl of a run of
            CHAIR; captions of other images are passed over.
        scorers: What counts as a mention; metrics of the first have plain names.
        picked: Which captions of a run.
        synonyms: A file of synonyms; None: that of CHAIR's authors.

    Raises:
        CdkitError: A file cannot be read, or no caption is about an image of the questions.
    """
    benchmark = OPOPE(questions, tuple(scorers), synonyms)
    said = _captions(captions, picked)
    asked = {sample.id for sample in benchmark.samples()}
    by_seed = {
        seed: {name: answer for name, answer in by_id.items() if name in asked}
        for seed, by_id in said.by_seed.items()
    }
    some = frozenset[str]().union(*by_seed.values())
    if not some:
        raise CdkitError(
            f"no caption in {captions} is about an image of {questions}: give the captions of the "
            "images that the questions are about"
        )
    lacking = frozenset(asked) - some.intersection(*by_seed.values())
    notes = [*said.notes]
    if lacking:
        notes.append(f"{len(asked) - len(lacking)} of the {len(asked)} images have a caption")
    if lacking == asked:
        raise CdkitError(f"{captions}: no image of {questions} has a caption under every seed")
    others = frozenset[str]().union(*said.by_seed.values()) - asked
    if others:
        notes.append(f"captions of {len(others)} other images are passed over")
    kept = {
        seed: {name: answer for name, answer in by_id.items() if name not in lacking}
        for seed, by_id in by_seed.items()
    }
    read = RunAnswers(kept, lacking, tuple(notes))
    scored = as_scored("opope", benchmark, read, scorers[0], captions, counted="captions")
    number = sum(len(one) for one in benchmark.asked_about(some - lacking).values())
    return replace(scored, shared=COUNTS, counted={**scored.counted, "questions": number})


def _captions(path: Path, picked: Picked) -> RunAnswers:
    """Captions by the number of their image."""
    if not is_predictions(path):
        if picked != ALL:
            raise CdkitError(
                f"--part, --seed and the like pick captions of a run, and {path} "
                "is no predictions.jsonl: "
                "leave them out"
            )
        placed = placed_answers(path, CAPTION_FORM.ids, CAPTION_FORM.texts)
        return RunAnswers({None: _numbered({n: (w, a) for n, (w, a) in placed.items()})})
    read = of_answerer(path, read_predictions(path), picked.who)
    part = picked.part or _caption_part(path, tuple(read))
    if part not in read:
        raise CdkitError(f"{path} has no part {part}: it has {', '.join(read)}")
    seeds = read[part]
    if picked.seed is not None and picked.seed not in seeds:
        raise CdkitError(f"{path} has no seed {picked.seed} of {part}")
    by_seed: dict[Seed, Mapping[str, Answer]] = {
        seed: _numbered({n: (r.where, r.answer) for n, r in by_id.items() if r.answer is not None})
        for seed, by_id in seeds.items()
        if picked.seed in (None, seed)
    }
    return RunAnswers(by_seed, notes=(f"the captions of {part}",))


def _numbered(said: Mapping[str, tuple[str, Answer]]) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for name, (where, answer) in said.items():
        number = image_number(name)
        if number in found:
            raise CdkitError(f"{where} is about the image {number} again: keep one caption each")
        found[number] = answer
    return found


def _caption_part(path: Path, parts: Sequence[str]) -> str:
    """The one part of a run that holds captions."""
    chosen = list(parts)
    if (path.parent / MANIFEST).is_file():
        manifest = read_manifest(path.parent)["parts"]
        chosen = [
            name
            for name in parts
            if name in manifest and manifest[name]["benchmark"]["benchmark"] in CAPTIONED
        ]
    if not chosen:
        raise CdkitError(
            f"{path} has no part with captions ({', '.join(parts)}): give the predictions of a run "
            f"of {' or '.join(CAPTIONED)}"
        )
    if len(chosen) > 1:
        raise CdkitError(
            f"{path} has several parts with captions ({', '.join(chosen)}): say which by --part"
        )
    return chosen[0]
