"""Logs of lmms-eval side by side: may they be compared, and their scores as tallies."""

from collections.abc import Iterator, Mapping

import numpy as np

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.column_metrics import share_of
from cdkit.evals.comparison.run_names import NamedRuns, in_all, not_compared
from cdkit.evals.protocols.protocol_records import differences
from cdkit.evals.runner.finished import FinishedRun, LoggedTask
from cdkit.interfaces.sample import Sample
from cdkit.interfaces.tally import Tally

SHARE = (0.0, 1.0)
ROUNDING = 1e-6
FEW = 3
"""Documents that an error names at most."""


def check(runs: NamedRuns, *, across_models: bool = False) -> tuple[str, ...]:
    """Notes on what differs besides the method; a CdkitError where a comparison would mislead.

    Args:
        runs: Runs of lmms-eval alone.
        across_models: Whether the model may differ.

    Returns:
        The notes.

    Raises:
        CdkitError: The logs share no task, or differ in a task's version, shots, decoding or
            documents, in the protocol, or in the model.
    """
    base, *others = runs
    notes: list[str] = []
    for other in others:
        notes += _pair(runs, base, other, across_models=across_models)
    notes += not_compared({name: run.logged for name, run in runs.items()}, "task")
    return tuple(dict.fromkeys(notes))


def shared(runs: NamedRuns) -> tuple[str, ...]:
    """The tasks that every log has, in the base's order."""
    return in_all({name: run.logged for name, run in runs.items()})


def tallies(runs: NamedRuns, task: str) -> tuple[Mapping[str, Tally], tuple[str, ...]]:
    """The scores of a task's documents.

    Args:
        runs: Runs of lmms-eval whose logs may be compared.
        task: A task of all of them.

    Returns:
        Name of a run -> its tally, whose metrics are the mean scores, and notes. A metric's name
        ends as `cdkit.evals.reports.results.KINDS` says, where it is no share of which more is
        better.
    """
    logs = {name: run.logged[task] for name, run in runs.items()}
    first = next(iter(logs.values()))
    metrics = dict.fromkeys(m for d in first.documents.values() for m in d.scores)
    kept, equal = dict[str, str](), dict[str, list[str]]()
    for metric in metrics:
        twin = next((known for known in kept if _alike(metric, known, logs)), None)
        if twin is None:
            kept[metric] = metric + _kind(metric, logs)
        else:
            equal.setdefault(twin, []).append(metric)
    notes = [f"{task}: {', '.join(m)}: logged as {twin}, shown once" for twin, m in equal.items()]
    for metric in kept:
        scores = [d.scores[metric] for d in first.documents.values() if metric in d.scores]
        own, mean = first.reported.get(metric), float(np.mean(scores))
        if own is not None and abs(own - mean) > ROUNDING * max(1.0, abs(own)):
            notes.append(
                f"{task}: {metric} is the mean over documents here ({mean:.4g}); lmms-eval "
                f"aggregates it in another way ({own:.4g} of {next(iter(logs))})"
            )
    if first.without_number:
        listed = ", ".join(first.without_number)
        notes.append(f"{task}: {listed}: no number for a document was logged, so left out")
    return {name: _tally(log, kept) for name, log in logs.items()}, tuple(notes)


