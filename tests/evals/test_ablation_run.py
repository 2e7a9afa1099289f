"""A whole run, small, on the embedded model; and the proof that its short cut is one."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cdkit
from cdkit.benchmark import Answer
from cdkit.evals.ablation import job, toml
from cdkit.evals.ablation.check import MismatchError, prove
from cdkit.evals.ablation.engine import Engine
from cdkit.evals.ablation.gumbel import gumbel_noise, streams
from cdkit.evals.ablation.job import Ablation
from cdkit.evals.ablation.plan import Arm, passes
from cdkit.evals.ablation.progress import Stages
from cdkit.evals.ablation.results import Results
from cdkit.evals.ablation.run import Batch, Decode, Runner, batches_of

GRID = """
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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    return job.prepare(toml.parse(tomllib.loads(GRID)), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def results(prepared: Ablation) -> Results:
    return job.ablate(prepared, Stages())


@pytest.fixture(scope="module")
def folder(prepared: Ablation, results: Results) -> Path:
    return prepared.folder


@pytest.fixture
def engine(prepared: Ablation) -> Engine:
    return prepared.engine


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


def test_the_folder_holds_the_whole_run(prepared: Ablation, folder: Path) -> None:
    found = {path.name for path in folder.iterdir()}
    assert found >= {
        "config.toml", "manifest.json", "predictions.jsonl", "metrics.json", "report.html"
    }  # fmt: skip
    assert toml.read(folder / "config.toml") == prepared.grid


def test_the_manifest_says_what_a_result_depends_on(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["versions"].keys() >= {"python", "torch", "transformers", "cdkit"}
    assert manifest["model"]["files"].keys() == {"model.safetensors"}
    assert manifest["model"]["dtype"] == "float32" and manifest["padding"] == "left"
    pope = manifest["benchmarks"]["pope"]
    assert pope["parsers"] == ["strict", "reference"] and pope["max_new_tokens"] == 16
    assert all(len(digest) == 64 for digest in pope["sources"].values())
    assert "<image>" in manifest["prompt"]
    assert manifest["seeds"]["sampling"] == [0, 1]
    assert manifest["methods"]["identical"]["combiner"]["beta"] == 0.2
    proof = manifest["first_token"]["proof"]
    assert proof["questions"] > 0 and proof["tokens_compared"] > 0
    assert proof["largest_difference"] <= proof["tolerance"]


def test_every_table_has_every_method(prepared: Ablation, results: Results) -> None:
    titles = [(table.benchmark, table.mode, table.seeds) for table in results.tables]
    assert titles == [
        ("pope", "greedy", 1), ("pope", "sample", 2), ("chair", "greedy", 1), ("mme", "greedy", 1)
    ]  # fmt: skip
    for table in results.tables:
        assert table.rows.keys() == prepared.grid.methods.keys()


def test_the_predictions_give_the_metrics(prepared: Ablation, folder: Path) -> None:
    tables = json.loads((folder / "metrics.json").read_text())["tables"]
    loaded = {item.name: item.benchmark for item in prepared.loaded}
    for table in tables:
        seeds = [0, 1] if table["mode"] == "sample" else [None]
        for method, cells in table["methods"].items():
            scores = [
                loaded[table["benchmark"]].score(
                    said(folder, benchmark=table["benchmark"], method=method, seed=seed)
                )
                for seed in seeds
            ]
            for metric, cell in cells.items():
                mean = np.mean([score[metric] for score in scores])
                assert cell["value"]["value"] == pytest.approx(mean)


def test_an_identical_branch_is_the_plausibility_constraint(folder: Path) -> None:
    def texts(method: str) -> list[str]:
        return [row["text"] for row in predictions(folder) if row["method"] == method]

    assert texts("identical") == texts("constraint")


def test_a_sweep_passes_through_the_preset(results: Results) -> None:
    """alpha 3 and gamma 2 are cmac's own: those points are its greedy row."""
    cell = results.tables[0].rows["cmac"].cells["accuracy"]
    by_alpha, by_gamma = results.figures[:2]
    assert by_alpha.curves[0].y[1].value == pytest.approx(100 * cell.value.value)
    assert by_gamma.curves[0].y[1].value == pytest.approx(100 * cell.value.value)


def test_misses_are_counted_by_place(results: Results) -> None:
    figure = results.figures[-1]
    assert [curve.label for curve in figure.curves] == ["plain", "cmac"]
    assert all(0 <= point.value <= 100 for curve in figure.curves for point in curve.y)


def test_each_set_of_branches_runs_once() -> None:
    names = ("plain", "plausibility", "identical", "cmac_imd", "cmac", "cmac_cmpc", "vcd", "icd")
    arms = [Arm(name, cdkit.load(name)) for name in names]
    arms += [Arm(f"alpha {a}", cdkit.load("cmac", alpha=a)) for a in (0.0, 1.0, 2.0)]
    arms += [Arm(f"gamma {g}", cdkit.load("cmac", gamma=g)) for g in (1.0, 3.0)]
    together = [{arm.name for arm in work.arms} for work in passes(arms)]
    assert together == [
        {"plain", "plausibility", "identical", "cmac_imd", "gamma 1.0"},  # gamma 1 moves nothing
        {"cmac", "cmac_cmpc", "alpha 0.0", "alpha 1.0", "alpha 2.0"},
        {"vcd", "icd"},  # with their own pixels or prompt they share no prefix
        {"gamma 3.0"},
    ]


def some_batches(prepared: Ablation, engine: Engine, size: int) -> list[Batch]:
    demand = dict(list(job.demand(prepared).items())[:6])
    return batches_of(demand, size, engine.lengths)


def runner(prepared: Ablation, engine: Engine) -> Runner:
    return Runner(engine, {arm.name: arm for arm in job.all_arms(prepared)}, Stages())


def answered(prepared: Ablation, engine: Engine, size: int) -> Runner:
    run = runner(prepared, engine)
    run.run(some_batches(prepared, engine, size), size)
    return run


def texts(run: Runner) -> Mapping[object, str]:
    return {key: answer.text for key, answer in run.answers.items()}


def test_the_batch_changes_no_answer(prepared: Ablation, engine: Engine) -> None:
    assert texts(answered(prepared, engine, 64)) == texts(answered(prepared, engine, 3))


def test_the_first_token_decides_as_generate_does(
    prepared: Ablation, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = answered(prepared, engine, 64)
    monkeypatch.setattr(Runner, "_decide", lambda *args: None)  # all go through generate
    long = answered(prepared, engine, 64)
    for key, text in texts(long).items():
        assert text.startswith(texts(short)[key])


def test_the_check_notices_other_logits(
    prepared: Ablation, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(prepared, engine, 64)
    batches = some_batches(prepared, engine, 64)
    assert prove(run, batches, 2).near_ties == 0
    combine = Runner.combine

    def shifted(self: Runner, *args: Any) -> Any:
        combined, scores = combine(self, *args)
        return combined + 0.01, scores

    monkeypatch.setattr(Runner, "combine", shifted)
    with pytest.raises(
        MismatchError, match=r"from shared branches differ from generate's by 0\.01"
    ):
        prove(run, batches, 2)


def test_the_check_notices_another_answer(prepared: Ablation, engine: Engine) -> None:
    run = answered(prepared, engine, 64)
    for key, answer in run.answers.items():
        flipped = "no" if answer.text.startswith("yes") else "yes"
        run.answers[key] = dataclasses.replace(answer, text=flipped)
    with pytest.raises(MismatchError, match=r"from stored logits, .* from generate"):
        prove(run, some_batches(prepared, engine, 64), 2)


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0]).double()
    noise = gumbel_noise(streams(0, [str(i) for i in range(40_000)]), 3, 4)
    share = torch.bincount((logits + noise).argmax(dim=-1), minlength=4) / 40_000
    assert (share - logits.softmax(dim=-1)).abs().max() < 0.01


def test_gumbel_noise_belongs_to_seed_sample_and_step() -> None:
    def drawn(seed: int, names: list[str], step: int) -> torch.Tensor:
        return gumbel_noise(streams(seed, names), step, 8)

    assert torch.equal(drawn(1, ["a", "b"], 0)[1], drawn(1, ["b"], 0)[0])
    for other in (drawn(2, ["b"], 0), drawn(1, ["c"], 0), drawn(1, ["b"], 1)):
        assert not torch.isclose(other, drawn(1, ["b"], 0)).any()


def test_decodes_are_told_apart() -> None:
    assert Decode() == Decode("greedy") != Decode("sample", 0)
