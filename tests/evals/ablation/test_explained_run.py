"""`cdkit explain --run`: the command that a report names, and the run's own answers again."""

import html
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from evals.command_line import refused, run
from evals.small_run import said

from cdkit.evals.ablation import explained_run
from cdkit.evals.ablation.explained_run import explained_answer_of_run
from cdkit.evals.reports.results import Results
from cdkit.evals.runner.explain_command import explain_command


def commands(folder: Path) -> list[list[str]]:
    """Those that the report names, in words, without "cdkit"."""
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    found = [
        shlex.split(line) for line in re.findall(r"^.*(cdkit explain --run .*?)(?:<|$)", page, re.M)
    ]
    assert found and all(words[:3] == ["cdkit", "explain", "--run"] for words in found)
    return [words[1:] for words in found]


def test_each_example_names_its_command(
    results: Results, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command line takes it, and asks for that question of the run and for its methods."""
    asked: list[tuple[Any, ...]] = []

    def stand_in(folder: Path, question: str, methods: list[str], **options: Any) -> Any:
        asked.append((folder, question, tuple(methods)))
        raise ValueError("enough")

    monkeypatch.setattr(explained_run, "explained_answer_of_run", stand_in)
    for words in commands(folder):
        run(*words, "--out", tmp_path / "page.html")
    examples = [(g.benchmark, e) for g in results.galleries for e in g.examples]
    assert len(asked) == len(examples)
    for (place, question, methods), (part, example) in zip(asked, examples, strict=True):
        assert (place, question) == (folder, f"{part}/{example.sample}")
        texts = {name: each.text for each in example.answers for name in each.methods}
        assert methods and all(texts[name] != texts["plain"] for name in methods)


def test_a_command_is_one_line_of_a_shell() -> None:
    line = explain_command(
        Path("my runs/a"), "pope", "it's", ["a", "b,c"], model="m", mode="sample", seed=1
    )
    assert shlex.split(line)[2:] == [
        *("--run", "my runs/a", "--question", "pope/it's", "--method", "a,b,c"),
        *("--model", "m", "--mode", "sample", "--seed", "1"),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--question", "pope/none"), "has no question 'pope/none': give a benchmark"),
        (("--question", "pope/1", "--method", "cmax"), "Did you mean 'cmac'?"),
        (("--question", "pope/1", "--seed", "7"), "drew no answers (mode greedy)"),
        (("--question", "pope/1", "--mode", "sample", "--seed", "7"), "has the seeds 0, 1"),
        (("--question", "pope/1", "--model", "macro"), "Did you mean 'micro'?"),
        (("--question", "1"), "--question 1 is one of pope/1, "),
    ],
)
def test_what_the_run_has_not(folder: Path, given: tuple[str, ...], words: str) -> None:
    assert words in refused("explain", "--run", folder, *given)


@pytest.mark.slow  # answers and traces, of every kind of example
def test_the_commands_of_a_report_work(folder: Path, tmp_path: Path) -> None:
    for words in commands(folder):
        result = run(*words, "--out", tmp_path / "page.html")
        assert result.exit_code == 0 and "note:" not in result.stderr, result.output
        part, sample = words[words.index("--question") + 1].split("/", 1)
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        for method in words[words.index("--method") + 1].split(","):
            answer = said(folder, part=part, id=sample, method=method, mode="greedy")[sample]
            assert method in page and answer.text.split()[0].lower() in page.lower()


@pytest.mark.slow  # answers and traces
@pytest.mark.parametrize(("mode", "seed"), [("sample", 0), ("sample", 1), ("beam", None)])
def test_the_answers_are_those_of_the_run(folder: Path, mode: str, seed: int | None) -> None:
    told: list[str] = []
    found = explained_answer_of_run(
        folder, "pope/1", ["cmac", "constraint"], mode=mode, seed=seed, tell=told.append
    )
    assert told == ["model: micro on cpu in float32"]  # no word of an answer that is another
    for answer in found.answers[1:]:
        recorded = said(folder, part="pope", id="1", method=answer.name, mode=mode, seed=seed)
        assert answer.text.lower().startswith(recorded["1"].text.lower())
