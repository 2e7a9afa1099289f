"""Beside a comparison's tables: answers that differ, the methods' attention, and costs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.ablation.rerun import engine_again, method_again, prepared_again
from cdkit.evals.comparison import comparable
from cdkit.evals.comparison.run_names import NamedRuns
from cdkit.evals.comparison.tallies import seeds
from cdkit.evals.reports.results import MODES, AttentionOverlay, Costs, Gallery
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.attention_overlays import changes_attention, collect_overlays
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.example_gallery import CommandSource, OverlaySource, example_gallery
from cdkit.evals.runner.explain_command import explain_command
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.questions import Question, question_of
from cdkit.evals.statistics.bootstrap import Estimate
from cdkit.interfaces.sample import Sample
from cdkit.interfaces.tally import Tally
from cdkit.methods.method import Method

MACHINE = ("model.dtype", "platform", *comparable.PIECES)
"""Keys of a run's circumstances without which seconds say nothing about a method."""


def galleries(
    runs: NamedRuns,
    tallies: Mapping[str, Mapping[str, Sequence[Tally]]],
    *,
    count: int,
    overlays: OverlaySource | None = None,
) -> tuple[Gallery, ...]:
    """One for each part: `count` questions at most that runs answer differently.

    `tallies`: part -> run -> one a seed. Of several seeds the first is shown. Where an image is
    not there any more, a gallery without examples says so.
    """
    found = []
    base = next(iter(runs))
    for part, of_runs in tallies.items() if count else ():
        first = {name: seeds(run.parts[part])[0] for name, run in runs.items()}
        try:
            found.append(
                example_gallery(
                    part,
                    runs[base].parts[part].benchmark,
                    _questions(runs[base].parts[part], of_runs[base][0]),
                    {name: run.parts[part].answers[first[name]] for name, run in runs.items()},
                    count=count,
                    base=base,
                    tallies={name: of_seeds[0] for name, of_seeds in of_runs.items()},
                    overlays=overlays,
                    commands=_commands(runs, part, first),
                )
            )
        except CdkitError as error:
            found.append(Gallery(part, f"Nothing is shown: {error}.", (), answered=""))
            continue
        drawn = ", ".join(sorted({str(seed) for seed in first.values() if seed is not None}))
        text = f"Answers by {MODES[runs[base].mode]}" + f", seed {drawn}" * bool(drawn)
        found[-1] = replace(found[-1], answered=f"{text}.")
    return tuple(found)


def _commands(runs: NamedRuns, part: str, seeds: Mapping[str, int | None]) -> CommandSource:
    """For a sample and names of runs: a command for each folder of theirs."""

    def commands(sample: Sample, names: Sequence[str]) -> tuple[str, ...]:
        places: dict[tuple[Path, str, int | None], list[FinishedRun]] = {}
        for run, seed in ((runs[name], seeds[name]) for name in names):
            places.setdefault((run.folder, run.model, seed), []).append(run)
        return tuple(
            explain_command(
                folder,
                part,
                sample.id,
                [run.method for run in found],
                model=model if _has_several_models(found[0]) else None,
                mode=found[0].mode,
                seed=seed,
            )
            for (folder, model, seed), found in places.items()
        )

    return commands


def _has_several_models(run: FinishedRun) -> bool:
    models = run.manifest.get("models")
    return isinstance(models, Mapping) and len(models) > 1


def overlay_source(runs: NamedRuns, *, device: str = AUTO) -> OverlaySource:
    """Loads the model of the runs; what is given back traces its methods on questions.

    Drawn are the base, and methods that look at attention. Raises where the runs are of several
    models, or the model's weights are no longer those of the runs.
    """
    if any(run.logged for run in runs.values()):
        raise CdkitError(
            "--attention needs the images, and logs of lmms-eval hold none: leave it out"
        )
    base = next(iter(runs))
    with _asked_for():
        folders = {(run.folder, run.model): run for run in runs.values()}
        asked = {key: prepared_again(run) for key, run in folders.items()}
        every = {name: asked[run.folder, run.model] for name, run in runs.items()}
        models = {each.grid.chosen(each.model) for each in every.values()}
        if len(models) > 1:
            text = ", ".join(sorted({f"{each.name} in {each.dtype}" for each in models}))
            raise CdkitError(f"it draws one model, and the runs are of {text}: give runs of one")
        methods = {name: method_again(run, every[name], name) for name, run in runs.items()}
        drawn = {n: m for n, m in methods.items() if n == base or changes_attention(m)}
        return _Traced(engine_again(runs[base], every[base], device), drawn)


@contextmanager
def _asked_for() -> Iterator[None]:
    """Errors say which option asked for what is refused."""
    try:
        yield
    except CdkitError as error:
        raise CdkitError(f"--attention: {error}; or leave --attention out") from None


def costs(runs: NamedRuns) -> Costs | None:
    """Seconds in the model against the base's, where all ran alike; None where they did not."""
    base = next(iter(runs.values()))
    alike = all(_machine(run) == _machine(base) for run in runs.values())
    if not alike or any(run.seconds <= 0 for run in runs.values()):
        return None
    ratios = {name: run.seconds / base.seconds for name, run in runs.items()}
    return Costs(
        {name: Estimate(ratio, ratio, ratio) for name, ratio in ratios.items()},
        "Seconds in the model over the whole run, each run once: no spread is known, and what else "
        "the machine did counts. Longer answers cost more, and that counts.",
    )


class _Traced:
    """Loaded once, asked for every part."""

    def __init__(self, engine: AnswerEngine, methods: Mapping[str, Method]) -> None:
        self.engine, self.methods = engine, methods

    def __call__(self, questions: Sequence[Question]) -> Mapping[Question, AttentionOverlay] | str:
        return collect_overlays(self.engine, self.methods, questions)


def _questions(part: FinishedPart, kept: Tally) -> dict[str, Question]:
    limit = part.benchmark.max_new_tokens
    return {s.id: question_of(s, part.images, limit) for s in kept.samples}


def _machine(run: FinishedRun) -> dict[str, object]:
    text = comparable.circumstances(run)
    return {
        key: value
        for key, value in text.items()
        if any(f"{key}.".startswith(f"{known}.") for known in MACHINE)
    }
