"""`cdkit score` for the benchmarks of today's papers: tables, JSON, one line where it fails."""

import json
from pathlib import Path

import pytest
from amber_files import write_amber, write_amber_generative
from choice_files import hallusion_rows, write_hallusionbench, write_scienceqa
from evals.command_line import refused, run

from cdkit.evals.benchmarks.scienceqa import ScienceQA


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str | Path]]:
    """Command -> its arguments, for answers that are all right."""
    write_amber(tmp_path)
    query = write_amber_generative(tmp_path)
    texts = ("sky, person and forest", "a ship on the sea", "a table")
    described = [{"id": i, "response": text} for i, text in enumerate(texts, start=1)]
    (tmp_path / "described.json").write_text(json.dumps(described))

    shown = write_hallusionbench(tmp_path / "hallusionbench")
    rows = [
        {**row, "model_prediction": ("No", "Yes")[row["gt_answer"] == "1"]}
        for row in hallusion_rows()
    ]
    (tmp_path / "hallusion.json").write_text(json.dumps(rows))

    problems = write_scienceqa(tmp_path / "scienceqa")
    letters = [{"question_id": s.id, "text": s.target} for s in ScienceQA(problems).samples()]
    (tmp_path / "letters.json").write_text(json.dumps(letters))

    asked = [
        {
            "question_id": i,
            "image": "7.jpg",
            "text": f"Is there a {n} in the image?",
            "label": label,
        }
        for i, (n, label) in enumerate((("dog", "yes"), ("cat", "no")))
    ]
    (tmp_path / "pope.json").write_text(json.dumps(asked))
    (tmp_path / "captions.json").write_text('[{"image_id": 7, "caption": "a dog"}]')
    return {
        "amber-generative": ["--questions", query, "--answers", tmp_path / "described.json"],
        "opope": ["--questions", tmp_path / "pope.json", "--captions", tmp_path / "captions.json"],
        "hallusionbench": ["--questions", shown, "--answers", tmp_path / "hallusion.json"],
        "scienceqa": ["--questions", problems, "--answers", tmp_path / "letters.json"],
    }


BEST = {
    "amber-generative": {"simple.chair": 0, "simple.hal": 0, "unknown": 0, "truncated": 0},
    "opope": {"accuracy": 1, "f_beta": 1, "unknown": 0, "truncated": 0},
    "hallusionbench": {"pair_accuracy": 1, "figure_accuracy": 1, "unknown": 0, "truncated": 0},
    "scienceqa": {"accuracy": 1, "llava.accuracy": 1, "unknown": 0, "truncated": 0},
}


@pytest.mark.parametrize("command", BEST)
def test_tables_and_json(command: str, files: dict[str, list[str | Path]]) -> None:
    result = run("score", command, *files[command], "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    best = BEST[command]
    assert {name: found[name] for name in best} == pytest.approx(best)
    assert all(len(digest) == 64 for digest in found["files"].values())
    table = run("score", command, *files[command])
    assert table.exit_code == 0, table.output
    for word in ("unknown", "truncated", "read by", "sha256"):
        assert word in table.stdout, word


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        ("amber-generative", ("--scorer", "vectors"), "no scorer of AMBER's descriptions is"),
        ("opope", ("--scorer", "vectors"), "no scorer of OPOPE is called 'vectors'"),
        ("hallusionbench", ("--parser", "gpt"), "no parser of HallusionBench answers is called"),
        ("scienceqa", ("--parser", "gpt"), "no parser of ScienceQA answers is called 'gpt'"),
        ("scienceqa", ("--part", "x"), "--part, --seed and the like pick answers of a run"),
        ("opope", ("--seed", "1"), "--part, --seed and the like pick captions of a run"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    command: str,
    option: tuple[str, str],
    message: str,
    files: dict[str, list[str | Path]],
) -> None:
    assert message in refused("score", command, *files[command], *option)


def test_the_official_scorer_says_what_it_lacks(
    files: dict[str, list[str | Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    said = refused("score", "amber-generative", *files["amber-generative"], "--scorer", "official")
    assert "nltk's data 'punkt_tab' is not there" in said


def test_the_page_names_every_command() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
    for command in BEST:
        assert f"cdkit score {command} " in page and f"| `{command}` |" in page
