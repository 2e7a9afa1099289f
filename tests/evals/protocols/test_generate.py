"""`cdkit generate --protocol`: what it takes from a protocol, and what options win over."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cdkit.evals import cli


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 60), (200, 30, 30)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def run(image: Path, *options: str) -> Result:
    given = ["generate", "--image", str(image), "--prompt", "is there a cat ?", *options]
    return CliRunner().invoke(cli.app, given)


def test_a_prompt_under_vcds_protocol(image: Path) -> None:
    result = run(image, "--compare", "plain,vcd,sid", "--protocol", "vcd_pope")
    assert result.exit_code == 0, result.output
    assert "sid is run under vcd_pope, the protocol of vcd" in result.stderr
    mine = image.parent / "mine.toml"
    mine.write_text('question_suffix = " a"\nmode = "beam"\n[models.llava]\nsystem = "you see"\n')
    assert run(image, "--method", "plain", "--protocol", str(mine)).exit_code == 0


@pytest.mark.parametrize(
    ("options", "told", "status"),
    [
        (("--protocol", "vcd_pop"), "Did you mean 'vcd_pope'", 1),
        (("--protocol", "pai_pope", "--temperature", "0.5"), "temperature belongs to mode", 1),
        (("--protocol", "vcd_pope", "--sample", "--beams", "5"), "--beams searches", 2),
    ],
)
def test_faults(image: Path, options: tuple[str, ...], told: str, status: int) -> None:
    result = run(image, *options)
    assert result.exit_code == status and told in result.stderr


def test_options_win_over_the_protocol(image: Path) -> None:
    options = ("--protocol", "imccd_chair", "--beams", "2", "--max-new-tokens", "3")
    result = run(image, "--method", "imccd_chair", *options)
    assert result.exit_code == 0, result.output
