"""The command line: what it says, and how it fails."""

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

import pytest
from evals.command_line import refused, run
from PIL import Image

import cdkit
from cdkit.errors import CdkitError, CdkitWarning
from cdkit.evals.ablation import grid_toml, side_by_side
from cdkit.evals.runner.answer_engine import Generated
from cdkit.evals.runner.run_folder import folder_of

PROMPT = "is there a cat ?"
SEARCH = next(name for name in cdkit.presets() if cdkit.load(name).modes == ("beam",))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"cdkit {importlib.metadata.version('cdkit')}\n"


@pytest.mark.parametrize(
    "command", ["ablate", "generate", "list", "train-micro", "convert-qwen-vl"]
)
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"• cdkit {command}" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["ablat"], ["ablate", "--quik"], ["generate"], ["list", "metods"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_train_micro_says_what_it_replaces() -> None:
    assert "An earlier checkpoint in the folder is replaced" in run("train-micro", "--help").stdout


def test_two_methods_side_by_side(picture: Path) -> None:
    result = run("generate", "--prompt", PROMPT, "--image", picture, "--compare", "plain,vcd")
    assert result.exit_code == 0, result.output
    assert result.stderr == "model: micro on cpu in float32\n"
    head = next(line for line in result.stdout.splitlines() if "plain" in line)
    assert "vcd" in head


def test_beams(picture: Path) -> None:
    result = run(
        "generate", "--prompt", PROMPT, "--image", picture, "--compare", f"plain,vcd,{SEARCH}",
        "--beams", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == "model: micro on cpu in float32\n" and SEARCH in result.stdout


def test_a_set_parameter_names_the_column(picture: Path) -> None:
    result = run(
        "generate", "--prompt", PROMPT, "--image", picture, "--method", "cmac",
        "--set", "alpha=1.0", "--set", "scope=row", "--compare", "cmac", "--sample", "--seed", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "cmac, alpha 1.0, scope row" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "cmacc"], "no method is called 'cmacc'. Did you mean 'cmac'?"),
        (["--compare", "plain,cmacc"], "no method is called 'cmacc'. Did you mean 'cmac'?"),
        (["--set", "alpa=1.0"], "no parameter of cmac is called 'alpa'. Did you mean 'alpha'?"),
        (["--set", "beta=2.0"], "beta must be in [0, 1]"),
        (
            ["--method", SEARCH],
            f"{SEARCH} is not defined for greedy, but for beam search, for which give --beams 5",
        ),
        (
            ["--method", SEARCH, "--sample"],
            f"{SEARCH} is not defined for sampling, but for beam search, for which give --beams 5",
        ),
    ],
)
def test_a_bad_option_is_one_clear_error(picture: Path, arguments: list[str], message: str) -> None:
    assert message in refused("generate", "--prompt", PROMPT, "--image", picture, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "alpha"], "--set takes NAME=VALUE, such as alpha=1.0, got 'alpha'"),
        (["--set", "beta=0.1", "--set", "beta=0.2"], "--set gives 'beta' twice"),
        (["--compare", "plain", "--set", "beta=0.1"], "--set belongs to --method"),
        (["--sample", "--temperature", "0"], "--temperature must be a finite number > 0"),
        (["--temperature", "2"], "--temperature belongs to --sample: give both, or neither"),
        (["--sample", "--beams", "4"], "--beams searches and --sample draws: give one of them"),
    ],
)
def test_a_usage_error_is_one_line(picture: Path, arguments: list[str], message: str) -> None:
    told = refused("generate", "--prompt", PROMPT, "--image", picture, *arguments, status=2)
    assert message in told


def test_a_bad_image_is_one_clear_error(tmp_path: Path, picture: Path) -> None:
    def told(path: Path) -> str:
        return refused("generate", "--prompt", PROMPT, "--image", path)

    assert "no such image: " in told(tmp_path / "absent.png")
    text = tmp_path / "text.png"
    text.write_text("no image")
    assert "text.png is not an image that Pillow can read" in told(text)
    noise = tmp_path / "noise.png"
    Image.effect_noise((64, 64), 50).save(noise)
    noise.write_bytes(noise.read_bytes()[:-900])
    assert "cannot read the image" in told(noise)
    assert "cannot read the image" in told(tmp_path)  # a folder


