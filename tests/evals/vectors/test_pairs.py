"""Folders of demonstrations: what is read, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.command_line import refused, run
from evals.vectors.demonstrations import PAIRS, PROMPT, write_folder
from PIL import Image

from cdkit.errors import CdkitError
from cdkit.evals.microworld import WORLD
from cdkit.evals.vectors.pairs import read_pairs


@pytest.fixture
def folder(tmp_path: Path, image: Callable[[int], Image.Image]) -> Path:
    return write_folder(tmp_path / "pairs", image)


def test_pairs_are_read_in_order(folder: Path) -> None:
    found = read_pairs(folder)
    assert [(pair.truthful, pair.hallucinated) for pair in found.pairs] == list(PAIRS)
    assert {pair.prompt for pair in found.pairs} == {PROMPT}
    assert [pair.image.name for pair in found.pairs] == [f"{i}.png" for i in range(len(PAIRS))]


def test_the_hash_is_of_texts_and_images(folder: Path, image: Callable[[int], Any]) -> None:
    before = read_pairs(folder).sha256
    assert read_pairs(folder).sha256 == before
    image(99).save(folder / "0.png")
    assert read_pairs(folder).sha256 != before
    image(0).save(folder / "0.png")
    assert read_pairs(folder).sha256 == before
    file = folder / "pairs.jsonl"
    file.write_text(file.read_text().replace("no w7", "no w6"))
    assert read_pairs(folder).sha256 != before


ROW = {"image": "0.png", "prompt": "p", "truthful": "a", "hallucinated": "b"}
FAULTS: dict[str, tuple[str, str]] = {
    "empty": ("\n", "is empty"),
    "no list": ("[]", "holds no pair: give one in each line"),
    "a text is missing": (
        json.dumps({k: v for k, v in ROW.items() if k != "truthful"}),
        r"pairs.jsonl:1 lacks 'truthful'",
    ),
    "a text is blank": (json.dumps(ROW | {"hallucinated": " "}), r":1 has ' ' as 'hallucinated'"),
    "one text twice": (json.dumps(ROW | {"hallucinated": "a "}), "one text as truthful and as"),
    "no such image": (json.dumps(ROW | {"image": "x.png"}), r":1: the image .*x.png is missing"),
    "out of the folder": (json.dumps(ROW | {"image": "../x.png"}), "a link out of its folder"),
    "no JSON": ("{", "is not valid JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_error_each(fault: str, folder: Path) -> None:
    text, told = FAULTS[fault]
    (folder / "pairs.jsonl").write_text(text)
    with pytest.raises(CdkitError, match=told):
        read_pairs(folder)


def test_a_folder_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match=r"holds no pairs\.jsonl: give a folder with that file"):
        read_pairs(tmp_path)


def test_the_micro_worlds_pairs(tmp_path: Path) -> None:
    """A hallucinated caption names one object more, and that one is absent."""
    for name in ("one", "two"):
        assert run("data", "micro-pairs", tmp_path / name, "--pairs", "8").exit_code == 0
    one, two = (read_pairs(tmp_path / name) for name in ("one", "two"))
    assert one.sha256 == two.sha256 and len(one.pairs) == 8
    names = {*WORLD.categories, "people", *(f"{name}s" for name in WORLD.categories)}
    for pair in one.pairs:
        true, false = (
            names & {*text.strip(".").replace(",", "").split()}
            for text in (pair.truthful, pair.hallucinated)
        )
        assert true < false and len(false) == len(true) + 1
    assert "is there and not an empty folder" in refused("data", "micro-pairs", tmp_path / "one")
