"""A whole run, small, on the embedded model."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evals.small_run import grid_of, predictions, run, said

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation import demand, grid_benchmarks, grid_toml
from cdkit.evals.ablation import prepared as preparing
from cdkit.evals.ablation.grid import Grid, MethodSpec
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.microworld.checkpoint import FILES
from cdkit.evals.reports.results import Results
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.gumbel import gumbel_noise, rng_keys
from cdkit.evals.runner.modes import Decode


def test_the_folder_holds_the_whole_run(prepared: PreparedRun, folder: Path) -> None:
    found = {path.name for path in folder.iterdir()}
    assert found >= {
        "config.toml", "manifest.json", "predictions.jsonl", "metrics.json", "report.html",
        "tables.md", "tables", "figures", "citations.bib",
    }  # fmt: skip
    assert grid_toml.read_grid(folder / "config.toml") == prepared.grid


def test_beams_are_those_of_generate(
    prepared: PreparedRun, engine: AnswerEngine, folder: Path
) -> None:
    """Whole answers, one question at a time, against the run's batches."""
    (pope,) = (item for item in prepared.loaded if item.name == "pope")
    (cmac,) = (variant for variant in prepared.variants if variant.name == "cmac")
    found = said(folder, part="pope", method="cmac", mode="beam", seed=None)
    assert found.keys() == pope.questions.keys()
    for name, question in list(pope.questions.items())[:4]:
        inputs = engine.inputs([question])
        with cdkit.attach(engine.model, cmac.method, sample_ids=[question.sample_id]):
            ids = engine.model.generate(
                **inputs, max_new_tokens=question.limit, num_beams=2, do_sample=False
            )
        text = engine.processor.decode(
            ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert found[name].text == text.strip()


def test_every_answer_that_was_asked_is_written(prepared: PreparedRun, folder: Path) -> None:
    rows = predictions(folder)
    found = [(r["part"], r["method"], r["mode"], r["seed"], r["id"]) for r in rows]
    wanted = {
        (item.name, variant, decode.mode, decode.seed, name)
        for item in prepared.loaded
        for variant, decodes in demand.asked_of(prepared, item).items()
        for decode in decodes
        for name in item.questions
    }
    assert len(found) == len(set(found)) and set(found) == wanted
    assert "sweep of cmac: alpha 3.0" in {row["method"] for row in rows}


def test_an_interrupted_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cdkit, "load_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(grid_of(), tmp_path / "first")
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_read_are_errors_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = grid_benchmarks.draw_world

    def spoilt(*args: Any) -> Any:
        files: Any = draw(*args)
        image = sorted(files.images.glob("mme_*.png"))[-1]
        image.write_bytes(image.read_bytes()[:-200])
        return files

    monkeypatch.setattr(preparing, "draw_world", spoilt)
    small = dataclasses.replace(grid_of(sweeps={}), position=None)
    tasks = dict(small.benchmarks["mme"].options) | {"tasks": ["position"]}
    mme = dataclasses.replace(small.benchmarks["mme"], options=tasks)
    outcome = run(dataclasses.replace(small, benchmarks={"mme": mme}), tmp_path / "first")
    lost = outcome.errors["mme"]
    assert lost and all("cannot read the image" in reason for reason in lost.values())
    (table,) = outcome.results.tables
    assert table.failed == len(lost)
    assert table.samples + 2 * len({n for n in lost}) >= len(outcome.run.loaded[0].questions)
    text = (outcome.folder / "tables.md").read_text(encoding="utf-8")
    assert "without an answer: left out of every row" in text


def test_a_folder_without_images_is_told_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdkit, "load_model", lambda *args, **kwargs: pytest.fail("too late"))
    small = grid_of()
    pope = dataclasses.replace(small.benchmarks["pope"], image_folder=str(tmp_path))
    small = dataclasses.replace(small, benchmarks={**small.benchmarks, "pope": pope})
    with pytest.raises(CdkitError, match="none of the images of pope is there"):
        run(small, tmp_path / "first")
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_methods_and_places_are_hashed(prepared: PreparedRun, tmp_path: Path) -> None:
    (placement,) = prepared.sources
    assert placement.endswith("placement.json")
    own = tmp_path / "own.toml"
    own.write_text("summary = 'mine'")
    methods = {"plain": MethodSpec("plain"), "own": MethodSpec(str(own))}
    grid = Grid(benchmarks=prepared.grid.benchmarks, methods=methods, world=prepared.grid.world)
    hashed = preparing._sources(grid, (), None)
    assert hashed == {str(own): hashlib.sha256(own.read_bytes()).hexdigest()}


