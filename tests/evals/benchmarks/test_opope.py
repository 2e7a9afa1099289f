"""OPOPE: HALC's rule and counts in plain steps, CHAIR's words, captions in files and of runs."""

import json
from pathlib import Path

import pytest
from evals.eval_run import answer, draw, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.opope import OPOPE, image_number, mentions_any_word
from cdkit.evals.benchmarks.score_captions import score_opope
from cdkit.evals.benchmarks.score_files import Picked
from cdkit.interfaces.sample import Answer

IMAGES = ("COCO_val2014_000000000007.jpg", "COCO_val2014_000000000042.jpg")
ASKED = (
    (0, "dog", "yes"),
    (0, "car", "no"),
    (0, "traffic light", "yes"),
    (0, "tie", "no"),
    (1, "person", "yes"),
    (1, "dining table", "no"),
)
CAPTIONS = ("A dog with a scarf in the light", "A man at a table")


def row(number: int, image: str, name: str, label: str) -> dict[str, object]:
    an = "an" if name[0] in "aeiou" else "a"
    text = f"Is there {an} {name} in the image?"
    return {"question_id": number, "image": image, "text": text, "label": label}


def rows() -> list[dict[str, object]]:
    return [row(i, IMAGES[image], name, label) for i, (image, name, label) in enumerate(ASKED)]


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "coco_pope_random.json", rows())


def by_halc(captions: tuple[str, ...]) -> dict[str, float]:
    """BillChan226/HALC 5feca62, eval/opope_eval.py, `recorder` and `print_acc`, in plain steps."""
    hits = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for image, name, label in ASKED:
        said = False
        for word in name.split(" "):
            if captions[image].find(word) >= 0:
                said = True
        hits[("tn", "fn", "fp", "tp")[2 * said + (label == "yes")]] += 1
    tp, fp, tn, fn = hits.values()
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn)
    both, weighed = precision + recall, 0.04 * precision + recall
    return {
        "accuracy": (tp + tn) / len(ASKED),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "f_beta": 1.04 * precision * recall / weighed if weighed else 0.0,
        "yes_ratio": (tp + fp) / len(ASKED),
    }


def test_the_official_rule_by_hand(questions: Path) -> None:
    benchmark = OPOPE(questions)
    assert [s.id for s in benchmark.samples()] == ["7", "42"]
    assert benchmark.samples()[0].image == IMAGES[0]
    score = benchmark.score({"7": Answer(CAPTIONS[0]), "42": Answer(CAPTIONS[1])})
    # yes: dog, car (s-car-f), traffic light, table | no: tie, person, for "man" is another word
    golden = {
        "accuracy": 3 / 6,
        "precision": 2 / 4,
        "recall": 2 / 3,
        "f1": 4 / 7,
        "f_beta": 1.04 * 2 / (0.04 * 3 + 4),
        "yes_ratio": 4 / 6,
        "unknown": 0,
        "truncated": 0,
    }
    assert score == pytest.approx(golden)
    assert by_halc(CAPTIONS) == pytest.approx({name: golden[name] for name in by_halc(CAPTIONS)})
    assert mentions_any_word("a hot day", "hot dog") and not mentions_any_word("A Dog", "dog")


WORDS = st.sampled_from(["dog", "scarf", "light", "man", "table", "a", "tied", "Dog", "person"])


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6))
def test_the_official_rule_in_plain_steps(
    tmp_path_factory: pytest.TempPathFactory, one: list[str], two: list[str]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "opope.json", rows())
    captions = (" ".join(one), " ".join(two))
    score = OPOPE(path).score({"7": Answer(captions[0]), "42": Answer(captions[1])})
    expected = by_halc(captions)
    assert {name: score[name] for name in expected} == pytest.approx(expected)


def test_words_as_in_chair(questions: Path) -> None:
    benchmark = OPOPE(questions, scorers=("simple", "official"))
    score = benchmark.score({"7": Answer(CAPTIONS[0]), "42": Answer("<think>A man")})
    # yes: dog alone; a thought without an end mentions nothing
    assert (score["precision"], score["recall"], score["unknown"]) == (1, 1 / 3, 1)
    assert score["official.yes_ratio"] == 3 / 6
    assert benchmark.versions() == {"simple": 2, "official": 1}
    assert len(benchmark.sources()) == 2 and len(OPOPE(questions).sources()) == 1
    man = OPOPE(questions, scorers=("simple",)).score({"7": Answer(""), "42": Answer("A man")})
    assert man["recall"] == 1 / 3


