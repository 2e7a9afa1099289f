"""ScienceQA: LLaVA's prompt, parser and accuracy; the letter parser; each fault of the files.

The golden accuracy was printed by haotian-liu/LLaVA c121f04, llava/eval/eval_science_qa.py, on the
problems and answers below.
"""

import json
import re
from pathlib import Path

import pytest
from choice_files import PROBLEMS, write_scienceqa
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.letters import letter, llava
from cdkit.evals.benchmarks.scienceqa import ScienceQA
from cdkit.evals.benchmarks.score_choices import score_scienceqa
from cdkit.interfaces.sample import Answer

SAID = {"4": "B", "5": "C. Iowa", "7": "The answer is A.", "9": "sun", "12": "E"}
OFFICIAL = 50.00  # "IMG-Accuracy"


def asked(texts: dict[str, str]) -> dict[str, Answer]:
    return {name: Answer(text) for name, text in texts.items() if name != "4"}


def test_the_official_accuracy(tmp_path: Path) -> None:
    benchmark = ScienceQA(write_scienceqa(tmp_path), parsers=("llava", "letter"))
    score = benchmark.score(asked(SAID))
    assert score["accuracy"] * 100 == pytest.approx(OFFICIAL)
    assert score["unknown"] == 2  # E is no choice
    assert score["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4 + 1 / 2) / 4)
    assert score["natural.accuracy"] == 1 / 2
    assert score["letter.language.accuracy"] == 0
    assert score["grade_1_6.accuracy"] == score["grade_7_12.accuracy"] == 1 / 2
    assert score["truncated"] == 0
    assert benchmark.without_image() == {"4"}
    assert benchmark.versions() == {"llava": 1, "letter": 1}


def test_the_prompt_is_that_of_llava(tmp_path: Path) -> None:
    first, second, *_ = ScienceQA(write_scienceqa(tmp_path)).samples()
    assert first.prompt == (
        "Context: N/A\nQuestion: Which is north?\nOptions: (A) Ohio (B) Utah (C) Iowa\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.prompt.startswith("Context: Look at it.\nQuestion: Which eats?\n")  # one blank
    assert (first.image, first.target) == ("test/5/image.png", "C")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *((text, "B") for text in ("B", "b", "(B)", "B.", " [b] ", "**B**", "B\n")),
        *((text, "B") for text in ("B. A dog", "(B) a dog", "B) a dog", "B: a dog", "B\nIt is.")),
        *((text, "B") for text in ("The answer is B", "Answer: b", "The correct option is (B).")),
        ("A", "A"),
        ("A dog", "unknown"),  # an article
        ("the answer is a dog", "unknown"),
        ("the answer is A or B", "unknown"),
        ("answer A, answer B", "unknown"),
        ("The answer is D", "unknown"),  # there are three choices
        *((text, "unknown") for text in ("", "D", "dog", "Both", "I'm not sure", "AB")),
    ],
)
def test_the_letter_parser(text: str, found: str) -> None:
    assert letter(text, 3) == found


PIECES = st.sampled_from(["A", "B", "E", "F", ". ", ".", "The answer is ", "\n", " dog", "b"])


@given(st.lists(PIECES, max_size=5), st.integers(2, 5))
def test_llavas_parser_in_plain_steps(pieces: list[str], choices: int) -> None:
    text, options = "".join(pieces), ["A", "B", "C", "D", "E"]
    answer = ""
    if text in options:
        answer = text
    elif text[1:3] == ". " and text[0] in options:
        answer = text[0]
    elif len(hits := re.findall(r"The answer is ([A-Z]).", text)) == 1:
        (answer,) = hits
    assert llava(text, choices) == (answer if answer in options[:choices] else "unknown")


def test_answers_in_a_file(tmp_path: Path) -> None:
    """The problems without an image are answered too, as LLaVA's script writes them."""
    questions = write_scienceqa(tmp_path)
    prompts = {s.id: f"<image>\n{s.prompt}" for s in ScienceQA(questions).samples()}
    rows = [{"question_id": i, "text": t, "prompt": prompts.get(i, "?")} for i, t in SAID.items()]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = score_scienceqa(questions, path, ["llava"])
    assert scored.metrics["accuracy"] == OFFICIAL / 100
    assert scored.counted == {"questions": 4, "images": 4}
    assert scored.notes == ("problems of the split without an image, which are not asked: 1",)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    with pytest.raises(CdkitError, match="answers 2 of the 4 questions"):
        score_scienceqa(questions, path, ["llava"])
    with pytest.raises(CdkitError, match=r"no split is called 'tests'.*Did you mean 'test'"):
        score_scienceqa(questions, path, ["llava"], split="tests")
    with pytest.raises(CdkitError, match=r"in the split 'val' of .* has an image"):
        score_scienceqa(questions, path, ["llava"], split="val")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("choices", ["one"], "problem 5 has .* as 'choices': it is a list of 2 to 5 texts"),
        ("choices", list("abcdef"), "problem 5 has .* as 'choices'"),
        ("choices", ["a", 2], "problem 5 has .* as 'choices'"),
        ("answer", 3, "problem 5 has 3 as 'answer': it is the number of a choice, from 0 to 2"),
        ("answer", True, "problem 5 has True as 'answer'"),
        ("answer", "C", "problem 5 has 'C' as 'answer'"),
        ("hint", None, "problem 5 has None as 'hint': it must be text"),
        (
            "subject",
            "natural sciense",
            "problem 5: no subject is called .*Did you mean 'natural sci",
        ),
        ("grade", "grade13", "problem 5: no grade is called 'grade13'"),
        ("question", "", "problem 5 has '' as 'question'"),
        ("image", "../../x.png", "problem 5: the image name .* is not inside the image folder"),
        ("split", None, "problem 5 lacks 'split'"),
    ],
)
def test_faults_of_problems(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = write_scienceqa(tmp_path)
    problems = json.loads(path.read_text())
    problems["5"][key] = value
    path.write_text(json.dumps(problems))
    with pytest.raises(CdkitError, match=message):
        ScienceQA(path)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([], r"pid_splits.json holds no {split: \[ids\]}"),
        ({"test": "5"}, "has 5 as 'test': it is a list of ids"),
        ({"test": [5]}, "as 'test': it is a list of ids"),
        ({"test": ["5", "7", "5"]}, "has 5 twice in 'test'"),
        ({"test": ["5", "99"]}, "names the problem 99, which is not in"),
    ],
)
def test_faults_of_splits(tmp_path: Path, splits: object, message: str) -> None:
    path = write_scienceqa(tmp_path)
    path.with_name("pid_splits.json").write_text(json.dumps(splits))
    with pytest.raises(CdkitError, match=message):
        ScienceQA(path)


def test_a_missing_file_and_an_unknown_parser(tmp_path: Path) -> None:
    path = write_scienceqa(tmp_path)
    with pytest.raises(CdkitError, match="no parser of ScienceQA answers is called 'lava'"):
        ScienceQA(path, parsers=("lava",))
    path.write_text(json.dumps([*PROBLEMS]))
    with pytest.raises(CdkitError, match=r"holds no {id: problem}"):
        ScienceQA(path)
    path.with_name("pid_splits.json").unlink()
    with pytest.raises(CdkitError, match=r"pid_splits.json cannot be read"):
        ScienceQA(path)
