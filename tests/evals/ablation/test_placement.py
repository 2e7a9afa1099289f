"""Placement files: what they tell, and what is said about one that has another form."""

import json
from pathlib import Path

import pytest

from cdkit.errors import CdkitError
from cdkit.evals.ablation.placement import placed
from cdkit.interfaces.sample import Sample

CAT = {"category": "cat", "tokens": [4, 6]}
SAMPLES = (
    Sample("1", "a.png", "is there a cat ?", "a", "yes"),
    Sample("2", "a.png", "is there a dog ?", "a", "no"),
    Sample("3", "b.png", "is there a cat ?", "b", "yes"),
)


def written(folder: Path, content: object) -> Path:
    path = folder / "placement.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_place_is_a_share_of_the_images_own_tokens(tmp_path: Path) -> None:
    file = written(tmp_path, {"a.png": {"image_tokens": 11, "objects": [CAT]}})
    assert [(p.sample.id, p.at) for p in placed(SAMPLES, file)] == [("1", 0.5)]


def test_without_a_count_the_largest_token_is_the_last(tmp_path: Path) -> None:
    dog = {"category": "dog", "tokens": [10]}
    file = written(tmp_path, {"a.png": {"objects": [CAT]}, "b.png": {"objects": [dog]}})
    assert [p.at for p in placed(SAMPLES, file)] == [0.5]


def test_two_of_a_kind_are_not_counted(tmp_path: Path) -> None:
    assert placed(SAMPLES, written(tmp_path, {"a.png": {"objects": [CAT, CAT]}})) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the placement file"),
        ([], "must hold one JSON object"),
        ({"a.png": {"objs": []}}, "a.png: the image needs a list 'objects'"),
        ({"a.png": []}, "a.png: the image needs a list 'objects'"),
        ({"a.png": {"objects": {}}}, "a.png: the image needs a list 'objects'"),
        ({"a.png": {"objects": ["cat"]}}, "each object needs its category"),
        ({"a.png": {"objects": [{"tokens": [1]}]}}, "each object needs its category"),
        ({"a.png": {"objects": [CAT | {"category": 3}]}}, "each object needs its category"),
        ({"a.png": {"objects": [CAT | {"tokens": []}]}}, "each object needs its category"),
        ({"a.png": {"objects": [CAT | {"tokens": ["1"]}]}}, "each object needs its category"),
        ({"a.png": {"objects": [CAT | {"tokens": [-1]}]}}, "each object needs its category"),
        ({"a.png": {"objects": [CAT], "image_tokens": 0}}, "must be a whole number from 1 on"),
        ({"a.png": {"objects": [CAT], "image_tokens": True}}, "must be a whole number from 1 on"),
        ({"a.png": {"objects": [CAT], "image_tokens": 6}}, "is not below image_tokens 6"),
    ],
)
def test_another_form_is_one_clear_error(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CdkitError) as told:
        placed(SAMPLES, written(tmp_path, content))
    assert message in str(told.value) and "placement.json" in str(told.value)
