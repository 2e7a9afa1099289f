"""Extreme numbers have bounds with a reason; a refused method leaves the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.command_line import refused, run
from evals.small_run import grid_of
from PIL import Image

import cdkit
from cdkit.errors import CdkitError, check_finite, check_temperature
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_options import SINGLE_RUN, with_options
from cdkit.evals.runner import answer_engine
from cdkit.evals.speed.bench_settings import BenchSettings


def asked(**changes: Any) -> Grid:
    values: dict[str, Any] = {"method": "vcd", "bench": "pope", "data": "d", "mode": "sample"}
    return with_options(SINGLE_RUN, values | changes, "cdkit eval")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid_of(threads=1_000_000), "threads must be at most 1024 .torch.*got 1000000"),
        (lambda: BenchSettings(threads=1_000_000), "--threads must be at most 1024 .*torch"),
        (lambda: grid_of(temperature=1e-300), "temperature must be at least 0.0001, .*overflow"),
        (lambda: grid_of(seeds=[2**80]), "seeds must be at most 9223372036854775807 .63 bits"),
        (lambda: grid_of(num_beams=10**9), "num_beams must be at most 1000"),
        (lambda: grid_of(resamples=10**12), "resamples must be at most 1000000"),
        (lambda: asked(temperature=1e-300), "temperature must be at least 0.0001.* greedy"),
        (lambda: asked(temperature=1e300), "temperature must be at most 1e.06, got 1e.300"),
        (lambda: asked(seeds=[2**80]), "seeds must be at most 9223372036854775807"),
        (lambda: asked(mode="beam", beams=10**9), "num_beams must be at most 1000 .each is a row"),
        (
            lambda: cdkit.load("vcd", alpha=1e308),
            "alpha must be at most 1e.06, .*float32",
        ),
        (lambda: cdkit.load("cmac", gamma=1e30), "gamma must be at most 1e.06"),
        (lambda: cdkit.load("pai", strength=1e39), "strength must be at most 1e.06"),
    ],
)
def test_extreme_numbers_are_refused_with_a_reason(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(CdkitError, match=message):
        make()


def test_the_bounds_themselves_are_allowed() -> None:
    check_temperature("t", 1e-4)
    check_finite("x", 1e6, low=0)
    asked(seeds=[2**63 - 1])
    assert grid_of(threads=1024).threads == 1024


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_temperature_of_generate(picture: Path) -> None:
    options = ("--image", picture, "--prompt", "p", "--sample", "--temperature", "1e-300")
    assert "--temperature must be at least 0.0001" in refused("generate", *options, status=2)


def test_a_refused_method_leaves_the_others(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = answer_engine.AnswerEngine.answers

    def answers(self: Any, method: cdkit.Method, *args: Any, **kwargs: Any) -> Any:
        if method.name in unable:
            raise CdkitError(f"{method.name} cannot run on this [model]")
        return stock(self, method, *args, **kwargs)

    monkeypatch.setattr(answer_engine.AnswerEngine, "answers", answers)
    unable = ["vcd"]
    options = ("--image", picture, "--prompt", "is it red ?", "--max-new-tokens", "2")
    shown = run("generate", *options, "--compare", "vcd,plain,opera")  # opera: beams alone
    words = " ".join(shown.output.replace("│", " ").split())
    assert shown.exit_code == 3, shown.output
    assert words.count("refused:") == 2 and "Traceback" not in words
    assert "vcd" in words and "[model]" in words and "opera" in words
    unable = ["vcd", "icd"]
    none_left = run("generate", *options, "--compare", "vcd,icd")
    assert none_left.exit_code == 1 and "Traceback" not in none_left.output
    assert none_left.stderr.splitlines()[-1].startswith("error: vcd cannot run")
