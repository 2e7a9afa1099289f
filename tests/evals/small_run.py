"""A small grid over the embedded model, and what the tests of its run and of its proof share."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdkit.evals.ablation import ablation_run, grid_toml
from cdkit.evals.ablation.ablation_run import Ablation
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_runner import GridBatch, GridRunner, batches_of
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.progress import Stages
from cdkit.interfaces.benchmark import Answer

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


def some_batches(prepared: Ablation, engine: AnswerEngine, size: int) -> list[GridBatch]:
    demand = dict(list(ablation_run.demand(prepared).items())[:6])
    return batches_of(demand, size, engine.lengths)


def runner(prepared: Ablation, engine: AnswerEngine) -> GridRunner:
    return GridRunner(
        engine, {variant.name: variant for variant in ablation_run.all_variants(prepared)}, Stages()
    )


def answered(prepared: Ablation, engine: AnswerEngine, size: int) -> GridRunner:
    run = runner(prepared, engine)
    run.run(some_batches(prepared, engine, size), size)
    return run


def texts(run: GridRunner) -> Mapping[object, str]:
    return {key: answer.text for key, answer in run.answers.items()}
