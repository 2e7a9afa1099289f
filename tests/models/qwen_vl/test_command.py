"""`cdkit convert-qwen-vl`, and `cdkit generate` on what it wrote."""

from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from cdkit.evals import cli

from .published import write_published


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "150"})


def test_from_the_published_folder_to_an_answer(
    weights: dict[str, Tensor], photo: Image.Image, tmp_path: Path
) -> None:
    room: dict[str, object] = {"seq_length": 600}  # Qwen-VL-Chat's words, byte by byte
    published = write_published(tmp_path / "in", weights, config=room)
    out, picture = tmp_path / "out", tmp_path / "photo.png"
    photo.save(picture)
    result = run("convert-qwen-vl", published, out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {out}\n"
    files = sorted(file.name for file in published.glob("*.bin"))
    assert [line for line in result.stderr.splitlines() if line] == [
        f"converting {name}" for name in files
    ]
    asked = ("--image", picture, "--prompt", "is the in", "--max-new-tokens", "3")
    result = run("generate", "--model", out, "--compare", "plain,cmac", *asked)
    assert result.exit_code == 0, result.output
    assert "plain" in result.stdout and "cmac" in result.stdout


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("nothing", "config.json"),
        ("full", "exists and is not an empty folder; name another one"),
        ("weights", "1 missing (lm_head.weight)"),
    ],
)
def test_what_cannot_be_converted(
    broken: str, told: str, published: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    folder, out = published, tmp_path / "out"
    if broken == "nothing":
        folder = tmp_path / "absent"
    elif broken == "full":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        rest = {name: value for name, value in weights.items() if name != "lm_head.weight"}
        folder = write_published(tmp_path / "in", rest)
    result = run("convert-qwen-vl", folder, out)
    assert result.exit_code == 1 and "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0]
    assert broken == "full" or not out.exists()
