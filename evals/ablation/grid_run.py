"""A run, from what it asks to a folder with all answers, metrics, tables and a report.

`cdkit eval`, `cdkit ablate` and their grids are all run by `run_grid`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdkit.evals.ablation import grid_results, predictions_file, run_manifest, scores
from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.demand import workload
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_toml import as_plain, dumps
from cdkit.evals.ablation.prepared import PreparedRun, prepare_all, without_benchmarks
from cdkit.evals.reports import glossary, page_files
from cdkit.evals.reports.numbers import numbers
from cdkit.evals.reports.results import Results
from cdkit.evals.runner import run_folder as files
from cdkit.evals.runner.checkpoint_settings import stored
from cdkit.evals.runner.engines import Engines
from cdkit.evals.runner.fingerprints import RunPart, data_hash, model_files
from cdkit.evals.runner.journal import Journal, read_journal
from cdkit.evals.runner.lightning_module import RunJob, cannot_run
from cdkit.evals.runner.loggers import log_metrics, make_loggers
from cdkit.evals.runner.processes import follower, predict, started_outside
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.resources import Resources
from cdkit.evals.runner.run_folder import Fingerprints, opened
from cdkit.evals.runner.whole_files import write_json
from cdkit.evals.runner.workload import Workload
from cdkit.pretrained import MICRO, micro_path

CONFIG = "config.toml"


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """A finished run.

    Args:
        folder: The run's folder.
        run: What was asked, of the first model.
        results: Its tables, figures and examples.
        scores: Of each model, method, decode mode and part, as metrics.json holds them.
        errors: Part -> sample id -> why a model or method has no answer to it.
        refused: Model -> name of each method that it cannot run -> why.
        torn: Journal files whose last line was incomplete and was removed.
    """

    folder: Path
    run: PreparedRun
    results: Results
    scores: Sequence[Mapping[str, Any]]
    errors: Mapping[str, Mapping[str, str]]
    refused: Mapping[str, Mapping[str, str]]
    torn: tuple[str, ...]


@dataclass(frozen=True)
class RunOptions:
    """How a run goes on, and what it shows.

    Args:
        resume: Continue the run in the folder if there is one; its settings must be the same.
        retry_errors: Try samples again whose answer failed before.
        loggers: "tensorboard", "wandb" or both.
        bar: Show progress on stderr, and lines for the user.
        silence: Called first in each process, to keep libraries' messages out of the output.
    """

    resume: bool = False
    retry_errors: bool = False
    loggers: tuple[str, ...] = ()
    bar: bool = False
    silence: Callable[[], None] | None = None


def run_grid(
    grid: Grid,
    resources: Resources,
    folder: Path,
    options: RunOptions,
    *,
    parts: Sequence[RunPart] | None = None,
    stages: Stages | None = None,
) -> RunOutcome | None:
    """Answer every question of a grid and compare the answers.

    Args:
        grid: What is asked.
        resources: What decides only the speed.
        folder: The run's folder.
        options: How it goes on, and what it shows.
        parts: Benchmarks that were built in Python, in place of the grid's.
        stages: Shows progress of what follows the answers.

    Returns:
        The finished run; None in a process that does not lead (rank 1 and above).

    Raises:
        CdkitError: The folder is there and is not to be gone on with, or it was begun with other
            settings, or a file, a method, the model or the device is not available. The answers so
            far stay in the journal.
    """
    if follower():
        _follow(grid, resources, folder, options)
        return None
    started, stages = datetime.now(UTC), stages or Stages()

    runs: dict[str, PreparedRun] = {}

    def content(place: Path) -> Mapping[str, Any]:
        runs.update(prepare_all(grid, place, parts))
        return _content(grid, runs)

    with opened(folder, content, resume=options.resume):
        if grid.world is not None:  # its files have moved with the draft of the folder
            runs.update(prepare_all(grid, folder, parts))
        runs = {model: replace(run, folder=folder) for model, run in runs.items()}
        first = runs[grid.models[0]]
        asked = {model: workload(run) for model, run in runs.items()}
        journal = _journal(asked, folder, mend=True)
        torn = journal.torn
        kept = make_loggers(options.loggers, folder)
        found: list[grid_results.OfModel] = []
        for model, run in runs.items():
            engines = run.engines(resources.device_map)
            if started_outside() or _lacking(asked[model], model, journal, options):
                predict(_job(engines, asked[model], resources, run, options, journal), kept)
                journal = _journal(asked, folder, mend=False)
            answered = _answered(run, asked[model], journal)
            found.append(
                grid_results.of_model(run, asked[model], answered, engines, resources, stages)
            )
            engines.forget()
        results = grid_results.join(found)
        scored = [row for each in found for row in scores.scores(each.run, each.answered)]
        predictions_file.write(folder / files.PREDICTIONS, found)
        facts = run_manifest.manifest(grid, found, journal, started=started, stages=stages.seconds)
        write_json(folder / files.MANIFEST, facts)
        write_json(folder / files.METRICS, {"scores": scored, **numbers(results)})
        _write_pages(folder, first, results, facts)
        (folder / CONFIG).write_text(dumps(grid), encoding="utf-8")
        log_metrics(kept, scored, len(journal.rows))
    return RunOutcome(
        folder,
        first,
        results,
        scored,
        scores.errors(found),
        {each.answered.model: each.answered.refused for each in found if each.answered.refused},
        torn,
    )


def _write_pages(
    folder: Path, run: PreparedRun, results: Results, facts: Mapping[str, Any]
) -> None:
    """The tables and the page, with what its methods are."""
    if not results.tables:
        page_files.remove(folder)
        return
    resolved = {name: facts["methods"][name]["resolved"] for name in facts["methods"]}
    benchmarks = [item.benchmark for item in run.loaded]
    page_files.write(folder, glossary.described(results, resolved, benchmarks), facts)


def _follow(grid: Grid, resources: Resources, folder: Path, options: RunOptions) -> None:
    """What a process does that another one leads: it is sent the questions."""
    for model in grid.models:
        run = without_benchmarks(grid, folder, model)
        engines = run.engines(resources.device_map)
        methods = {run.hashes[variant.name]: variant.method for variant in run.all_variants}
        asked = Workload(methods, {}, grid.first_token, folder)
        predict(_job(engines, asked, resources, run, options, None), ())
        engines.forget()


def _job(
    engines: Engines,
    asked: Workload,
    resources: Resources,
    run: PreparedRun,
    options: RunOptions,
    journal: Journal | None,
) -> RunJob:
    return RunJob(
        engines=engines,
        workload=asked,
        resources=resources,
        folder=run.folder,
        settings=files.flat(as_plain(run.grid)),
        journal=journal,
        base="" if len(run.grid.models) > 1 else run.hashes[run.grid.base],
        retry_errors=options.retry_errors,
        threads=run.grid.threads,
        bar=options.bar,
        title=_title(run),
        silence=options.silence,
    )


def _title(run: PreparedRun) -> str:
    """What the progress of a model's answers is called: which of how many models it is."""
    models = run.grid.models
    number = models.index(run.model) + 1
    return "answers" if len(models) == 1 else f"answers, model {number} of {len(models)}"


