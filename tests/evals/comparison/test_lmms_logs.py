"""Logs of lmms-eval side by side: the files as its 0.7 writes them, and what may be compared."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import app
from cdkit.evals.comparison import comparison_run
from cdkit.evals.comparison.run_folders import read_runs
from cdkit.evals.comparison.run_names import name_runs

NONE = hashlib.sha256(b"null").hexdigest()
"""lmms-eval's hash of any document: its requests carry none."""
DATE = "20261130_101500"
GREEDY = {"max_new_tokens": 16, "temperature": 0.0, "do_sample": False, "until": ["\n\n"]}


def pope_row(number: int, right: bool) -> dict[str, Any]:
    target = "yes" if number % 2 else "no"
    said = target if right else {"yes": "no", "no": "yes"}[target]
    score = {"question_id": number, "score": float(right), "prediction": said,
             "ground_truth": target}  # fmt: skip
    return {
        "doc_id": number,
        "target": target,
        "filtered_resps": said,
        "token_counts": [{"output_tokens": 1}],
        "doc_hash": NONE,
        **{f"pope_{name}": score for name in ("accuracy", "precision", "yes_ratio")},
        "input": f"Is there a thing {number} ?\nAnswer the question using a single word or phrase.",
    }


def caption_row(number: int, length: float, wrong: bool) -> dict[str, Any]:
    return {"doc_id": number, "target": "a", "resps": ["a b"], "filtered_resps": "a",
            "token_counts": [None], "doc_hash": NONE, "words": length, "hallucinates": wrong,
            "said": "a", "input": "Describe it."}  # fmt: skip


POPE = {"pope_accuracy": True, "pope_precision": True, "pope_yes_ratio": True}


def write_log(
    folder: Path,
    tasks: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    arguments: str = "pretrained=micro,method=plain,seed=0",
    decoding: Mapping[str, Any] = GREEDY,
    version: object = "Yaml",
    date: str = DATE,
    source: str = "cdkit",
) -> Path:
    """A log of lmms-eval: DATE_results.json and a DATE_samples_TASK.jsonl for each task."""
    place = folder / "micro"
    place.mkdir(parents=True, exist_ok=True)
    results = {
        "results": {name: {"alias": name, "pope_accuracy,none": 0.5,
                           "pope_accuracy_stderr,none": "N/A"} for name in tasks},
        "configs": {name: {"task": name, "generation_kwargs": dict(decoding),
                           "metadata": [{"version": 0.0}]} for name in tasks},
        "versions": dict.fromkeys(tasks, version),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            n: POPE if n.startswith("pope") else {"hallucinates": False} for n in tasks
        },
        "config": {"model": source, "model_args": arguments, "batch_size": "8", "limit": None},
        "lmms_eval_version": "0.7.3",
        "model_source": source,
        "model_name": "micro",
    }  # fmt: skip
    (place / f"{date}_results.json").write_text(json.dumps(results, indent=2))
    for name, rows in tasks.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{date}_samples_{name}.jsonl").write_text(text)
    return folder


def pope(right: int, count: int = 12) -> list[dict[str, Any]]:
    return [pope_row(number, number < right) for number in range(count)]


METHOD = "pretrained=micro,method={},seed=0"


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    captions = [caption_row(i, 10.0 + i, i < 6) for i in range(8)]
    shorter = [caption_row(i, 8.0 + i, i < 2) for i in range(8)]
    return [
        write_log(tmp_path / "plain", {"pope": pope(6), "captions": captions},
                  arguments=METHOD.format("plain")),
        write_log(tmp_path / "cmac", {"pope": list(reversed(pope(10))), "captions": shorter},
                  arguments=METHOD.format("cmac") + ",alpha=2.0,bucket=[1,2]"),
    ]  # fmt: skip


def test_logs_become_tables_with_intervals_and_tests(two: list[Path]) -> None:
    runs = name_runs(read_runs(two))
    assert list(runs) == ["plain", "cmac"] and runs["cmac"].model == "micro"
    found = comparison_run.compare_runs(runs, resamples=50)
    pope, captions = found.results.tables
    assert (pope.benchmark, pope.metrics, pope.samples) == ("pope", ("pope_accuracy",), 12)
    cell = pope.rows["cmac"].cells["pope_accuracy"]
    assert cell.value.value == pytest.approx(10 / 12)
    assert cell.difference is not None and cell.difference.value == pytest.approx(4 / 12)
    assert (cell.gained, cell.lost) == (4, 0) and cell.p == pytest.approx(2 / 16)
    assert captions.metrics == ("words.neither_score", "hallucinates.lower")
    words, wrong = (captions.rows["cmac"].cells[metric] for metric in captions.metrics)
    assert words.value.value == 11.5 and words.p is None
    assert wrong.difference is not None and wrong.difference.value == -0.5 and wrong.p is not None
    text = "\n".join(found.notes)
    assert "pope: pope_precision, pope_yes_ratio: logged as pope_accuracy, shown once" in text
    assert "captions: said: no number for a document was logged, so left out" in text
    assert "alpha: plain None, cmac '2.0'" in text
    assert "the unit of intervals and tests is the document" in text
    assert "pope_accuracy is the mean" not in text  # as lmms-eval has it


