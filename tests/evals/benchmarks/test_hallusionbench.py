"""HallusionBench: the official script's counts, its groups by hand, each fault of the file.

The golden counts are those of tianyi-lab/HallusionBench 744007c, utils.py, on the rows below, where
the judge's word is replaced by the rule: yes or no as the truth is correct, else incorrect, and
neither is unclear.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from choice_files import FIGURES, hallusion_rows, write_hallusionbench
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.hallusionbench import HallusionBench, row_name
from cdkit.evals.benchmarks.score_choices import score_hallusionbench
from cdkit.interfaces.sample import Answer

SAID = ("Yes", "No.", "no", "yes", "Yes it is", "no", "I do not know", "yes", "no", "no")
OFFICIAL = {
    "accuracy": 8 / 10,
    "pair_accuracy": 2 / 4,
    "easy_accuracy": 3 / 4,
    "hard_accuracy": 3 / 4,
    "figure_accuracy": 4 / 5,
    "VD.accuracy": 4 / 5,
    "VD.pair_accuracy": 1 / 2,
    "VD.easy_accuracy": 2 / 2,
    "VD.hard_accuracy": 1 / 2,
    "VD.figure_accuracy": 2 / 3,
    "VS.accuracy": 4 / 5,
    "VS.pair_accuracy": 1 / 2,
    "VS.easy_accuracy": 1 / 2,
    "VS.hard_accuracy": 2 / 2,
    "VS.figure_accuracy": 2 / 2,
}


def named(texts: Iterable[str]) -> dict[str, Answer]:
    rows = zip(hallusion_rows(), texts, strict=True)
    return {row_name(row, ""): Answer(text) for row, text in rows}


def test_the_official_counts(tmp_path: Path) -> None:
    benchmark = HallusionBench(write_hallusionbench(tmp_path), text_only=True)
    score = benchmark.score(named(SAID))
    assert {name: score[name] for name in OFFICIAL} == pytest.approx(OFFICIAL)
    assert (score["unknown"], score["truncated"], score["yes_ratio"]) == (1, 0, 4 / 10)
    assert benchmark.samples()[0].id == "VD_illusion_0_0_0"
    assert benchmark.samples()[0].image == "VD/illusion/0_0.png"
    assert benchmark.samples()[0].prompt == "Is it 0?"
    assert benchmark.versions() == {"strict": 1, "anywhere": 1}


def test_a_run_asks_about_figures_alone(tmp_path: Path) -> None:
    benchmark = HallusionBench(write_hallusionbench(tmp_path))
    ids = [sample.id for sample in benchmark.samples()]
    assert len(ids) == 8 and not benchmark.without_figure() & set(ids)
    assert benchmark.without_figure() == {"VS_chart_0_0_0", "VS_chart_0_0_1"}
    score = benchmark.score({name: a for name, a in named(SAID).items() if name in ids})
    assert score["pair_accuracy"] == 3 / 4  # VS's second question is right with its one figure


def test_a_thought_without_an_end_is_not_honest(tmp_path: Path) -> None:
    """Neither yes nor no is right where there is no figure, but no answer at all is wrong."""
    benchmark = HallusionBench(write_hallusionbench(tmp_path), text_only=True)
    said = (*SAID[:6], "<think> I do not know", *SAID[7:])
    assert benchmark.score(named(said))["VS.accuracy"] == 3 / 5


def all_right(units: Iterable[tuple[str, bool]]) -> float:
    groups: defaultdict[str, list[bool]] = defaultdict(list)
    for name, right in units:
        groups[name].append(right)
    return sum(all(group) for group in groups.values()) / len(groups)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["yes", "no", "hm"]), min_size=10, max_size=10))
def test_the_groups_in_plain_loops(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = write_hallusionbench(tmp_path_factory.getbasetemp() / "hallusion")
    score = HallusionBench(path, text_only=True, parsers=("anywhere",)).score(named(texts))
    right = [
        text == ("no", "yes")[int(truth)] or (text == "hm" and seen == "0")
        for text, (_, _, seen, *_, truth) in zip(texts, FIGURES, strict=True)
    ]
    rows = list(zip(FIGURES, right, strict=True))
    pair = [((f"{c}{s}{n}{q}", seen), ok) for (c, s, seen, n, _, q, _), ok in rows]
    figure = [(f"{c}{s}{n}{f}", ok) for (c, s, _, n, f, _, _), ok in rows if (c, f) != ("VS", "0")]
    assert score["accuracy"] == pytest.approx(sum(right) / 10)
    assert score["pair_accuracy"] == pytest.approx(all_right((k, ok) for (k, _), ok in pair))
    assert score["figure_accuracy"] == pytest.approx(all_right(figure))
    hard = [(k, ok) for (k, seen), ok in pair if seen == "2"]
    easy = [(k, ok) for (k, seen), ok in pair if seen != "2"]
    assert score["hard_accuracy"] == pytest.approx(all_right(hard))
    assert score["easy_accuracy"] == pytest.approx(all_right(easy))


def test_what_is_left_out_takes_its_set_with_it(tmp_path: Path) -> None:
    benchmark = HallusionBench(write_hallusionbench(tmp_path), text_only=True)
    tally = benchmark.tally(named(SAID), without={"VS_chart_0_2_0"})
    assert tally.images == ("VD_illusion_0",)
    assert tally.values()["accuracy"] == OFFICIAL["VD.accuracy"]


def test_answers_as_the_official_script_reads_them(tmp_path: Path) -> None:
    questions = write_hallusionbench(tmp_path)
    rows = [
        {**row, "model_prediction": text} for row, text in zip(hallusion_rows(), SAID, strict=True)
    ]
    path = tmp_path / "HallusionBench_result.json"
    path.write_text(json.dumps(rows))
    scored = score_hallusionbench(questions, path, ["strict"])
    assert scored.metrics["pair_accuracy"] == pytest.approx(OFFICIAL["pair_accuracy"])
    assert scored.counted == {"questions": 10, "sets of figures": 2}
    assert scored.notes[0] == "the 2 questions without a figure count too"
    figures = [row for row in rows if row["visual_input"] != "0"]
    path.write_text(json.dumps(figures))
    scored = score_hallusionbench(questions, path, ["strict", "anywhere"])
    assert scored.counted["questions"] == 8
    assert scored.notes[0] == "the 2 questions without a figure are not asked"
    path.write_text(json.dumps(rows[:7]))
    with pytest.raises(CdkitError, match=r"answers 7 of the 10 questions"):
        score_hallusionbench(questions, path, ["strict"])
    path.write_text(json.dumps([*rows, rows[3]]))
    with pytest.raises(CdkitError, match=r"\[10\] answers sample VD_illusion_0_1_1 a second time"):
        score_hallusionbench(questions, path, ["strict"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("category", "VX", r"\[1\] has the category 'VX': it is VD or VS"),
        ("visual_input", "3", r"\[1\] has '3' as 'visual_input': it is 0 or 1 or 2"),
        ("gt_answer", "2", r"\[1\] has '2' as 'gt_answer': it is 0 or 1"),
        ("question_id", "0", r"\[1\] has the question VD_illusion_0_0_0 again"),
        ("set_id", None, r"\[1\] lacks 'set_id'"),
        ("question", " ", r"\[1\]: .*has ' ' as 'question'"),
        ("filename", "/x.png", r"\[1\]: the image name '/x.png' is not inside the image folder"),
        ("filename", None, r"\[1\]:? .*lacks 'filename'"),
        ("visual_input", "0", r"\[1\]:? .*has no visual input, and a file"),
    ],
)
def test_faults_of_rows(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = write_hallusionbench(tmp_path)
    rows = hallusion_rows()
    rows[1][key] = value
    path.write_text(json.dumps(rows))
    with pytest.raises(CdkitError, match=message):
        HallusionBench(path)


def test_a_file_without_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text("[]")
    with pytest.raises(CdkitError, match="asks nothing"):
        HallusionBench(path)
    with pytest.raises(CdkitError, match="no parser of HallusionBench answers is called 'judge'"):
        HallusionBench(path, parsers=("judge",))
