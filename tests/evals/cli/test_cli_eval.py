"""`cdkit eval` on the command line: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest
from evals.command_line import refused, run
from evals.eval_run import draw, predictions

from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.microworld.world_files import BenchmarkFiles


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFiles:
    return draw(tmp_path_factory.mktemp("world"), images=1)


@pytest.fixture
def data(world: BenchmarkFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, from where the test stands."""
    monkeypatch.chdir(tmp_path)
    return world.images.parent


ASK = ("eval", "--method", "cmac", "--bench", "pope", "--only", "pope_micro_random", "--name", "a")


def test_a_run_prints_its_table_and_where_it_is(data: Path, tmp_path: Path) -> None:
    result = run(*ASK, "--data", data)
    assert result.exit_code == 0, result.output
    assert "pope_micro_random, over 6 samples" in result.stdout and "yes_ratio" in result.stdout
    assert "files: runs/a" in result.stdout
    assert len(predictions(tmp_path / "runs" / "a")) == 6
    model, bar = result.stderr.splitlines()
    assert model == "model: micro on cpu in float32" and "answers" in bar

    assert "runs/a is there already: --resume goes on" in refused(*ASK, "--data", data)
    again = run("eval", "--name", "a", "--resume", "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    (score,) = told["scores"]
    assert told["folder"] == "runs/a" and score["scored"] == 6 and not told["refused"]
    assert (score["part"], score["method"]) == ("pope_micro_random", "cmac")

    message = refused("eval", "--name", "a", "--resume", "--set", "alpha=1.0")
    assert '--method was "cmac", is "cmac, alpha 1.0"' in message
    same = run("eval", "--config", "runs/a/settings.json", "--name", "b", "--set", "alpha=1.0")
    assert same.exit_code == 0, same.output
    written = json.loads((tmp_path / "runs" / "b" / "settings.json").read_text())["settings"]
    assert written["methods"] == {"cmac, alpha 1.0": {"preset": "cmac", "alpha": 1.0}}
    assert written["only"] == ["pope_micro_random"]


def test_seeds_have_columns(data: Path) -> None:
    result = run(*ASK, "--data", data, "--mode", "sample", "--seeds", "0,4", "--top-p", "0.9")
    assert result.exit_code == 0, result.output
    head = next(line for line in result.stdout.splitlines() if "metric" in line)
    assert "mean" in head and "seed 0" in head and "seed 4" in head


def test_samples_that_fail_exit_with_3(data: Path, world: BenchmarkFiles) -> None:
    image = world.images / POPE(world.pope["random"]).samples()[0].image
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    try:
        result = run(*ASK, "--data", data)
    finally:
        image.write_bytes(whole)
    assert result.exit_code == 3, result.output
    assert "6 samples failed, the first because: " in result.stderr
    assert "is not an image that Pillow can read" in result.stderr
    assert "--resume --retry-errors" in result.stderr
    assert "over 0 of 6 samples" in result.stdout
    again = run("eval", "--name", "a", "--resume", "--retry-errors")
    assert again.exit_code == 0 and "over 6 samples" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bench", "pope"], "give --method and --data (cdkit eval --help)"),
        ([*ASK[1:], "--data", "x", "--mode", "greedly"], "no decode mode is called 'greedly'"),
        ([*ASK[1:], "--data", "x", "--seeds", "1,2"], "--seeds belongs to --mode sample"),
        ([*ASK[1:], "--data", "x", "--beams", "3"], "--beams belongs to --mode beam"),
        (
            [*ASK[1:], "--data", "x", "--mode", "sample", "--seeds", "a"],
            "--seeds takes whole numbers with commas",
        ),
        (
            [*ASK[1:], "--data", "x", "--mode", "sample", "--seeds", "1,1"],
            "seeds must be different numbers",
        ),
        (
            [*ASK[1:], "--data", "x", "--mode", "sample", "--top-p", "1.5"],
            "top_p must be in (0, 1], got 1.5",
        ),
        ([*ASK[1:], "--data", "x", "--dtype", "int8"], "no dtype is called 'int8'"),
        (
            [*ASK[1:], "--data", "x", "--limit", "0"],
            "limit must be a whole number from 1 on, got 0",
        ),
        ([*ASK[1:], "--data", "x", "--batch-size", "0"], "--batch-size is 0: give 1 or more"),
        ([*ASK[1:], "--data", "x", "--accelerator", "npu"], "no --accelerator is called 'npu'"),
        ([*ASK[1:], "--data", "x", "--loggers", "mlflow"], "no logger is called 'mlflow'"),
        ([*ASK[1:-2], "--data", "x", "--name", "../b"], "--name must be the name of a folder"),
        ([*ASK[1:], "--data", "x", "--retry-errors"], "--retry-errors belongs to --resume"),
        (["--resume"], "--resume goes on with a run: give its --name"),
    ],
)
@pytest.mark.usefixtures("data", "as_for_a_user")
def test_a_usage_error_is_one_line(arguments: list[str], message: str) -> None:
    assert message in refused("eval", *arguments, status=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ASK[1:], "--data", "x", "--set", "alpa=1"], "no parameter of cmac is called 'alpa'"),
        (["--config", "no.json"], "--config no.json cannot be read"),
        (
            ["--method", "opera", "--bench", "pope", "--data", "x"],
            "opera is defined for beam search only, and nothing is decoded so",
        ),
    ],
)
@pytest.mark.usefixtures("data", "as_for_a_user")
def test_a_bad_option_is_one_clear_error(arguments: list[str], message: str) -> None:
    assert message in refused("eval", *arguments)


def test_an_accelerator_that_is_not_there_is_one_clear_error(data: Path) -> None:
    message = refused(*ASK, "--data", data, "--accelerator", "mps")
    assert "--accelerator mps --devices 1 cannot be had here: " in message
    message = refused(*ASK, "--data", data, "--model", "no/such")
    assert "cannot load the model 'no/such'" in message
    assert list(Path("runs").iterdir()) == []  # the name is free


@pytest.mark.usefixtures("data")
def test_a_misspelt_key_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "cmac"\nbench = "pope"\ndata = "x"\nsed = [1]\n')
    message = refused("eval", "--config", "mine.toml", status=2)
    assert "no key is called 'sed'. Did you mean" in message