def test_captions_in_a_file(questions: Path, tmp_path: Path) -> None:
    said: list[dict[str, object]] = [
        {"image_id": 7, "caption": CAPTIONS[0]},
        {"image_id": IMAGES[1], "caption": CAPTIONS[1]},
        {"image_id": 1, "caption": "a cat"},
    ]
    path = write(tmp_path / "captions.jsonl", said)
    scored = score_opope(questions, path)
    assert scored.metrics["accuracy"] == pytest.approx(3 / 6)
    assert scored.counted == {"captions": 2, "images": 2, "questions": 6}
    assert scored.notes == ("captions of 1 other images are passed over",)
    scored = score_opope(questions, write(path, said[:1]))
    assert scored.counted["questions"] == 4
    assert scored.notes == ("1 of the 2 images have a caption",)
    with pytest.raises(CdkitError, match=r"no caption in .* is about an image of"):
        score_opope(questions, write(path, said[2:]))
    with pytest.raises(CdkitError, match=r":2 is about the image 7 again"):
        score_opope(questions, write(path, [said[0], {**said[0], "image_id": IMAGES[0]}]))


def prediction(part: str, name: str, text: str, seed: int | None = None) -> dict[str, object]:
    who = {"model": "m", "method": "plain", "mode": "sample"}
    row = {**who, "part": part, "id": name, "seed": seed, "text": text, "yes_score": None}
    return {**row, "truncated": False, "tokens": 3}


def test_captions_of_a_run(questions: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    chair = [prediction("chair", n, t) for n, t in zip(("7", "42"), CAPTIONS, strict=True)]
    scored = score_opope(questions, write(path, chair))
    assert scored.metrics["accuracy"] == pytest.approx(3 / 6)
    assert scored.notes[0] == "the captions of chair"
    write(path, [*chair, prediction("pope", "0", "Yes")])
    with pytest.raises(CdkitError, match=r"several parts with captions \(chair, pope\): say which"):
        score_opope(questions, path)
    seeds = [prediction("chair", "7", text, seed) for seed, text in enumerate(("a dog", "a cat"))]
    found = score_opope(questions, write(path, seeds)).metrics
    assert found["recall"] == pytest.approx((1 / 2 + 0) / 2)  # the mean over the seeds


def test_captions_of_a_whole_run(tmp_path: Path) -> None:
    """Its manifest says which part holds captions."""
    files = draw(tmp_path / "world")
    answer(parts_of(files)[:2], tmp_path / "run", method="plain")
    path = tmp_path / "run" / "predictions.jsonl"
    scored = score_opope(files.pope["random"], path, ("simple",), synonyms=files.synonyms)
    assert scored.notes[0] == "the captions of chair"
    assert scored.counted == {"captions": 3, "images": 3, "questions": 18}
    by_pope = score_opope(files.pope["random"], path, ("simple",), Picked("chair"), files.synonyms)
    assert by_pope.metrics == scored.metrics


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": "How many dogs are there?"}, r":2 asks 'How many dogs are there\?': a cap"),
        ({"image": "other/000007.png"}, r":2 is about other/000007.png, and COCO_.*7.jpg has"),
        ({"label": "maybe"}, r":2 has the label 'maybe'"),
    ],
)  # fmt: skip
def test_faults_of_questions(questions: Path, changed: dict[str, object], message: str) -> None:
    lines = rows()
    lines[1] |= changed
    with pytest.raises(CdkitError, match=message):
        OPOPE(write(questions, lines))


def test_an_object_that_chair_does_not_know(questions: Path) -> None:
    lines = rows()
    lines[3] = row(3, IMAGES[0], "kangaroo", "no")
    write(questions, lines)
    assert len(OPOPE(questions).samples()) == 2
    with pytest.raises(
        CdkitError, match=r":4 asks for 'kangaroo', which stands in no line of .*syn"
    ):
        OPOPE(questions, scorers=("simple",))
    with pytest.raises(CdkitError, match="no scorer of OPOPE is called 'wordnett'"):
        OPOPE(questions, scorers=("wordnett",))
    with pytest.raises(CdkitError, match="name one or more, none twice"):
        OPOPE(questions, scorers=("simple", "simple"))


@pytest.mark.parametrize(
    ("name", "number"),
    [(IMAGES[0], "7"), ("42", "42"), ("gqa/2405722.jpg", "2405722"), ("a.png", "a")],
)
def test_an_image_is_named_by_its_number(name: str, number: str) -> None:
    assert image_number(name) == number


def test_questions_that_are_an_objects_name_alone(tmp_path: Path) -> None:
    """As HALC's script writes them; and POPE's first release spells the image "imange"."""
    lines = rows()
    lines[0]["text"] = "dog"
    lines[1]["text"] = "Is there an car in the imange?"
    benchmark = OPOPE(write(tmp_path / "q.json", lines))
    assert benchmark.asked_about(["7"]) == {"7": ("dog", "car", "traffic light", "tie")}
