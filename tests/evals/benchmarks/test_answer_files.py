"""Answers are read from the right key, and belong to the questions that they are scored against."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from amber_files import write_amber

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.benchmark_files import read_answers
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.benchmarks.score_files import Scored, score_amber, score_chair, score_pope

Row = Mapping[str, Any]
Score = Callable[[Sequence[Row]], Scored]

ASKED: tuple[dict[str, Any], ...] = (
    {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a dog in it?"},
    {"question_id": 2, "image": "COCO_val2014_000000000042.jpg", "text": "Is there a cat in it?"},
    {"question_id": 3, "image": "COCO_val2014_000000000007.jpg", "text": "Is a car in the imange?"},
)
LABELS = ("yes", "no", "yes")


def lines(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pope(tmp_path: Path) -> Score:
    rows = [{**asked, "label": label} for asked, label in zip(ASKED, LABELS, strict=True)]
    path = lines(tmp_path / "pope.json", rows)
    return lambda said: score_pope(path, lines(tmp_path / "said.jsonl", said), ["strict"])


@pytest.fixture
def amber(tmp_path: Path) -> Score:
    path = write_amber(tmp_path)
    return lambda said: score_amber(path, None, lines(tmp_path / "said.jsonl", said), ["strict"])


@pytest.fixture
def chair(tmp_path: Path) -> Score:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"42": ["dog"], "7": ["car"]}))
    benchmark = CHAIR(ground_truth=truth)
    return lambda said: score_chair(benchmark, lines(tmp_path / "said.jsonl", said))


RIGHT = tuple({"question_id": i, "text": text} for i, text in enumerate(LABELS, start=1))


@pytest.mark.parametrize(
    ("keys", "of"),
    [
        (("text", "answer"), "pope"),
        (("answer", "response"), "pope"),
        (("text", "caption"), "pope"),
        (("caption", "text"), "chair"),
        (("answer", "caption"), "chair"),
        (("text", "response"), "amber"),
        (("answer", "response"), "amber"),
    ],
)
def test_two_texts_that_differ_are_an_error_naming_both(
    request: pytest.FixtureRequest, tmp_path: Path, keys: tuple[str, str], of: str
) -> None:
    score: Score = request.getfixturevalue(of)
    row = {"question_id": 1, "image_id": 42, "id": 1005, keys[0]: "Is there a dog?", keys[1]: "Yes"}
    for read in (score, lambda rows: read_answers(lines(tmp_path / "other.jsonl", rows))):
        with pytest.raises(CdkitError, match=r"jsonl:1 has '.*' as '\w+' and '.*' as") as told:
            read([row])
        assert all(repr(key) in str(told.value) for key in keys)


def test_two_texts_that_agree_are_one_answer(pope: Score) -> None:
    rows = [{**row, "answer": row["text"], "response": None} for row in RIGHT]
    assert pope(rows).metrics["accuracy"] == 1


@pytest.mark.parametrize("key", ["question", "prompt", "query"])
@pytest.mark.parametrize("words", ["{}", "<image>\n{}", "{} Please answer with one word."])
def test_rows_without_ids_are_in_the_order_of_the_questions(
    pope: Score, key: str, words: str
) -> None:
    rows = [
        {key: words.format(asked["text"].lower().replace("imange", "image")), "answer": label}
        for asked, label in zip(ASKED, LABELS, strict=True)
    ]
    assert pope(rows).metrics["accuracy"] == 1
    with pytest.raises(CdkitError, match=r"said.jsonl:1 answers another question .* its " + key):
        pope([rows[1], rows[0], rows[2]])
    with pytest.raises(CdkitError, match=r"answers 2 of the 3 questions in .* \(not 3\)"):
        pope(rows[:2])
    with pytest.raises(CdkitError, match=r"said.jsonl:4 answers no question: .* has 3"):
        pope([*rows, rows[0]])
    with pytest.raises(CdkitError, match=r"said.jsonl:2 lacks 'question_id': every row needs"):
        pope([rows[0], {"answer": "yes"}, rows[2]])
    with pytest.raises(CdkitError, match=r"said.jsonl:1 lacks 'question_id'"):
        pope([rows[0], RIGHT[1], rows[2]])


@pytest.mark.parametrize(
    "more",
    [
        {"image": "COCO_val2014_000000000042.jpg", "prompt": "<image> is there a dog in it"},
        {"image": "/photos/val2014/COCO_val2014_000000000042.JPG"},
        {"image": 42, "question": "Is there a dog in it? Answer with yes or no."},
        {"image": ["000000000042.jpg"], "prompt": ["no text", "of one kind"]},
        {"image": None, "prompt": "", "model_id": "m", "answer_id": "x", "metadata": {}},
    ],
)
def test_rows_that_repeat_their_question_are_read(pope: Score, more: Row) -> None:
    assert pope([{**RIGHT[0], **more}, *RIGHT[1:]]).metrics["accuracy"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"image": "COCO_val2014_000000000007.jpg"}, "its image is 'COCO_val2014_000000000007.jpg"),
        ({"imange": "a/b/other.png"}, "its imange is 'a/b/other.png'"),
        ({"image_id": 4}, "its image_id is '4', and the question is about"),
        ({"prompt": "Is there a cat in it?"}, "its prompt is 'Is there a cat in it"),
        ({"question": "Is there a dog in it or not"[:14]}, ""),
        ({"query": "Is there a horse in it?"}, "and the question is 'Is there a dog in it?'"),
    ],
)
def test_a_row_of_another_file_is_an_error_with_its_line(pope: Score, more: Row, said: str) -> None:
    rows = [RIGHT[2], {**RIGHT[0], **more}, RIGHT[1]]
    if not said:  # the beginning of the question
        assert pope(rows).metrics["accuracy"] == 1
        return
    with pytest.raises(
        CdkitError, match=r"said.jsonl:2 answers another question .* id 1: its"
    ) as e:
        pope(rows)
    assert said in str(e.value)


def test_captions_and_ambers_answers_of_another_file(chair: Score, amber: Score) -> None:
    row = {"image_id": 42, "caption": "a dog", "prompt": "Describe it."}
    for image in ("COCO_val2014_000000000042.jpg", "COCO_train2014_000000000042.jpg", "x.jpg"):
        assert chair([{**row, "image": image}]).metrics["chair_s"] == 0
    with pytest.raises(CdkitError, match=r"said.jsonl:1 .* its image is 'COCO_val2014_0000000000"):
        chair([{**row, "image": "COCO_val2014_000000000007.jpg"}])
    with pytest.raises(CdkitError, match=r"said.jsonl:1 .* its image is 'AMBER_999.jpg'"):
        amber([{"id": 1005, "response": "Yes", "image": "AMBER_999.jpg"}])
    with pytest.raises(CdkitError, match=r"said.jsonl:1 .* its query is 'Is the moon blue"):
        amber([{"id": 1005, "response": "Yes", "query": "Is the moon blue in this image?"}])


def test_the_questions_are_no_answers(pope: Score) -> None:
    with pytest.raises(CdkitError, match=r"said.jsonl:1 has the question itself as its answer"):
        pope(ASKED)


EMPTY: dict[str, list[str]] = {"images": [], "categories": [], "annotations": []}


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "", "\n\n"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path, more: POPE(path),
        lambda path, more: AMBER(path, more["annotations"]),
        lambda path, more: AMBER(more["queries"], path),
        lambda path, more: CHAIR(ground_truth=path),
        lambda path, more: CHAIR(instances=path, captions=more["captions"]),
        lambda path, more: CHAIR(instances=more["instances"], captions=more["captions"]),
        lambda path, more: CHAIR(ground_truth=more["truth"], synonyms=path),
        lambda path, more: MME(path.parent),
        lambda path, more: read_answers(path),
        lambda path, more: score_pope(more["pope"], path, ["strict"]),
        lambda path, more: score_amber(more["queries"], None, path, ["strict"]),
        lambda path, more: score_chair(CHAIR(ground_truth=more["truth"]), path),
    ],
)
def test_files_that_hold_nothing_are_an_error(
    tmp_path: Path, read: Callable[[Path, Mapping[str, Path]], object], content: str
) -> None:
    more = {"queries": write_amber(tmp_path / "amber")}
    more["annotations"] = next((tmp_path / "amber").rglob("annotations.json"))
    rows = [{**asked, "label": "yes"} for asked in ASKED]
    more["pope"] = lines(tmp_path / "pope.json", rows)
    for name, value in {"truth": {"42": ["dog"]}, "instances": EMPTY, "captions": EMPTY}.items():
        more[name] = tmp_path / f"{name}.json"
        more[name].write_text(json.dumps(value))
    path = tmp_path / "mme/count.txt"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(CdkitError, match=r"\.(json|txt)"):
        read(path, more)
