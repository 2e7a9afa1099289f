"""What the run loop adds to generation, without the type checks that tests run under:

    pytest -o addopts=--import-mode=importlib -m slow -s tests/evals/runner/test_eval_overhead.py

No test of a time: it prints the figures, and compares the answers alone.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest
import torch
from evals.eval_run import answer, draw, parts_of, predictions, settings

import cdkit
from cdkit.evals.ablation.demand import workload
from cdkit.evals.ablation.prepared import prepare
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.batches import plan_batches
from cdkit.evals.runner.lightning_module import AnsweringModule
from cdkit.evals.runner.loading import prompt_lengths
from cdkit.evals.runner.workload import Workload

BATCH = 16
ROUNDS = 5


def bare(engine: AnswerEngine, asked: Workload) -> tuple[float, dict[str, str]]:
    """CPU seconds and answers of a loop as one writes it by hand, over the same batches."""
    lengths = prompt_lengths(list(asked.demand), engine)
    work = plan_batches(asked, lengths, BATCH, model="", rows={}, first_step=False)
    model, processor, method = engine.model, engine.processor, cdkit.load("cmac")
    found: dict[str, str] = {}
    began = process_time()
    for each in work:
        questions = each.questions
        inputs = engine.inputs(questions)
        names = [question.sample_id for question in questions]
        with (
            torch.inference_mode(),
            cdkit.attach(model, method, processor=processor, sample_ids=names),
        ):
            ids = model.generate(**inputs, max_new_tokens=questions[0].limit, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        found |= {key: text.strip() for key, text in zip(each.keys, texts, strict=True)}
    return process_time() - began, found


def timed(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], dict[str, str]]
) -> tuple[float, dict[str, str]]:
    """CPU seconds from the first batch to the last row on the disk."""
    marks: list[float] = []
    loader, close = AnsweringModule.predict_dataloader, AnsweringModule.close

    def begins(self: AnsweringModule) -> object:
        marks.append(process_time())
        return loader(self)

    def ends(self: AnsweringModule) -> None:
        close(self)
        marks.append(process_time())

    monkeypatch.setattr(AnsweringModule, "predict_dataloader", begins)
    monkeypatch.setattr(AnsweringModule, "close", ends)
    found = run()
    monkeypatch.undo()
    return marks[1] - marks[0], found


@pytest.mark.slow
def test_what_the_run_loop_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes; by hand."""
    parts = parts_of(draw(tmp_path / "world", images=60))
    engine = AnswerEngine(*cdkit.load_model("micro"))
    prepared = prepare(settings(), tmp_path, "micro", parts)
    asked = workload(prepared)
    key = {
        (item.name, name): asked.keys[question]
        for item in prepared.loaded
        for name, question in item.questions.items()
    }
    bare(engine, asked)  # torch's first calls are slow
    added = []
    for number in range(ROUNDS):
        by_hand, wanted = bare(engine, asked)
        folder = tmp_path / str(number)

        def run(folder: Path = folder) -> dict[str, str]:
            answer(parts, folder, batch_size=BATCH)
            rows = predictions(folder)
            return {key[row["part"], row["id"]]: row["text"] for row in rows}

        spent, found = timed(monkeypatch, run)
        assert found == wanted
        added.append(spent / by_hand - 1)
        print(f"by hand {by_hand:.2f} s, run {spent:.2f} s: {added[-1]:+.1%}")
    print(f"median of {ROUNDS}: {statistics.median(added):+.1%}")