@pytest.mark.parametrize("most", [3000, 1000])  # of 4096 pixels: Pillow warns, Pillow refuses
def test_an_image_of_absurd_size_is_refused(
    picture: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    message = refused("generate", "--prompt", PROMPT, "--image", picture)
    assert f"photo.png has more than {most:,} pixels: make it smaller" in message


def test_an_unknown_model_is_one_clear_error(picture: Path, tmp_path: Path) -> None:
    message = refused(
        "generate", "--prompt", PROMPT, "--image", picture, "--model", tmp_path / "nothing"
    )
    assert "nothing" in message


GRID = """
[benchmarks.pope]
type = "{type}"
image_folder = "."
path = "{path}"
{more}
[methods]
plain = {{}}
"""


@pytest.mark.parametrize(
    ("type_", "path", "more", "message"),
    [
        ("pop", "q.json", "", "no benchmark is called 'pop'. Did you mean 'pope'?"),
        ("pope", "absent.json", "", "absent.json cannot be read"),
        ("pope", "empty.json", "", "empty.json is empty"),
        (
            "pope",
            "q.json",
            'parser = "strict"',
            "no key is called 'parser'. Did you mean 'parsers'",
        ),
        ("pope", "q.json", 'show = ["acuracy"]', "no metric is called 'acuracy'. Did you mean"),
        ("pope", "lost.json", "", "none of the images of pope is there"),
    ],
)
def test_a_bad_grid_is_one_clear_error(
    tmp_path: Path, type_: str, path: str, more: str, message: str
) -> None:
    row = '{{"question_id": 1, "image": "{}", "text": "is there a cat ?", "label": "no"}}\n'
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "q.json").write_text(row.format("a.png"))
    (tmp_path / "lost.json").write_text(row.format("b.png"))
    (tmp_path / "empty.json").write_text("")
    grid = GRID.format(type=type_, path=tmp_path / path, more=more)
    (tmp_path / "grid.toml").write_text(grid.replace('"."', f'"{tmp_path}"'))
    assert message in refused("ablate", tmp_path / "grid.toml", "--output", tmp_path / "runs")


def test_a_packaged_grid_is_named_and_its_near_name_told() -> None:
    told = refused("ablate", "metods")
    assert "no packaged grid is called 'metods'. Did you mean 'methods'? There is: cmac_" in told
    words = " ".join(run("ablate", "--help").stdout.replace("│", " ").split())
    assert f"A packaged grid ({', '.join(grid_toml.packaged())}) or a .toml file" in words


def test_the_terminal_shows_the_overviews_and_all_of_it_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '{"question_id": %d, "image": "a.png", "text": "is there a cat ?", "label": "no"}\n'
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "q.json").write_text(row % 1 + row % 2)
    grid = GRID.format(type="pope", path=tmp_path / "q.json", more="")
    (tmp_path / "grid.toml").write_text(grid.replace('"."', f'"{tmp_path}"'))
    monkeypatch.chdir(tmp_path)
    brief = run("ablate", "grid.toml", "--name", "one")
    assert brief.exit_code == 0, brief.output
    assert "pope: accuracy % ↑ (difference to plain; 1 image, 2 samples)" in brief.stdout
    assert "yes ratio" not in brief.stdout
    assert brief.stdout.index("all tables: runs/one/tables.md") < brief.stdout.index("report: runs")
    full = run("ablate", "grid.toml", "--name", "two", "--full")
    assert "yes ratio %" in full.stdout and "pope, sampling, 3 seeds" in full.stdout


def test_a_grid_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot read the grid" in refused("ablate", tmp_path / "absent.toml")


def test_a_run_is_never_written_into_another(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    message = refused("ablate", "--quick", "--output", tmp_path, "--name", "first")
    assert "first is there already: --resume goes on" in message


@pytest.mark.parametrize("name", ["../up", "a/b", ".", ""])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CdkitError, match="--name must be the name of a folder"):
        folder_of(tmp_path, name)


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "answer", interrupted)
    result = run("generate", "--prompt", PROMPT, "--image", picture)
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_narrow_terminals_get_a_line_a_method() -> None:
    answers = {name: Generated("a [cat]", 2, truncated=True) for name in ("plain", "vcd", "cmac")}
    assert len(side_by_side.side_by_side(answers, 90).columns) == 3
    assert len(side_by_side.side_by_side(answers, 60).columns) == 2


def test_a_warning_of_ours_is_a_line_and_others_are_not_shown(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(*args: Any, **kwargs: Any) -> dict[str, Generated]:
        warnings.warn("of somebody else", UserWarning, stacklevel=1)
        warnings.warn("this model\nhas no adapter", CdkitWarning, stacklevel=1)
        return {"plain": Generated("a cat", 2, truncated=False)}

    monkeypatch.setattr(side_by_side, "answer", warned)
    result = run("generate", "--image", picture, "--prompt", PROMPT)
    assert result.exit_code == 0, result.output
    assert result.stderr == "note: this model has no adapter\n"


def test_an_error_cannot_steer_the_terminal(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*args: Any, **kwargs: Any) -> None:
        raise CdkitError("the id \x1b]0;owned\x07 is there twice")

    monkeypatch.setattr(side_by_side, "answer", failed)
    line = refused("generate", "--image", picture, "--prompt", PROMPT)
    assert line == r"error: the id \x1b]0;owned\x07 is there twice"
