"""Fault: an error inside `generate` is caught, and the answer scored as an empty one.

Harness adapters do that: the broken run has a number, which looks like the model's.
"""

import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from generation.presets import RUNNABLE, in_turn
from PIL import Image
from typer.testing import CliRunner

import cdkit
from cdkit.evals import cli
from cdkit.evals.ablation import grid_toml
from cdkit.evals.ablation.grid_run import RunOptions, RunOutcome, run_grid
from cdkit.evals.runner import engines
from cdkit.evals.runner.answer_engine import AnswerEngine, Generated
from cdkit.evals.runner.resources import Resources

Llava: Any = transformers.LlavaForConditionalGeneration  # its methods are not typed
GRID = """
decode = ["greedy", "sample", "beam"]
num_beams = 2
seeds = [0]
resamples = 100
check = 0
threads = 1

[world]
images = 2
exam_images = 2

[benchmarks.chair]
type = "chair"
image_folder = "world:images"
synonyms = "world:synonyms"
instances = "world:annotations"
captions = "world:captions"
images = "world:caption_images"
prompt = "world:caption_prompt"
max_new_tokens = 3

[methods]
plain = {}
cmac = {}
"""


class Boom(RuntimeError):
    """Not a CdkitError: nothing that a user could mend."""


def broken(after: int = 0) -> Callable[..., Any]:
    """A `generate` that fails after so many calls."""
    calls = itertools.count()
    generate = Llava.generate

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) >= after:
            raise Boom("out of memory")
        return generate(self, *args, **kwargs)

    return fails


def whole(folder: Path) -> RunOutcome | None:
    grid = grid_toml.parse(tomllib.loads(GRID))
    return run_grid(grid, Resources(accelerator="cpu"), folder, RunOptions())


def surfaces(run: Callable[[], object]) -> bool:
    """Whether the error comes out of the run as it is."""
    try:
        run()
    except Boom:
        return True
    return False


@pytest.mark.parametrize("after", [0, 3])
def test_an_ablation_stops(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Llava, "generate", broken(after))
    assert surfaces(lambda: whole(tmp_path / "run"))
    for name in ("metrics.json", "predictions.jsonl", "report.html"):
        assert not (tmp_path / "run" / name).exists(), f"{name} of a broken run was written"


@pytest.mark.parametrize("how", [(), ("--sample",), ("--compare", "plain,vcd")])
def test_the_command_line_stops(
    how: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    monkeypatch.setattr(Llava, "generate", broken())
    arguments = ["generate", "--prompt", "is there a cat ?", "--image", str(picture), *how]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1 and isinstance(result.exception, Boom)
    assert result.stdout == ""


@pytest.mark.parametrize("name", in_turn(RUNNABLE, 0))
def test_attach_lets_errors_through(
    name: str,
    make_model: Callable[..., Any],
    processor: Any,
    make_inputs: Callable[..., Mapping[str, Any]],
) -> None:
    """From the middle of a decode, with the model restored behind it."""
    model = make_model()
    head, calls = model.lm_head.forward, itertools.count()

    def fails(*args: Any) -> Any:
        if next(calls) >= 2:
            raise Boom("out of memory")
        return head(*args)

    model.lm_head.forward = fails
    with pytest.raises(Boom, match="out of memory"):
        with cdkit.attach(model, cdkit.load(name), processor=processor):
            inputs = make_inputs("is there a cat ?")
            model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=3)
    assert "generate" not in vars(model)


class Swallows(AnswerEngine):
    """The faulty variant, as harness adapters have it."""

    def answers(self, method: Any, inputs: Any, sample_ids: Sequence[str], **how: Any) -> Any:
        try:
            return super().answers(method, inputs, sample_ids, **how)
        except Exception:
            return [Generated("", 0, truncated=False)] * len(sample_ids)


def test_a_swallowed_error_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "AnswerEngine", Swallows)
    monkeypatch.setattr(Llava, "generate", broken())
    grid = replace(grid_toml.parse(tomllib.loads(GRID)), first_token=False)
    resources = Resources(accelerator="cpu")
    assert not surfaces(lambda: run_grid(grid, resources, tmp_path / "run", RunOptions()))