def _pair(runs: NamedRuns, base: str, other: str, *, across_models: bool) -> Iterator[str]:
    a, b = runs[base], runs[other]

    def refuse(what: str, mend: str) -> CdkitError:
        return CdkitError(f"{base} and {other} cannot be compared: {what}; {mend}")

    if a.model != b.model:
        if not across_models:
            raise refuse(
                f"their models are {a.model} and {b.model}",
                "add --across-models to compare models on purpose",
            )
        yield f"models differ: {base} is of {a.model}, {other} of {b.model}"
    apart = differences(_table(a, "protocol"), _table(b, "protocol"))
    if refused := [text for text in apart if not text.startswith("methods")]:
        raise refuse(f"their protocols differ: {'; '.join(refused)}", "run both under one protocol")
    yield from (f"protocols of {base} and {other}: {text}" for text in apart)
    for task in shared({base: a, other: b}):
        mine, theirs = a.logged[task], b.logged[task]
        for key, value in mine.settings.items():
            if value != theirs.settings[key]:
                raise refuse(
                    f"of {task} {key} is {value!r} in one, {theirs.settings[key]!r} in the other",
                    "run both with one version of lmms-eval and one --gen_kwargs",
                )
        if (found := _documents(mine, theirs)) is not None:
            raise refuse(f"of {task} {found}", "run both on the same documents")
    for key in ("settings", "versions"):
        ours, yours = _table(a, key), _table(b, key)
        for name in dict.fromkeys([*ours, *yours]):
            if ours.get(name) != yours.get(name):
                yield f"{name}: {base} {ours.get(name)!r}, {other} {yours.get(name)!r}"


def _table(run: FinishedRun, key: str) -> Mapping[str, object]:
    value = run.manifest.get(key)
    return value if isinstance(value, Mapping) else {}


def _documents(a: LoggedTask, b: LoggedTask) -> str | None:
    """How the documents of two logs differ; None where they do not."""
    for one, two, which in ((a, b, "the other"), (b, a, "the first")):
        if lacking := [number for number in one.documents if number not in two.documents]:
            listed = ", ".join(map(str, lacking[:FEW])) + ", ..." * (len(lacking) > FEW)
            count = f"{len(lacking)} of {len(one.documents)} documents"
            return f"{count} are missing in {which} ({listed})"
    # lmms-eval 0.7 hashes no document but its absence, so what was asked is held against it too
    for what, field in (("hash", "digest"), ("answer", "target"), ("question", "question")):
        values = [{n: getattr(d, field) for n, d in log.documents.items()} for log in (a, b)]
        if wrong := [number for number in a.documents if values[0][number] != values[1][number]]:
            return (
                f"document {wrong[0]} is another one: its {what} is "
                f"{values[0][wrong[0]]!r} in one, {values[1][wrong[0]]!r} in the other"
                + (f" (so are {len(wrong) - 1} more)" if len(wrong) > 1 else "")
            )
    for number, document in a.documents.items():
        if odd := sorted({*document.scores} ^ {*b.documents[number].scores}):
            return f"document {number} has no number for {', '.join(odd)} in one of the logs"
    return None


def _kind(metric: str, logs: Mapping[str, LoggedTask]) -> str:
    """The end of a metric's name that says its better side and its scale."""
    scores = [
        d.scores[metric]
        for log in logs.values()
        for d in log.documents.values()
        if metric in d.scores
    ]
    share = SHARE[0] <= min(scores) and max(scores) <= SHARE[1]
    higher = next(iter(logs.values())).higher_is_better.get(metric)
    ends = {
        True: ("", "score"),
        False: ("lower", "lower_score"),
        None: ("neither", "neither_score"),
    }
    end = ends[higher][not share]
    return f".{end}" if end else ""


def _alike(one: str, other: str, logs: Mapping[str, LoggedTask]) -> bool:
    """Whether two metrics have equal scores for every document of every log."""
    return all(
        d.scores.get(one) == d.scores.get(other)
        for log in logs.values()
        for d in log.documents.values()
    )


def _tally(log: LoggedTask, kept: Mapping[str, str]) -> Tally:
    """The documents' scores; a document without a metric does not count in it."""
    documents = log.documents
    columns = dict[str, np.ndarray]()
    for metric, name in kept.items():
        has = [metric in document.scores for document in documents.values()]
        columns[f"{name}: documents"] = np.array(has, dtype=float)
        scores = [document.scores.get(metric, 0.0) for document in documents.values()]
        columns[name] = np.array(scores)
    return Tally(
        samples=tuple(
            Sample(str(number), image=str(number), prompt=d.question, group=str(number))
            for number, d in documents.items()
        ),
        columns=columns,
        sums={name: share_of(name, f"{name}: documents") for name in kept.values()},
        binary={n: n for n in kept.values() if np.isin(columns[n], SHARE).all()},
    )
