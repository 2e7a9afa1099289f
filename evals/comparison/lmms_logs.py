"""Logs of lmms-eval (`--log_samples`), read as runs to compare.

The format is that of EvolvingLMMs-Lab/lmms-eval at commit 75571cf. `lmms_eval/evaluator.py:1277`
makes a row of a document: doc_id, target, resps, filtered_resps, token_counts, doc_hash,
maybe input_media, and the metrics of the task beside them. `lmms_eval/loggers/
evaluation_tracker.py:240` adds input, drops the document itself, and appends the rows to
DATE_samples_TASK.jsonl, beside the DATE_results.json of line 169.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import json_rows, read_source
from cdkit.evals.integrations.lmms_eval.options import PROTOCOL, around
from cdkit.evals.runner.checked import TABLE, checked
from cdkit.evals.runner.finished import FinishedRun, LoggedDocument, LoggedTask
from cdkit.evals.runner.modes import BEAM, GREEDY, SAMPLE
from cdkit.evals.runner.run_folder import MANIFEST

RESULTS = "_results.json"
NO_METRICS = frozenset(
    {
        *("doc_id", "doc", "target", "resps", "filtered_resps", "token_counts", "doc_hash"),
        *("input", "input_media", "arguments"),
    }
)
"""Keys of a row that are no metrics."""
SCORE_KEY = "score"
"""Where the number of a metric is that is a table for each document, unless the task's `score_key`
says otherwise."""
ADVICE = "run lmms-eval again with --log_samples, into a new --output_path"


def is_log(path: Path) -> bool:
    """Whether a folder holds results of lmms-eval, or a file is one of its results."""
    if path.is_file():
        return path.name.endswith(RESULTS)
    return not (path / MANIFEST).is_file() and bool(_results(path))


def read_log(path: Path) -> FinishedRun:
    """Read one evaluation of lmms-eval.

    Args:
        path: The `--output_path` of lmms-eval, a folder in it, or one of its `*_results.json`.

    Returns:
        A run whose `logged` tasks have the documents' scores.

    Raises:
        CdkitError: The folder holds several evaluations, no log of documents, or a damaged one.
    """
    found = [path] if path.is_file() else _results(path)
    if len(found) > 1:
        raise CdkitError(
            f"{path} holds several evaluations of lmms-eval: give one of its files, such as "
            f"{found[-1]}"
        )
    (file,) = found
    results = checked(
        read_source(file).json(), {"versions": TABLE, "configs": TABLE}, str(file), ADVICE
    )
    start = file.name.removesuffix(RESULTS)
    files = {name: file.with_name(f"{start}_samples_{name}.jsonl") for name in results["versions"]}
    logged = {n: _task(n, log, results) for n, log in files.items() if log.is_file()}
    if not logged:
        raise CdkitError(
            f"{file} has no logs of documents beside it ({start}_samples_TASK.jsonl): {ADVICE}"
        )
    config = results.get("config") or {}
    arguments = _arguments(config.get("model_args"))
    model = str(arguments.get("pretrained") or results.get("model_name") or "")
    kind = str(results.get("model_source") or config.get("model") or "")
    method = Path(str(arguments["method"])).stem if "method" in arguments else kind
    others = {k: v for k, v in arguments.items() if k not in (*PROTOCOL, "pretrained", "method")}
    kept = {key: config[key] for key in ("limit", "offset", "random_seed") if config.get(key)}
    return FinishedRun(
        folder=file,
        model=model,
        method=method,
        mode=mode_of(next(iter(logged.values())).settings),
        parts={},
        manifest={
            "model": {"name": model, "revision": arguments.get("revision"), "harness": kind},
            "protocol": _protocol(arguments) if "method" in arguments else {},
            "settings": {**others, **kept},
            "versions": {"lmms-eval": results.get("lmms_eval_version")},
            "pieces": [{"batch_size": config.get("batch_size")}],
        },
        seconds=0.0,
        tokens=0,
        logged=logged,
    )


def _results(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{RESULTS}"))


def _task(name: str, file: Path, results: Mapping[str, Any]) -> LoggedTask:
    config = results["configs"].get(name) or {}
    metadata = config.get("metadata")
    key = str(config.get("score_key") or SCORE_KEY)
    documents = dict[int, LoggedDocument]()
    metrics, numbers = dict[str, None](), set[str]()
    for where, row in json_rows(read_source(file)):
        number = row.get("doc_id")
        if isinstance(number, bool) or not isinstance(number, int):
            raise CdkitError(f"{where} has no number of a document (doc_id): {ADVICE}")
        if number in documents:
            raise CdkitError(
                f"{where} is document {number} of {name} for the second time: a task of several "
                f"filters, or two evaluations in one file; {ADVICE}"
            )
        given = {metric: value for metric, value in row.items() if metric not in NO_METRICS}
        scores = {metric: _score(value, key, where) for metric, value in given.items()}
        metrics |= dict.fromkeys(given)
        numbers |= {metric for metric, score in scores.items() if score is not None}
        documents[number] = LoggedDocument(
            question=str(row.get("input")),
            target=str(row.get("target")),
            digest=str(row.get("doc_hash")),
            scores={metric: score for metric, score in scores.items() if score is not None},
        )
    own = (results.get("results") or {}).get(name) or {}
    return LoggedTask(
        settings={
            "version": results["versions"][name],
            "metadata": metadata,
            "shots": (results.get("n-shot") or {}).get(name),
            "generation_kwargs": config.get("generation_kwargs"),
        },
        documents=dict(sorted(documents.items())),
        higher_is_better=(results.get("higher_is_better") or {}).get(name) or {},
        reported={
            key.partition(",")[0]: float(value)
            for key, value in own.items()
            if isinstance(value, int | float) and "_stderr" not in key
        },
        without_number=tuple(metric for metric in metrics if metric not in numbers),
    )


def _score(value: object, key: str, where: str) -> float | None:
    """A document's number; None where a metric has none, such as a text."""
    if isinstance(value, Mapping):
        value = value.get(key)
    if not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        raise CdkitError(f"{where} has a score that is no number ({value}): {ADVICE}")
    return float(value)


def mode_of(settings: Mapping[str, object]) -> str:
    """The decode mode that the settings of a task ask for."""
    given = settings["generation_kwargs"]
    options = given if isinstance(given, Mapping) else {}
    if (options.get("num_beams") or 1) > 1:
        return BEAM
    warm = bool(options.get("temperature"))
    return SAMPLE if options.get("do_sample", warm) else GREEDY


def _arguments(given: object) -> dict[str, Any]:
    """The model arguments: as text `a=1,b=[2,3]`, or a table."""
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    found, depth, start, text = dict[str, Any](), 0, 0, str(given or "")
    quote = ""
    for place, character in enumerate(f"{text},"):
        if character in ("'", '"') and quote in ("", character):
            quote = "" if quote else character
        depth += (character in "[{") - (character in "]}") if not quote else 0
        if character == "," and not depth and not quote:
            name, _, value = text[start:place].partition("=")
            found |= {name.strip(): value.strip()} if name.strip() else {}
            start = place + 1
    return found


def _protocol(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the protocol that cdkit's model had; by its name where it cannot be read."""
    try:
        protocol = around(arguments)
    except CdkitError:
        return {f"{name} (as given)": arguments[name] for name in PROTOCOL if name in arguments}
    return {} if protocol is None else protocol.record()
