"""The answer proper: after a thought, without marks; an unfinished thought is unknown."""

import json
from pathlib import Path

import pytest
from amber_files import write_amber

from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.doubts import doubts
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import PARSERS, POPE
from cdkit.interfaces.answer_text import THOUGHTS, UNFINISHED, opens_thought, proper_answer
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
def test_what_follows_a_thought_is_the_answer(opening: str, closing: str) -> None:
    for text in (
        f"{opening}No, or yes?{closing}\n\nYes",
        f"No, or yes?\n{closing}Yes",
        f"{opening}a{opening}b{closing}no{closing} Yes",
        f"Yes\n{opening}no",
        f"{opening.upper()}no{closing.upper()}Yes",
    ):
        assert proper_answer(text) == "Yes", text
    for text in (f"{opening}No idea yet", opening, closing, f"{opening}no{closing} \n", UNFINISHED):
        assert proper_answer(text) == UNFINISHED, text
    assert opens_thought(f"<image> Is it?\nASSISTANT: {opening}\n")
    assert not opens_thought(f"Is it? {opening}\n\n{closing}\n\n")


@pytest.mark.parametrize(
    "text",
    [
        "ASSISTANT: Yes</s>",
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nIs there no dog?",
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>",
        "<start_of_turn>model\nYes<end_of_turn>",
        "USER: \nIs there no dog? ASSISTANT: Yes",
        "<|channel|>final<|message|>Yes<|return|>",
        "<|begin_of_box|>Yes<|end_of_box|>",
        "<|assistant|>\n<think>so no</think>\n<answer>Yes</answer>",
    ],
)
def test_marks_of_a_template_are_no_answer(text: str) -> None:
    assert proper_answer(text) == "Yes"


@pytest.mark.parametrize(
    "text",
    ["Yes", " Yes ", "", "\n", "a <|ref|>dog<|/ref|>", "An assistant: no user.", "a < b > c"],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert proper_answer(text) == text


@pytest.fixture
def pope(tmp_path: Path) -> POPE:
    rows = [
        {"question_id": i, "image": "a.jpg", "text": f"Is it {i}?", "label": label}
        for i, label in enumerate(("yes", "no"))
    ]
    path = tmp_path / "pope.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    return POPE(path, parsers=tuple(PARSERS))


@pytest.fixture
def mme(tmp_path: Path) -> MME:
    folder = tmp_path / "mme"
    folder.mkdir()
    (folder / "count.txt").write_text("a.png\tOne?\tYes\na.png\tTwo?\tNo\n")
    return MME(folder)


@pytest.fixture
def amber(tmp_path: Path) -> AMBER:
    return AMBER(write_amber(tmp_path))


@pytest.fixture
def chair(tmp_path: Path) -> CHAIR:
    (tmp_path / "truth.json").write_text(json.dumps({"1": ["dog"], "2": ["cat"]}))
    return CHAIR(ground_truth=tmp_path / "truth.json")


def answers(benchmark: Benchmark, form: str, **more: bool) -> dict[str, Answer]:
    """Right ones (captions: "a dog") in `form`."""
    return {
        s.id: Answer(form.format(s.target.capitalize() if s.target else "a dog"), **more)
        for s in benchmark.samples()
    }


NAMES = ("pope", "amber", "mme", "chair")
RIGHT = {"pope": "vcd.accuracy", "amber": "official.accuracy", "mme": "count.acc"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "form", ["<think>Hm, a cat, yes or no?</think>\n{}<|im_end|>", "ok</think>{}"]
)
def test_answers_after_thoughts_score_as_plain_ones(
    request: pytest.FixtureRequest, name: str, form: str
) -> None:
    benchmark: Benchmark = request.getfixturevalue(name)
    plain = benchmark.score(answers(benchmark, "{}"))
    assert benchmark.score(answers(benchmark, form)) == plain
    assert plain["unknown"] == 0 and plain.get(RIGHT.get(name, ""), 1) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["<think>Hmm, no, a cat, or yes", "<think>no, a cat</think>"])
def test_unfinished_thoughts_are_unknown_and_counted(
    request: pytest.FixtureRequest, name: str, text: str
) -> None:
    benchmark: Benchmark = request.getfixturevalue(name)
    said = answers(benchmark, text, truncated=True)
    tally = benchmark.tally(said)
    found, count = tally.values(), len(said)
    assert found["unknown"] == found["truncated"] == count
    for key, value in found.items():  # of each parser, each task and each kind
        if key.endswith("unknown"):
            assert value > 0, key
        elif "truncated" not in key:
            assert value == 0, key
    unknown, cut, *_ = doubts(tally, said)
    assert unknown.startswith(f"{count} of {count} answers (100%) are unknown") and text in unknown
    assert "are truncated" in cut and "--max-new-tokens" in cut


def test_a_few_are_no_reason_for_a_warning(tmp_path: Path) -> None:
    rows = [{"question_id": i, "image": "a", "text": "q", "label": "no"} for i in range(40)]
    path = tmp_path / "pope.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    pope = POPE(path)
    for count, warned in ((2, False), (3, True)):
        said = {str(i): Answer("Perhaps" if i < count else "No") for i in range(40)}
        assert bool(doubts(pope.tally(said), said)) is warned
    kept = pope.tally(said, without=["0"])
    assert "to 1: 'Perhaps'" in doubts(kept, said)[0]
    thought = said | {"9": Answer("<think>a</think>No")}
    assert doubts(pope.tally(thought), thought)[1].startswith("40 of 40 answers have no yes score")
    cut = {name: Answer("No", 0.5, truncated=True) for name in said}
    assert [text.split(",")[0] for text in doubts(pope.tally(cut), cut)] == [
        "40 of 40 answers (100%) are truncated"
    ]


def test_empty_captions_make_a_low_chair_doubtful(chair: CHAIR) -> None:
    said = {"1": Answer(""), "2": Answer("a cat")}
    tally = chair.tally(said)
    assert tally.values()["chair_s"] == tally.values()["unknown"] == 0
    assert doubts(tally, said)[0].startswith(
        "1 of 2 answers (50%) are empty, such as that to 1: ''"
    )
