"""A small grid over the embedded model, and what the tests of its run and of its proof share."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdkit.evals.ablation import grid_toml
from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.demand import workload
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_run import RunOptions, RunOutcome, run_grid
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.ablation.proof import Proof, prove
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.answering import Answering
from cdkit.evals.runner.batches import plan_batches
from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.resources import Resources
from cdkit.evals.runner.workload import Workload
from cdkit.interfaces.sample import Answer

GRID = """
decode = ["greedy", "sample", "beam"]
num_beams = 2
seeds = [0, 1]
resamples = 100
check = 1
threads = 1

[world]
images = 3
exam_images = 2

[benchmarks.pope]
type = "pope"
image_folder = "world:images"
path = "world:pope.adversarial"
show = ["accuracy", "yes_ratio", "auc"]

[benchmarks.chair]
type = "chair"
image_folder = "world:images"
synonyms = "world:synonyms"
instances = "world:annotations"
captions = "world:captions"
images = "world:caption_images"
prompt = "world:caption_prompt"
max_new_tokens = 4
decode = ["greedy"]

[benchmarks.mme]
type = "mme"
image_folder = "world:images"
folder = "world:mme"
tasks = ["existence"]
decode = ["greedy"]

[methods]
plain = {}
cmac = {}
constraint = { preset = "plausibility", beta = 0.2 }
identical = { beta = 0.2 }

[sweeps.cmac]
benchmarks = ["pope"]
alpha = [0.0, 3.0]
gamma = [1.0, 2.0]

[position]
benchmark = "pope"
placement = "world:placement"
methods = ["plain", "cmac"]
bins = 2
"""


def grid_of(**changes: Any) -> Grid:
    return grid_toml.parse(tomllib.loads(GRID) | changes)


def predictions(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def said(folder: Path, **wanted: object) -> dict[str, Answer]:
    names = [field.name for field in dataclasses.fields(Answer)]
    return {
        row["id"]: Answer(**{name: row[name] for name in names})
        for row in predictions(folder)
        if wanted.items() <= row.items()
    }


MODEL = "micro"


def run(grid: Grid, folder: Path, **options: Any) -> RunOutcome:
    """The whole run, in this process."""
    asked = RunOptions(**options)
    outcome = run_grid(grid, Resources(grid.batch, accelerator="cpu"), folder, asked)
    assert outcome is not None
    return outcome


def some(prepared: PreparedRun, count: int = 6) -> Workload:
    """The first few questions of a run."""
    asked = workload(prepared)
    return dataclasses.replace(asked, demand=dict(list(asked.demand.items())[:count]))


def answered(
    asked: Workload, engine: AnswerEngine, size: int, hashes: Mapping[str, str]
) -> Answered:
    """The answers as a run makes them."""
    answering = Answering(engine, asked.variants)
    lengths = engine.lengths([question.prompt for question in asked.demand])
    rows: dict[Key, JournalRow] = {}
    for batch in plan_batches(
        asked, lengths, size, model=MODEL, rows={}, first_step=asked.first_token
    ):
        inputs = engine.inputs(batch.questions)
        for plan in batch.groups:
            made = answering.answers(plan.group, batch.questions, inputs)
            for (i, j), one in made.items():
                assert not isinstance(one, Exception)
                method, decode = plan.group.asked[j]
                key = (MODEL, batch.keys[i], method, decode.mode, decode.seed)
                rows[key] = JournalRow(
                    *key, one.text, one.yes_score, one.margin, one.truncated, one.tokens
                )
    return Answered(MODEL, rows, asked.keys, hashes, {})


def proof(asked: Workload, engine: AnswerEngine, found: Answered, count: int = 2) -> Proof:
    made = prove(engine, asked, found, count, Stages())
    assert made is not None
    return made


def texts(found: Answered) -> Mapping[object, str]:
    return {key: row.text for key, row in found.rows.items()}
