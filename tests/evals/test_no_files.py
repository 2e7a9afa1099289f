"""What is no file (a pipe, a socket, a device, a folder) is refused where a file is asked for.

A pipe without a writer would be waited for, and a device read, for ever.
"""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import cdkit
from cdkit.errors import CdkitError, check_file
from cdkit.evals.ablation.placement import read_placement
from cdkit.evals.runner.pictures import load_picture, picture_size
from cdkit.evals.runner.run_folder import SETTINGS, read_settings
from evals.command_line import refused, run

KINDS = ("pipe", "socket", "device", "folder")


@pytest.fixture(params=KINDS)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A path of each kind, in a folder by itself: its name may be changed by a link."""
    path = tmp_path / "odd" / "x"
    path.parent.mkdir()
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path = Path("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as end:
            os.chdir(path.parent)  # the names of sockets are short
            end.bind(path.name)
            yield path
        return
    yield path


@pytest.fixture(autouse=True)
def _back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def named(odd: Path, folder: Path, name: str) -> Path:
    """A link to it: it is what a link leads to that counts."""
    (folder / name).symlink_to(odd)
    return folder / name


def test_a_reader_says_what_it_is(odd: Path, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["odd"]
    with pytest.raises(OSError, match=f"it is a {kind}, not a file"):
        check_file(odd)
    with pytest.raises(FileNotFoundError):
        check_file(odd / "y" if kind == "folder" else Path("nothing"))


def test_an_image(odd: Path, tmp_path: Path) -> None:
    image = named(odd, tmp_path, "a.png")
    with pytest.raises(CdkitError, match=r"cannot read the image .*a\.png: .*not a file"):
        load_picture(image)
    assert picture_size(image) is None
    told = refused("generate", "--prompt", "p", "--image", image, "--method", "plain")
    assert "cannot read the image" in told and "not a file" in told


def test_questions_and_answers(odd: Path, tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.png", "text": "is there a cat ?", "label": "yes"}
    rows = tmp_path / "q.json"
    rows.write_text(json.dumps(row), encoding="utf-8")
    truth = tmp_path / "truth.json"
    truth.write_text('{"1": ["dog"]}', encoding="utf-8")
    commands: list[tuple[str | Path, ...]] = [
        ("pope", "--questions", odd, "--answers", rows),
        ("pope", "--questions", rows, "--answers", odd),
        ("chair", "--captions", odd, "--ground-truth", truth),
        ("chair", "--captions", rows, "--ground-truth", odd),
        ("amber", "--questions", odd, "--answers", rows, "--annotations", truth),
    ]
    for command in commands:
        told = refused("score", *command)
        assert "cannot be read" in told and "not a file" in told
    told = refused("data", "build-pope", "--instances", odd, "--out", tmp_path / "out")
    assert "not a file" in told


def test_settings_grids_and_methods(odd: Path, tmp_path: Path) -> None:
    toml = named(odd, tmp_path, "a.toml")
    assert "not a file" in refused("ablate", toml)
    assert "not a file" in refused("eval", "--config", toml)
    with pytest.raises(CdkitError, match=r"cannot read the method file .*not a file"):
        cdkit.load(toml)
    with pytest.raises(CdkitError, match=r"cannot read the placement file .*not a file"):
        read_placement(toml)
    named(odd, tmp_path, SETTINGS)
    with pytest.raises((CdkitError, OSError), match="not a file"):
        read_settings(tmp_path)


def test_a_data_folder(tmp_path: Path) -> None:
    """A pipe among a benchmark's images is that sample's error; the others are answered."""
    folder = tmp_path / "coco" / "val2014"
    folder.mkdir(parents=True)
    rows = [
        {"question_id": i, "image": f"{i}.png", "text": "is there a cat ?", "label": "yes"}
        for i in range(3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "coco_pope_random.json").write_text(lines, encoding="utf-8")
    for number in (0, 2):
        Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
    os.mkfifo(folder / "1.png")
    asked = ("eval", "--method", "plain", "--bench", "pope", "--data", tmp_path, "--name", "a")
    result = run(*asked, "--limit", "3")
    assert result.exit_code == 3, result.output
    assert "1 sample failed, the first because: cannot read the image" in result.stderr
    checked = run("data", "check", tmp_path)
    assert checked.exit_code == 1 and "Traceback" not in checked.output
    (tmp_path / "coco_pope_random.json").unlink()
    os.mkfifo(tmp_path / "coco_pope_random.json")
    assert "Traceback" not in refused("data", "check", tmp_path)
