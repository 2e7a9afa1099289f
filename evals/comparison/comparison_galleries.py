"""Beside a comparison's tables: answers that differ, the methods' attention, and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_toml import parse
from cdkit.evals.ablation.plan import method_of
from cdkit.evals.comparison import comparable
from cdkit.evals.comparison.run_names import NamedRuns
from cdkit.evals.comparison.tallies import seeds
from cdkit.evals.reports.results import MODES, AttentionOverlay, Costs, Gallery
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.attention_overlays import changes_attention, collect_overlays
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.example_gallery import OverlaySource, example_gallery
from cdkit.evals.runner.fingerprints import changed_files, method_hash, model_files
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.questions import Question, question_of
from cdkit.evals.statistics.bootstrap import Estimate
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
                )
            )
        except CdkitError as error:
            found.append(Gallery(part, f"Nothing is shown: {error}.", (), answered=""))
            continue
        drawn = ", ".join(sorted({str(seed) for seed in first.values() if seed is not None}))
        text = f"Answers by {MODES[runs[base].mode]}" + f", seed {drawn}" * bool(drawn)
        found[-1] = replace(found[-1], answered=f"{text}.")
    return tuple(found)


def overlay_source(runs: NamedRuns, *, device: str = AUTO) -> OverlaySource:
    """Loads the model of the runs; what is given back traces its methods on questions.

    Drawn are the base, and methods that look at attention. Raises where the runs are of several
    models, or the model's weights are no longer those of the runs.
    """
    if any(run.logged for run in runs.values()):
        raise CdkitError(
            "--attention needs the images, and logs of lmms-eval hold none: leave it out"
        )
    grids = {name: _grid(run) for name, run in runs.items()}
    base = next(iter(runs))
    models = {grids[name].chosen(run.model) for name, run in runs.items()}
    if len(models) > 1:
        text = ", ".join(sorted({f"{each.name} in {each.dtype}" for each in models}))
        raise CdkitError(f"--attention draws one model, and the runs are of {text}: leave it out")
    methods = {name: _method(name, run, grids[name]) for name, run in runs.items()}
    drawn = {n: m for n, m in methods.items() if n == base or changes_attention(m)}
    (chosen,) = models
    model, processor = chosen.load(device)
    ran_on = runs[base].manifest.get("model")
    now = model_files(str(model.name_or_path), chosen.revision)
    before = ran_on.get("files") if isinstance(ran_on, Mapping) else None
    if isinstance(before, Mapping) and (others := changed_files(before, now)):
        raise CdkitError(
            f"--attention: configs or weights of {chosen.name} are not those of the "
            f"runs ({', '.join(others)}); restore them, or leave it out"
        )
    return _Traced(AnswerEngine(model, processor), drawn)


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


def _grid(run: FinishedRun) -> Grid:
    given = run.manifest.get("settings")
    if not isinstance(given, Mapping):
        raise CdkitError(f"{run.folder} does not say how it was made: --attention needs that")
    return parse(dict(given))


def _method(name: str, run: FinishedRun, grid: Grid) -> Method:
    """The method that a run names, if it is still the one that it ran."""
    spec = grid.methods[run.method]
    method = method_of(spec)
    ran = run.manifest.get("method")
    if isinstance(ran, Mapping) and ran.get("hash") != method_hash(method):
        raise CdkitError(
            f"--attention: {run.method} is no longer the method that {name} ran; run it again, or "
            "leave --attention out"
        )
    return method


def _machine(run: FinishedRun) -> dict[str, object]:
    text = comparable.circumstances(run)
    return {
        key: value
        for key, value in text.items()
        if any(f"{key}.".startswith(f"{known}.") for known in MACHINE)
    }
