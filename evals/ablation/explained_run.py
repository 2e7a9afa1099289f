"""`cdkit explain --run`: an answer of a finished run, made once more and explained."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.ablation import side_by_side
from cdkit.evals.ablation.rerun import engine_again, method_again, prepared_again
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.listed_names import listed_names
from cdkit.evals.runner.modes import GREEDY
from cdkit.evals.runner.questions import question_of
from cdkit.evals.runner.read_run import read_run
from cdkit.explanation.explanation import Explanation
from cdkit.interfaces.sample import Sample
from cdkit.registry import unknown

MOST = 6
"""Methods of a run that are explained where none is named, at most."""


def explained_answer_of_run(
    folder: Path,
    question: str,
    methods: Sequence[str] = (),
    *,
    model: str | None = None,
    mode: str | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    layers: Sequence[int] | None = None,
    device: str = AUTO,
    tell: Callable[[str], None] = lambda line: None,
) -> Explanation:
    """Ask a run's model one of its questions again, as the run did, and explain the answers.

    Args:
        folder: The run's folder.
        question: The question: its benchmark's name in the run, a slash and its id; the id alone
            where only one benchmark has it.
        methods: Names of the run's methods, each alone or several with commas between them; empty
            for all, where they are few.
        model: One of the run's models; None where it has one.
        mode: The decode mode; None for greedy decoding, or the only one that there is.
        seed: The seed of sampled answers; None for the run's first.
        max_new_tokens: Most tokens of an answer; None for as many as in the run.
        layers: As in `cdkit.explain`.
        device: Where the model goes, as in `cdkit.load_model`.
        tell: Is given lines for the user, such as that an answer is not the run's.

    Raises:
        CdkitError: The folder holds no finished run, it has not what is named, or its files, its
            model or its methods have changed since.
    """
    runs = _chosen(read_run(folder), folder, model, mode, methods)
    first = runs[0]
    part, sample = _question(first, question)
    drawn = _seed(first, part, seed)
    prepared = prepared_again(first)
    known = {run.method: method_again(run, prepared) for run in runs}
    limit = part.benchmark.max_new_tokens
    asked = question_of(sample, part.images, limit)
    picture = asked.picture()  # before the seconds that a model takes
    found = side_by_side.explained_by(
        prepared.grid.chosen(first.model),
        engine_again(first, prepared, device),
        known,
        asked.prompt,
        [picture],
        sample_id=asked.sample_id,
        max_new_tokens=max_new_tokens or limit,
        mode=first.mode,
        seed=drawn,
        layers=layers,
        tell=tell,
    )
    if max_new_tokens in (None, limit):
        for run in runs:
            recorded = run.parts[part.name].answers.get(drawn, {}).get(sample.id)
            if recorded is not None:
                _compare(found, run, recorded.text, prepared.grid.first_token, tell)
    return found


def _chosen(
    runs: Sequence[FinishedRun],
    folder: Path,
    model: str | None,
    mode: str | None,
    methods: Sequence[str],
) -> list[FinishedRun]:
    """The runs of one model in one mode that are asked for."""
    models = list(dict.fromkeys(run.model for run in runs))
    if not models:
        raise CdkitError(f"{folder} has no answers: finish the run first")
    if model is None and len(models) > 1:
        raise CdkitError(f"{folder} has several models, {', '.join(models)}: say which by --model")
    if model is not None and model not in models:
        raise CdkitError(f"--model: {unknown('model of the run', model, models)}")
    runs = [run for run in runs if run.model == (model or models[0])]
    modes = list(dict.fromkeys(run.mode for run in runs))
    if mode is None and GREEDY not in modes and len(modes) > 1:
        raise CdkitError(f"{folder} was decoded by {', '.join(modes)}: say which by --mode")
    if mode is not None and mode not in modes:
        raise CdkitError(f"{folder} has no answers in the mode {mode}, but in {', '.join(modes)}")
    wanted = mode or (GREEDY if GREEDY in modes else modes[0])
    there: Mapping[str, FinishedRun] = {run.method: run for run in runs if run.mode == wanted}
    if not methods and len(there) > MOST:
        raise CdkitError(
            f"{folder} has {len(there)} methods, too many for a page: say which by --method"
        )
    found = []
    named = [name for given in methods for name in listed_names(given, there)]
    for name in named or there:
        if name not in there:
            raise CdkitError(f"--method: {unknown('method of the run', name, there)}")
        found.append(there[name])
    return found


def _question(run: FinishedRun, given: str) -> tuple[FinishedPart, Sample]:
    """The benchmark and the sample that are meant."""
    whole = {f"{p.name}/{s.id}": (p, s) for p in run.parts.values() for s in p.benchmark.samples()}
    if given in whole:
        return whole[given]
    alike = {name: found for name, found in whole.items() if found[1].id == given}
    if len(alike) > 1:
        raise CdkitError(f"--question {given} is one of {', '.join(alike)}: give it so")
    if alike:
        return next(iter(alike.values()))
    near = difflib.get_close_matches(given, whole, n=1) or list(whole)[:1]
    raise CdkitError(
        f"{run.folder} has no question {given!r}: give a benchmark of the run and a sample's id "
        f"(report.html and predictions.jsonl have them), such as {near[0]}"
    )


def _seed(run: FinishedRun, part: FinishedPart, given: int | None) -> int | None:
    """The seed of the answers; None where they were not drawn."""
    seeds = list(run.parts[part.name].answers)
    if given is None:
        return seeds[0] if seeds else None
    if given not in seeds:
        drawn = ", ".join(str(seed) for seed in seeds if seed is not None)
        words = f"has the seeds {drawn}" if drawn else f"drew no answers (mode {run.mode})"
        raise CdkitError(f"--seed {given}: {run.folder} {words}")
    return given


def _compare(
    found: Explanation,
    run: FinishedRun,
    recorded: str,
    first_token: bool,
    tell: Callable[[str], None],
) -> None:
    """Say where an answer is not the run's."""
    now = next((a for a in found.answers if a.name == run.method and not a.refused), None)
    if now is None or now.text == recorded:
        return
    # where a first token decided, the run has no other
    if first_token and now.text.casefold().startswith(recorded.casefold()):
        return
    tell(
        f"note: in the run {run.method} answered {recorded!r}, and now {now.text!r}: another "
        "device, precision, batch or version can choose another of two tokens that are nearly tied"
    )
