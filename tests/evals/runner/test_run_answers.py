"""`cdkit score` of a run's own predictions gives the run's own metrics, by part and seed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amber_files import write_amber
from evals.command_line import run
from evals.eval_run import Part, answer, draw, metrics
from PIL import Image

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.benchmarks.score_files import Picked, score_chair, score_mme, score_pope
from cdkit.evals.data.layout import DataPart, parts_in

PARSERS = ("strict", "reference")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    draw(folder, images=6)
    return folder


@pytest.fixture(scope="module")
def parts(world: Path) -> dict[str, DataPart]:
    found = {**parts_in("pope", world), **parts_in("mme", world)}
    return {**found, **parts_in("chair", world, options={"max_new_tokens": 4})}


@pytest.fixture(scope="module")
def done(parts: dict[str, DataPart], tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    folder = tmp_path_factory.mktemp("runs") / "run"
    drawn: dict[str, Any] = {"mode": "sample", "seeds": (0, 3), "temperature": 2.0}
    return answer([as_part(part) for part in parts.values()], folder, method="plain", **drawn)


def as_part(part: DataPart) -> Part:
    return Part(part.name, part.benchmark, part.images)


def path_of(part: DataPart) -> Path:
    assert isinstance(part.benchmark, POPE)
    return part.benchmark.path


@pytest.mark.parametrize("split", ["random", "popular"])
def test_the_part_of_these_questions_is_scored(
    parts: dict[str, DataPart], done: RunOutcome, split: str
) -> None:
    name, said = f"pope_micro_{split}", done.folder / "predictions.jsonl"
    told = metrics(done)[name]
    found = score_pope(path_of(parts[name]), said, PARSERS)
    assert found.metrics == pytest.approx(told["mean"])
    assert found.notes == (f"the answers of {name}", "the mean over the seeds 0, 3")
    for each in told["by_seed"]:
        one = score_pope(path_of(parts[name]), said, PARSERS, Picked(name, each["seed"]))
        assert one.metrics == pytest.approx(each["metrics"])
    with pytest.raises(CdkitError, match=f"has no seed 1 of {name}: it has 0, 3"):
        score_pope(path_of(parts[name]), said, PARSERS, Picked(seed=1))
    with pytest.raises(CdkitError, match=r"has no part nothing: it has pope_micro_random, "):
        score_pope(path_of(parts[name]), said, PARSERS, Picked("nothing"))
    with pytest.raises(CdkitError, match=r"pope_micro_adversarial of .* was run on the files of"):
        score_pope(path_of(parts[name]), said, PARSERS, Picked("pope_micro_adversarial"))


def test_captions_and_points(parts: dict[str, DataPart], done: RunOutcome) -> None:
    said = done.folder / "predictions.jsonl"
    chair, mme = parts["chair"].benchmark, parts["mme"].benchmark
    assert isinstance(chair, CHAIR) and isinstance(mme, MME)
    found = score_chair(chair, said)
    assert found.metrics == pytest.approx(metrics(done)["chair"]["mean"])
    points = score_mme(said, mme.folder)
    told = metrics(done)["mme"]["mean"]
    assert {k: v for k, v in points.metrics.items() if k in told} == pytest.approx(
        {k: v for k, v in told.items() if k in points.metrics}
    )
    assert "existence.score" in points.metrics and "unknown" in points.metrics
    with pytest.raises(CdkitError, match="give the folder of MME's questions too"):
        score_mme(said)


def test_other_questions_and_rows_without_a_manifest(
    parts: dict[str, DataPart], done: RunOutcome, tmp_path: Path
) -> None:
    path = path_of(parts["pope_micro_random"])
    said = Path(shutil.copy(done.folder / "predictions.jsonl", tmp_path))
    with pytest.raises(CdkitError, match=r"has the parts pope_micro_random, .*: say which by --p"):
        score_pope(path, said, PARSERS)
    found = score_pope(path, said, PARSERS, Picked("pope_micro_random", 3)).metrics
    assert found == pytest.approx(metrics(done)["pope_micro_random"]["by_seed"][1]["metrics"])
    said.write_text(
        said.read_text(encoding="utf-8") + said.read_text(encoding="utf-8").splitlines()[0] + "\n",
        encoding="utf-8",
    )
    with pytest.raises(CdkitError, match=r"predictions.jsonl:\d+ answers .* a second time, after"):
        score_pope(path, said, PARSERS, Picked("pope_micro_random"))
    other = tmp_path / "other.json"
    other.write_text(path.read_text() + "\n")
    with pytest.raises(CdkitError, match=r"no part of .* was run on the files of .*other.json"):
        score_pope(other, done.folder / "predictions.jsonl", PARSERS)
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"id": 1, "text": "Yes"}))
    with pytest.raises(CdkitError, match=r"is no predictions.jsonl: leave them out"):
        score_pope(path, plain, PARSERS, Picked(seed=0))


def test_what_was_not_asked_is_left_out(parts: dict[str, DataPart], tmp_path: Path) -> None:
    part = parts["pope_micro_random"]
    outcome = answer([as_part(part)], tmp_path / "run", method="plain", limit=1)
    found = score_pope(path_of(part), outcome.folder / "predictions.jsonl", PARSERS)
    assert found.metrics == pytest.approx(metrics(outcome)[part.name]["mean"])
    assert "were not asked (--limit 1)" in found.notes[1]


@pytest.mark.parametrize("limit", [1, None])
def test_a_list_of_images_decides_what_was_asked(
    parts: dict[str, DataPart], tmp_path: Path, limit: int | None
) -> None:
    """The run's own list, which the one who scores need not give; also with --limit."""
    part = parts["chair"]
    assert isinstance(part.benchmark, CHAIR) and part.benchmark.images is not None
    names = part.benchmark.images.read_text("utf-8").split()
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(names[:2:-1]), "utf-8")  # the last ones, backwards
    asked = replace(part.benchmark, images=listed)
    outcome = answer(
        [Part("chair", asked, part.images)], tmp_path / "run", method="plain", limit=limit
    )
    said = outcome.folder / "predictions.jsonl"
    found = score_chair(replace(asked, images=None), said)
    assert found.metrics == pytest.approx(metrics(outcome)["chair"]["mean"])
    assert found.counted["captions"] == (limit or len(names) - 3)
    lines = said.read_text("utf-8").splitlines(keepends=True)
    if limit is None:
        said.write_text("".join(lines[1:]), "utf-8")  # a row is gone: it may have been any image's
        again = score_chair(replace(asked, images=None), said)
        assert again.counted["captions"] == len(lines) - 1
        assert any("have a caption" in note for note in again.notes)