def test_the_whole_command(two: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "compared"
    ran = CliRunner().invoke(app, ["compare", *map(str, two), "--output", str(output)])
    assert ran.exit_code == 0, ran.output
    text = (output / "tables.md").read_text()
    assert "| method | hallucinates % ↓ |" in text or "hallucinates % ↓" in text
    assert "pope accuracy % ↑" in text and "Cost" not in text
    data = json.loads((output / "comparison.json").read_text())
    assert data["runs"]["cmac"]["method"] == "cmac" and len(data["tables"]) == 2
    assert (output / "report.html").is_file() and (output / "tables" / "tables.tex").is_file()


def refused(a: Path, b: Path) -> str:
    with pytest.raises(CdkitError) as error:
        comparison_run.compare_runs(name_runs(read_runs([a, b]), ["a", "b"]), resamples=10)
    return str(error.value)


def with_row(number: int, **changes: Any) -> list[dict[str, Any]]:
    return [row | changes if row["doc_id"] == number else row for row in pope(6)]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda p: write_log(p, {"pope": with_row(3, doc_hash="ab")}),
         f"of pope document 3 is another one: its hash is '{NONE}' in one, 'ab' in the other"),
        (lambda p: write_log(p, {"pope": with_row(2, target="yes")}),
         "of pope document 2 is another one: its answer is 'no' in one, 'yes' in the other"),
        (lambda p: write_log(p, {"pope": with_row(2, input="Is it so ?")}),
         "of pope document 2 is another one: its question is 'Is there a thing 2 ?"),
        (lambda p: write_log(p, {"pope": pope(6)[:7]}),
         "of pope 5 of 12 documents are missing in the other (7, 8, 9, ...); run both on the same"),
        (lambda p: write_log(p, {"pope": pope(6, 13)}),
         "of pope 1 of 13 documents are missing in the first (12)"),
        (lambda p: write_log(p, {"pope": pope(6)}, version=2.0),
         "of pope version is 'Yaml' in one, 2.0 in the other; run both with one version"),
        (lambda p: write_log(p, {"pope": pope(6)}, decoding={**GREEDY, "max_new_tokens": 4}),
         "of pope generation_kwargs is {'max_new_tokens': 16,"),
        (lambda p: write_log(p, {"pope_adv": pope(6)}),
         "the runs share no task (a: pope; b: pope_adv): run them on the same ones"),
        (lambda p: write_log(p, {"pope": with_row(4, pope_accuracy="none")}),
         "of pope document 4 has no number for pope_accuracy in one of the logs"),
        (lambda p: write_log(p, {"pope": [*pope(6), pope_row(3, True)]}),
         "samples_pope.jsonl:13 is document 3 of pope for the second time: a task of several"),
        (lambda p: write_log(p, {"pope": with_row(4, doc_id=None)}),
         "samples_pope.jsonl:5 has no number of a document (doc_id): run lmms-eval again with"),
        (lambda p: write_log(p, {"pope": with_row(4, pope_accuracy=float("nan"))}),
         "samples_pope.jsonl:5 has a score that is no number (nan)"),
        (lambda p: write_log(p, {"pope": pope(6)}, arguments="pretrained=other,method=plain"),
         "a and b cannot be compared: their models are micro and other; add --across-models"),
        (lambda p: write_log(p, {"pope": pope(6)},
                             arguments=METHOD.format("cmac") + ",system='be brief, please'"),
         "their protocols differ: system is not set in one and 'be brief, please' in the other"),
    ],
)  # fmt: skip
def test_logs_that_cannot_be_compared(
    tmp_path: Path, other: Callable[[Path], Path], told: str, as_for_a_user: None
) -> None:
    assert told in refused(write_log(tmp_path / "one", {"pope": pope(6)}), other(tmp_path / "two"))


def test_the_same_protocol_under_another_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text('[models.llava]\nsystem = "Be brief."\n')
    again = tmp_path / "again.toml"
    again.write_text('summary = "the same"\n[models.llava]\nsystem = "Be brief."\n')
    logs = [
        write_log(tmp_path / path.stem, {"pope": pope(6)},
                  arguments=f"{METHOD.format('plain')},protocol={path}")
        for path in (own, again)
    ]  # fmt: skip
    found = comparison_run.compare_runs(name_runs(read_runs(logs), ["a", "b"]), resamples=10)
    assert not any(note.startswith("protocols") for note in found.notes)
    gone = f"{METHOD.format('plain')},protocol={tmp_path / 'gone.toml'}"
    theirs = write_log(tmp_path / "c", {"pope": pope(6)}, arguments=gone)
    assert "their protocols differ: " in refused(logs[0], theirs)


def test_folders_that_hold_no_one_log(tmp_path: Path, two: list[Path]) -> None:
    write_log(two[0], {"pope": pope(6)}, date="20261201_000000")
    with pytest.raises(CdkitError, match=r"plain holds several evaluations of lmms-eval: give one"):
        read_runs(two)
    file = two[0] / "micro" / f"{DATE}_results.json"
    assert [run.method for run in read_runs([file, two[1]])] == ["plain", "cmac"]
    bare = write_log(tmp_path / "bare", {"pope": pope(6)})
    (bare / "micro" / f"{DATE}_samples_pope.jsonl").unlink()
    with pytest.raises(CdkitError, match=r"has no logs of documents beside it .*--log_samples"):
        read_runs([bare, two[1]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CdkitError, match=r"is a log of lmms-eval, and .*empty is none: compare"):
        read_runs([two[1], tmp_path / "empty"])


def test_models_may_differ_on_purpose_and_parts_are_named(tmp_path: Path) -> None:
    one = write_log(tmp_path / "one", {"pope": pope(6), "pope_adv": pope(5)})
    other = write_log(tmp_path / "two", {"pope": pope(6)}, source="llava_hf",
                      arguments="pretrained=other/model", decoding=GREEDY)  # fmt: skip
    runs = name_runs(read_runs([one, other]))
    assert list(runs) == ["plain", "llava_hf"]
    found = comparison_run.compare_runs(runs, across_models=True, resamples=10)
    assert found.notes[0] == "models differ: plain is of micro, llava_hf of other/model"
    assert "not compared, since not all runs have it: pope_adv of plain" in found.notes
