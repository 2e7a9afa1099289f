"""A guard that one sample trips is that sample's error row: the run goes on to its end."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.eval_run import Part, answer, draw, parts_of, predictions
from torch import Tensor

import cdkit
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.questions import asked_of
from cdkit.pretrained import micro_path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    return parts_of(draw(tmp_path_factory.mktemp("world"), images=2))[:1]


@pytest.fixture(scope="module")
def world(parts: list[Part]) -> tuple[AnswerEngine, list[Any]]:
    model, processor = cdkit.load_model("micro")
    (part,) = parts
    questions = [
        asked_of(s, part.images, part.benchmark.max_new_tokens) for s in part.benchmark.samples()
    ]
    return AnswerEngine(model, processor), questions[:3]


@pytest.fixture
def spoilt(world: Any) -> Any:
    """The engine, and how to make the model say NaN from a step on in the rows of a prompt."""
    engine, questions = world
    inputs = engine.inputs(questions)
    ids, seen = inputs["input_ids"], dict[str, Any]()
    head = engine.model.lm_head

    def spoil(module: Any, given: Any, output: Tensor) -> Tensor:
        seen["calls"] = seen.get("calls", 0) + 1
        if seen["calls"] <= seen["step"]:
            return output
        output = output.clone()
        each = len(output) // len(ids)  # beams and branches
        output[seen["row"] : seen["row"] + 1 if each == 1 else None] = math.nan
        return output

    handle = head.register_forward_hook(spoil)
    yield engine, questions, inputs, seen
    handle.remove()


@pytest.mark.parametrize("name", ["plain", "plausibility", "cmac"])
@pytest.mark.parametrize("step", [0, 1])
def test_numbers_of_one_row(name: str, step: int, spoilt: Any) -> None:
    """Also of the plain model, which has no guard, and where its answer is longer than a token."""
    engine, questions, inputs, seen = spoilt
    seen.update(row=1, step=step)
    ids = [q.sample_id for q in questions]
    method = cdkit.load(name)
    with pytest.raises(cdkit.PromptError, match="not numbers") as error:
        engine.answers(method, inputs, ids, limit=4, seed=None, record_margins=True)
    if name != "cmac":  # there the rows of the branches are spoilt all alike
        assert list(error.value.reasons) == [1]
    for reason in error.value.reasons.values():
        assert "not numbers" in reason and "row" not in reason


def test_what_comes_after_an_answer_counts_nothing(spoilt: Any) -> None:
    engine, questions, inputs, seen = spoilt
    ids = [q.sample_id for q in questions]
    seen.update(row=0, step=10**6)
    method = cdkit.load("plain")
    made = engine.answers(method, inputs, ids, limit=4, seed=None)
    ends = [answer.tokens + (not answer.truncated) for answer in made]
    seen.update(step=max(ends), calls=0)
    assert engine.answers(method, inputs, ids, limit=4, seed=None) == made


def test_rows_of_beams_belong_to_their_prompt(spoilt: Any) -> None:
    engine, questions, inputs, seen = spoilt
    seen.update(row=4, step=0)  # four beams a prompt: this row and all later ones
    ids = [q.sample_id for q in questions]
    for name in ("plain", "plausibility"):
        seen["calls"] = 0
        with pytest.raises(cdkit.PromptError) as error:
            engine.answers(cdkit.load(name), inputs, ids, limit=4, seed=None, beams=True)
        assert list(error.value.reasons) == [1, 2]


Checkpoint = Callable[..., str]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Settings of a generation config -> a folder with the small model that has them."""

    def make(**settings: Any) -> str:
        folder = tmp_path / "model"
        shutil.copytree(micro_path(), folder)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return str(folder)

    return make


def test_a_run_has_error_rows_and_ends(
    parts: list[Part], world: Any, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The checkpoint takes out "yes", which is all that is plausible to some of the questions."""
    path = checkpoint(suppress_tokens=list(world[0].yes_ids))
    outcome = answer(parts, tmp_path / "run", model=path, method="cmac", batch_size=5)
    failed = outcome.errors["pope_random"]
    said = {row["id"]: row["text"] for row in predictions(outcome.folder) if "text" in row}
    assert failed and said and not failed.keys() & said.keys()
    for reason in failed.values():
        assert "the logits processors remove every token" in reason and ", row" not in reason
    # the same answers as each sample alone
    (part,) = parts
    model, processor = cdkit.load_model(path)
    engine, method = AnswerEngine(model, processor), cdkit.load("cmac")
    samples = part.benchmark.samples()
    assert len(samples) == len(failed) + len(said)
    for sample in samples:
        question = asked_of(sample, part.images, part.benchmark.max_new_tokens)
        try:
            (own,) = engine.answers(
                method,
                engine.inputs([question]),
                [question.sample_id],
                limit=question.limit,
                seed=None,
            )
        except cdkit.PromptError as error:
            assert failed[sample.id] == error.reasons[0]
        else:
            assert said[sample.id] == own.text


def test_all_rows_of_a_batch(parts: list[Part], checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Nothing is left to ask again."""
    vocabulary = json.loads((micro_path() / "config.json").read_text())["text_config"]["vocab_size"]
    path = checkpoint(suppress_tokens=list(range(vocabulary)))
    outcome = answer(parts, tmp_path / "run", model=path, method="cmac", batch_size=5)
    assert len(outcome.errors["pope_random"]) == len(parts[0].benchmark.samples())


def test_a_method_that_cannot_run_still_ends_the_run(
    parts: list[Part], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = checkpoint(dola_layers="high")
    with pytest.raises(cdkit.CdkitError, match="cannot run with dola_layers") as error:
        answer(parts, tmp_path / "run", model=path, method="cmac")
    assert not isinstance(error.value, cdkit.PromptError)
    assert torch.is_grad_enabled()
