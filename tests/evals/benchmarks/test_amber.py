"""AMBER: positive is no; metrics by hand and by counting; each fault of the two files."""

import json
from pathlib import Path

import numpy as np
import pytest
from amber_files import QUESTIONS, write_amber
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER, KINDS, PARTS, official
from cdkit.interfaces.sample import Answer


def answers(*texts: str) -> dict[str, Answer]:
    return {str(1005 + i): Answer(text) for i, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", "yes"), ("No", "no"), ("yes", "unknown"), ("No.", "unknown"), ("", "unknown")],
)
def test_the_official_parser_takes_two_words_to_the_letter(text: str, said: str) -> None:
    assert official(text, "yes") == official(text, "no") == said


def test_metrics_by_hand(tmp_path: Path) -> None:
    amber = AMBER(write_amber(tmp_path))
    # state: yes no | number: no | action: yes | existence: no no | relation: yes no
    said = answers("Yes", "No", "Yes", "No", "No", "no, none", "Perhaps", "No")
    score = amber.score(said)
    whole = {
        "accuracy": 5 / 8,
        "precision": 4 / 5,  # five answers no, four of them right
        "recall": 4 / 5,  # five questions whose truth is no
        "f1": 4 / 5,
        "yes_ratio": 2 / 8,
        "unknown": 1,
        "existence.accuracy": 1,
        "existence.f1": 1,
        "attribute.accuracy": 2 / 4,
        "attribute.precision": 1 / 2,
        "attribute.recall": 1 / 2,
        "state.accuracy": 1,
        "number.f1": 0,
        "action.precision": 0,
        "relation.accuracy": 1 / 2,
        "relation.unknown": 1,
        "official.unknown": 2,  # "no, none" too
        "official.existence.recall": 1 / 2,
        "official.accuracy": 4 / 8,
    }
    assert {name: score[name] for name in whole} == pytest.approx(whole)
    assert amber.versions() == {"strict": 1, "official": 1}
    assert [s.group for s in amber.samples()] == ["AMBER_1.jpg"] * 8


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> AMBER:
    path = write_amber(tmp_path_factory.mktemp("amber"), ("a.jpg", "b.jpg", "c.jpg"))
    return AMBER(path, parsers=("official",))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["Yes", "No", "Hm"]), min_size=8, max_size=8))
def test_metrics_by_counting(three: AMBER, texts: list[str]) -> None:
    tally = three.tally(answers(*texts))
    score = tally.values()
    for part, kinds in {"": set(KINDS.values()), **{p: set(k) for p, k in PARTS.items()}}.items():
        rows = [
            (truth, text.lower())
            for (kind, truth), text in zip(QUESTIONS, texts, strict=True)
            if KINDS[kind] in kinds
        ]
        hit, said = rows.count(("no", "no")), [text for _, text in rows]
        no, truth_no = said.count("no"), [truth for truth, _ in rows].count("no")
        expected = {
            "accuracy": (hit + rows.count(("yes", "yes"))) / len(rows),
            "precision": hit / no if no else 0,
            "recall": hit / truth_no if truth_no else 0,
            "f1": 2 * hit / (no + truth_no) if no + truth_no else 0,
            "yes_ratio": said.count("yes") / len(rows),
            "unknown": said.count("hm"),
        }
        prefix = f"{part}." if part else ""
        found = {name: score[prefix + name] for name in expected}
        assert found == pytest.approx(expected), part
    for name, column in tally.binary.items():
        by_image = tally.at(np.eye(3), only=[name])[name]
        assert (by_image > 0).tolist() == (tally.by_image[column] > 0).tolist()


def test_a_file_of_one_kind(tmp_path: Path) -> None:
    path = write_amber(tmp_path)
    rows = [row for row in json.loads(path.read_text()) if row["id"] in (1009, 1010)]
    path.write_text(json.dumps(rows))
    score = AMBER(path).score({"1009": Answer("No"), "1010": Answer("Yes")})
    assert score["accuracy"] == score["existence.accuracy"] == 0.5
    assert not any(name.startswith(("attribute", "state", "relation")) for name in score)


def test_where_annotations_are_looked_for(tmp_path: Path) -> None:
    path = write_amber(tmp_path)
    moved = (tmp_path / "annotations.json").rename(tmp_path / "mine.json")
    with pytest.raises(CdkitError, match=r"has no annotations.json beside it or in the folder abo"):
        AMBER(path)
    assert AMBER(path, moved).sources().keys() == {str(path), str(moved)}
    moved.rename(path.parent / "annotations.json")
    assert len(AMBER(path).samples()) == 8


QUERY = {"id": 1005, "image": "a.jpg", "query": "Is it?"}


@pytest.mark.parametrize(
    ("queries", "annotations", "message"),
    [
        ([QUERY, QUERY], None, r"query.*: \[1\] has the id 1005 again: each id stands once"),
        ([QUERY | {"id": 9}], None, r"query.*: \[0\]: .*annotations.json has no annotation of the"),
        ([QUERY | {"id": 1}], None, r"\[0\] asks for a description \(id 1\): give the file of the"),
        ([QUERY | {"image": "../a"}], None, r"\[0\]: the image name '../a' is not inside"),
        ([{"id": 1005}], None, r"\[0\] lacks 'image'"),
        ([], None, r"query_discriminative.json asks nothing"),
        ([QUERY], [{"id": 1005, "type": "x", "truth": "yes"}], r"no type of AMBER question is"),
        ([QUERY], [{"id": 1005, "type": "relation", "truth": "ye"}], r"\[0\] has the label 'ye'"),
        ([QUERY], [{"id": 1005}] * 2, r"annotations.json: \[1\] has the id 1005 again"),
    ],
)
def test_a_faulty_file_is_one_clear_error(
    tmp_path: Path, queries: object, annotations: object, message: str
) -> None:
    path = write_amber(tmp_path)
    path.write_text(json.dumps(queries))
    if annotations is not None:
        (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    with pytest.raises(CdkitError, match=message):
        AMBER(path)


def test_faulty_settings(tmp_path: Path) -> None:
    path = write_amber(tmp_path)
    with pytest.raises(CdkitError, match=r"no parser of AMBER answers is called 'offical'. Did"):
        AMBER(path, parsers=("offical",))
    with pytest.raises(CdkitError, match="name one or more, none twice"):
        AMBER(path, parsers=())