def _content(grid: Grid, runs: Mapping[str, PreparedRun]) -> Mapping[str, Any]:
    paths = {model: _path(model) for model in grid.models}
    methods: dict[str, str] = {}
    data: dict[str, str] = {}
    base = next(iter(runs.values()))
    for model, run in runs.items():
        # a protocol may ask models otherwise
        for name, digest in run.hashes.items():
            methods[name if base.hashes[name] == digest else f"{name} of {model}"] = digest
        for item, one in zip(run.loaded, base.loaded, strict=True):
            digest = data_hash(item.benchmark)
            same = digest == data_hash(one.benchmark)
            data[item.name if same else f"{item.name} of {model}"] = digest
    identity = Fingerprints(
        methods, data, {model: model_files(path, grid.revision) for model, path in paths.items()}
    )
    generation = {model: stored(path, grid.revision) for model, path in paths.items()}
    return {
        "settings": as_plain(grid),
        "protocol": grid.around.record() if grid.around is not None else {},
        "checkpoint": {"generation": generation},
        "identity": identity.to_dict(),
    }


def _path(model: str) -> str:
    return str(micro_path()) if model == MICRO else model


def _journal(asked: Mapping[str, Workload], folder: Path, *, mend: bool) -> Journal:
    names = {
        key: f"{question.image.name}: {question.prompt}"
        for workload in asked.values()
        for question, key in workload.keys.items()
    }
    known = frozenset(key for model, workload in asked.items() for key in workload.rows(model))
    return read_journal(folder / files.JOURNAL, questions=names, known=known, mend=mend)


def _refused(journal: Journal, model: str) -> dict[str, str]:
    """Hash of each method that the model refused when it was loaded last -> why."""
    heads = [head for head in journal.heads if head["model"].get("name") == model]
    return dict(heads[-1].get("refused", {})) if heads else {}


def _lacking(asked: Workload, model: str, journal: Journal, options: RunOptions) -> bool:
    refused = _refused(journal, model)
    if refused and options.retry_errors:
        return True

    def done(key: tuple[Any, ...]) -> bool:
        row = journal.rows.get(key)
        return row is not None and not (options.retry_errors and row.error)

    return not all(done(key) for key in asked.rows(model) if key[2] not in refused)


def _answered(run: PreparedRun, asked: Workload, journal: Journal) -> Answered:
    refused = _refused(journal, run.model)
    mine = {
        variant.name: refused[run.hashes[variant.name]]
        for variant in run.all_variants
        if run.hashes[variant.name] in refused
    }
    base, several = run.grid.base, len(run.grid.models) > 1
    if base in mine and not several:
        raise cannot_run(run.model, base, mine[base])
    heads = [head["model"] for head in journal.heads if head["model"].get("name") == run.model]
    return Answered(
        run.model,
        journal.rows,
        asked.keys,
        run.hashes,
        mine,
        tuple(heads[-1].get("unmatched", ())) if heads else (),
        several=several,
    )