def test_the_manifest_says_what_a_result_depends_on(folder: Path) -> None:
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts["versions"].keys() >= {"python", "torch", "transformers", "cdkit"}
    assert facts["model"]["files"].keys() == FILES
    assert facts["model"]["generation"] == {"eos_token_id": 2}
    assert facts["model"]["revision"] is None
    (digest,) = facts["sources"].values()
    assert len(digest) == 64
    assert facts["model"]["dtype"] == "float32" and facts["model"]["padding"] == "left"
    pope = facts["parts"]["pope"]["benchmark"]
    assert pope["parsers"] == ["strict", "reference"] and pope["max_new_tokens"] == 16
    assert all(len(digest) == 64 for digest in pope["sources"].values())
    assert "<image>" in facts["model"]["prompt"]
    assert facts["seeds"]["sampling"] == [0, 1]
    assert facts["methods"]["identical"]["resolved"]["constraint"]["beta"] == 0.2
    proof = facts["first_token"]["proof"]["micro"]
    assert proof["questions"] > 0 and proof["tokens_compared"] > 0
    assert proof["largest_difference"] <= proof["tolerance"]


def test_every_table_has_every_method(prepared: PreparedRun, results: Results) -> None:
    titles = [(table.benchmark, table.mode, table.seeds) for table in results.tables]
    assert titles == [
        ("pope", "greedy", 1),
        ("pope", "sample", 2),
        ("pope", "beam", 1),
        ("chair", "greedy", 1),
        ("mme", "greedy", 1),
    ]
    for table in results.tables:
        assert table.rows.keys() == prepared.grid.methods.keys()


def test_the_predictions_give_the_metrics(prepared: PreparedRun, folder: Path) -> None:
    tables = json.loads((folder / "metrics.json").read_text())["tables"]
    loaded = {item.name: item.benchmark for item in prepared.loaded}
    for table in tables:
        seeds = [0, 1] if table["mode"] == "sample" else [None]
        for method, cells in table["methods"].items():
            scores = [
                loaded[table["benchmark"]].score(
                    said(
                        folder,
                        part=table["benchmark"],
                        mode=table["mode"],
                        method=method,
                        seed=seed,
                    )
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


def test_gumbel_noise_samples_from_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0]).double()
    noise = gumbel_noise(rng_keys(0, [str(i) for i in range(40_000)]), 3, 4)
    share = torch.bincount((logits + noise).argmax(dim=-1), minlength=4) / 40_000
    assert (share - logits.softmax(dim=-1)).abs().max() < 0.01


def test_gumbel_noise_belongs_to_seed_sample_and_step() -> None:
    def drawn(seed: int, names: list[str], step: int) -> torch.Tensor:
        return gumbel_noise(rng_keys(seed, names), step, 8)

    assert torch.equal(drawn(1, ["a", "b"], 0)[1], drawn(1, ["b"], 0)[0])
    for other in (drawn(2, ["b"], 0), drawn(1, ["c"], 0), drawn(1, ["b"], 1)):
        assert not torch.isclose(other, drawn(1, ["b"], 0)).any()


def test_decodes_are_told_apart() -> None:
    assert Decode() == Decode("greedy") != Decode("sample", 0)


def test_an_ablation_has_a_gallery_for_each_benchmark(
    results: Results, prepared: PreparedRun
) -> None:
    shown = {found.benchmark: found for found in results.galleries}
    assert list(shown) == ["pope", "chair", "mme"]
    for found in shown.values():
        assert ("questions are answered differently" in found.rule) == bool(found.examples)
        assert len(found.examples) <= prepared.grid.gallery.samples and not found.notes
        for example in found.examples:
            assert {m for said in example.answers for m in said.methods} == {*prepared.grid.methods}
            assert len({said.text for said in example.answers}) > 1
            assert example.overlay is not None
    assert any(found.examples for found in shown.values())
    captions = [s for e in shown["chair"].examples for s in e.answers]
    assert all((said.right is False) == said.note.startswith("not in") for said in captions)