def test_every_command_reads_a_run(world: Path, tmp_path: Path) -> None:
    """As a user types it: each benchmark's predictions give the run's own numbers."""
    shutil.copytree(world, tmp_path / "world")
    data = tmp_path / "world"
    queries = write_amber(data / "amber" / "data", ("A.jpg", "B.jpg"))
    (data / "amber" / "image").mkdir()
    for name in ("A.jpg", "B.jpg"):
        Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(
            data / "amber" / "image" / name
        )
    chair = ("--instances", data / "instances.json", "--coco-captions", data / "captions.json")
    commands: dict[str, tuple[str | Path, ...]] = {
        "chair": (*chair, "--synonyms", data / "synonyms.txt", "--captions"),
        "amber": ("--questions", queries, "--answers"),
        "pope_micro_random": ("--questions", data / "micro_pope_random.json", "--answers"),
    }
    for part, options in commands.items():
        bench = part.partition("_")[0]
        asked = ("eval", "--method", "plain", "--bench", bench, "--data", data, "--limit", "1")
        made = run(
            *asked, "--only", part, "--max-new-tokens", "4", "--output", tmp_path, "--name", bench,
            "--json",
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        (told,) = json.loads(made.stdout)["scores"]
        scored = run("score", bench, *options, tmp_path / bench / "predictions.jsonl", "--json")
        assert scored.exit_code == 0, scored.output
        found = json.loads(scored.stdout)
        for metric in told["mean"].keys() & found.keys():
            assert found[metric] == pytest.approx(told["mean"][metric]), metric
        assert told["mean"].keys() & found.keys()
