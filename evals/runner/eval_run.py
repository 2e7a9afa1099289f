"""`cdkit eval`: from settings and benchmarks to a folder with all answers and metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.runner import journal_scores
from cdkit.evals.runner import run_folder as files
from cdkit.evals.runner.batches import AskedSample, asked_in
from cdkit.evals.runner.checkpoint_settings import stored
from cdkit.evals.runner.fingerprints import RunPart, data_hash, method_hash, model_files
from cdkit.evals.runner.journal import Journal, read_journal
from cdkit.evals.runner.lightning_module import RunJob
from cdkit.evals.runner.loggers import log_metrics, make_loggers
from cdkit.evals.runner.processes import follower, predict
from cdkit.evals.runner.run_folder import Fingerprints, opened
from cdkit.evals.runner.run_manifest import manifest
from cdkit.evals.runner.run_settings import Resources, RunSettings
from cdkit.methods.method import Method
from cdkit.pretrained import MICRO, micro_path


@dataclass(frozen=True, eq=False)
class EvalOutcome:
    """A finished run.

    Args:
        folder: The run's folder.
        metrics: Part -> what metrics.json holds of it.
        errors: Part -> sample id -> why it has no answer.
        torn: Journal files whose last line was incomplete and was removed.
    """

    folder: Path
    metrics: Mapping[str, Any]
    errors: Mapping[str, Mapping[str, str]]
    torn: tuple[str, ...]


def run_eval(
    settings: RunSettings,
    resources: Resources,
    parts: Sequence[RunPart],
    folder: Path,
    *,
    resume: bool = False,
    retry_errors: bool = False,
    loggers: Sequence[str] = (),
    bar: bool = False,
    silence: Callable[[], None] | None = None,
) -> EvalOutcome | None:
    """Answer every question of the parts and score the answers.

    Args:
        settings: What decides the answers.
        resources: What decides only the speed.
        parts: The benchmarks, each with its image folder.
        folder: The run's folder.
        resume: Continue the run in `folder` if there is one; its settings must be the same.
        retry_errors: Try samples again whose answer failed before.
        loggers: "tensorboard", "wandb" or both.
        bar: Show a progress bar on stderr.
        silence: Called first in each process, to keep libraries' messages out of the output.

    Returns:
        The finished run; None in a process that does not lead (rank 1 and above). A sample that
        fails has an entry in `errors`.

    Raises:
        CdkitError: `folder` exists and `resume` is not given, or it was begun with other settings,
            or the model or the device is not available. The answers so far stay in the journal.
    """
    method = settings.load_method()
    tasks = _tasks(parts, settings.limit)
    identity = _identity(settings, method, parts)

    def job(journal: Journal | None) -> RunJob:
        return RunJob(
            settings=settings,
            resources=resources,
            method=method,
            method_hash=identity.method,
            folder=folder,
            tasks=tasks,
            journal=journal,
            retry_errors=retry_errors,
            bar=bar,
            silence=silence,
        )

    if follower():
        predict(job(None), ())
        return None
    checkpoint = stored(_path(settings), settings.revision)
    with opened(folder, settings, identity, resume=resume, checkpoint=checkpoint):
        names = {digest: name for name, digest in identity.data.items()}

        def journal(*, mend: bool) -> Journal:
            where = folder / files.JOURNAL
            return read_journal(where, data=names, method=identity.method, mend=mend)

        before = journal(mend=True)
        kept = make_loggers(loggers, folder)
        if _lacking(tasks, settings, identity, before, retry=retry_errors):
            predict(job(before), kept)
        after = journal(mend=False)
        answered = journal_scores.collect(
            parts, after.rows, method=identity.method, seeds=settings.draws, limit=settings.limit
        )
        journal_scores.write_predictions(folder / files.PREDICTIONS, answered)
        numbers = journal_scores.metrics(answered)
        facts = manifest(folder.name, settings, identity, method, answered, after)
        journal_scores.write_json(folder / files.MANIFEST, facts)
        journal_scores.write_json(
            folder / files.METRICS,
            {"method": settings.shown_method, "mode": settings.mode, "parts": numbers},
        )
        log_metrics(kept, numbers, len(after.rows))
    errors = {part.name: part.errors for part in answered if part.errors}
    return EvalOutcome(folder, numbers, errors, before.torn)


def _tasks(parts: Sequence[RunPart], limit: int | None) -> tuple[AskedSample, ...]:
    tasks = tuple(task for part in parts for task in asked_in(part, limit))
    if not tasks:
        raise CdkitError("there is no question to ask: the parts chosen hold none")
    return tasks


def _identity(settings: RunSettings, method: Method, parts: Sequence[RunPart]) -> Fingerprints:
    data = {part.name: data_hash(part.benchmark) for part in parts}
    if len(set(data.values())) < len(data):
        raise CdkitError(
            f"two of the parts {', '.join(data)} hold the same questions: choose one with --only"
        )
    return Fingerprints(method_hash(method), data, model_files(_path(settings), settings.revision))


def _path(settings: RunSettings) -> str:
    return str(micro_path()) if settings.model == MICRO else settings.model


def _lacking(
    tasks: Sequence[AskedSample],
    settings: RunSettings,
    identity: Fingerprints,
    journal: Journal,
    *,
    retry: bool,
) -> bool:
    def done(task: AskedSample, seed: int | None) -> bool:
        row = journal.rows.get((task.data, task.id, identity.method, seed))
        return row is not None and not (retry and row.error)

    return not all(done(task, seed) for task in tasks for seed in settings.draws)
