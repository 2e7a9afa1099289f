"""A run from its settings to its numbers: what it leaves, what it refuses, how it goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.eval_run import Part, answer, draw, journal_rows, parts_of, predictions, rows
from evals.eval_run import metrics as metrics_of
from PIL import Image

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.microworld.checkpoint import FILES
from cdkit.evals.microworld.world_files import BenchmarkFiles
from cdkit.evals.runner import answer_engine as engines
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.answering import Answering
from cdkit.evals.runner.finished import FinishedRun
from cdkit.evals.runner.questions import asked_of, asked_samples, question_of
from cdkit.evals.runner.read_run import read_run
from cdkit.evals.runner.shared_passes import Variant, passes
from cdkit.interfaces.sample import Answer

PRIVATE = {"yes_score", "margin"}
"""Of a prediction: what rounding may move when a batch has other mates."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFiles:
    return draw(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def parts(files: BenchmarkFiles) -> list[Part]:
    return parts_of(files)


@pytest.fixture(scope="module")
def done(parts: list[Part], tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    return answer(parts, tmp_path_factory.mktemp("runs") / "cmac")


@pytest.fixture
def copied(done: RunOutcome, tmp_path: Path) -> Path:
    """The finished run, to be damaged."""
    shutil.copytree(done.folder, tmp_path / "cmac")
    return tmp_path / "cmac"


def cut(folder: Path, keep: int, *, torn: bool = False) -> None:
    """As a kill leaves it: the first `keep` rows, maybe with a torn one behind."""
    (path,) = (folder / "journal").glob("*.jsonl")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = lines[: keep + 1] + ([lines[keep + 1][:-9]] if torn else [])
    path.write_text("".join(kept), encoding="utf-8")
    for name in ("predictions.jsonl", "metrics.json", "manifest.json"):
        (folder / name).unlink()


def public(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in PRIVATE} for row in predictions(folder)]


@pytest.mark.parametrize("head", ["", '{"journal": 2, "piece": 1'])
def test_a_run_killed_before_its_first_head_goes_on(
    done: RunOutcome, copied: Path, parts: list[Part], head: str
) -> None:
    (path,) = (copied / "journal").glob("*.jsonl")
    cut(copied, 0)
    path.write_text(head)
    outcome = answer(parts, copied, resume=True)
    assert public(outcome.folder) == public(done.folder)
    assert path.read_text() == "" and len([*path.parent.glob("*.jsonl")]) == 2


def one_run(folder: Path) -> FinishedRun:
    (found,) = read_run(folder)
    return found


def bytes_of(folder: Path) -> bytes:
    return (folder / "predictions.jsonl").read_bytes()


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(CdkitError) as caught:
        answer(*args, **kwargs)
    return str(caught.value)


def test_predictions_stand_in_the_samples_order(parts: list[Part], done: RunOutcome) -> None:
    wanted = [(part.name, sample.id) for part in parts for sample in part.benchmark.samples()]
    assert [(row["part"], row["id"]) for row in predictions(done.folder)] == wanted


def test_metrics_are_those_of_the_predictions(parts: list[Part], done: RunOutcome) -> None:
    scores = json.loads((done.folder / "metrics.json").read_text())["scores"]
    told = {score["part"]: score for score in scores}
    for part in parts:
        said = {
            row["id"]: Answer(row["text"], row["yes_score"], row["truncated"], row["tokens"])
            for row in predictions(done.folder)
            if row["part"] == part.name
        }
        assert told[part.name]["mean"] == part.benchmark.score(said)
        assert told[part.name]["scored"] == told[part.name]["samples"] == len(said)


def test_yes_scores_are_those_of_the_first_step(parts: list[Part], done: RunOutcome) -> None:
    """As a shared pass gives them: from the branches' logits, before the constraint."""
    engine = AnswerEngine(*cdkit.load_model("micro"))
    variant = Variant("cmac", cdkit.load("cmac"))
    (work,) = passes([variant])
    answering = Answering(engine, {"cmac": variant})
    by_id = {row["id"]: row for row in predictions(done.folder) if row["part"] == "pope_random"}
    for sample in asked_samples(parts[0].benchmark, 1):
        question = asked_of(sample, parts[0].images, 16)
        inputs = engine.inputs([question])
        logits, _ = engine.first_step(work.method, inputs, [question.sample_id])
        scores = answering.combine(work, variant, logits).yes_scores
        assert by_id[sample.id]["yes_score"] == pytest.approx(float(scores[0]), abs=1e-4)
    captions = [row for row in predictions(done.folder) if row["part"] == "chair"]
    assert captions and all(row["yes_score"] is None for row in captions)


def test_the_manifest_says_what_the_numbers_depend_on(done: RunOutcome) -> None:
    told = json.loads((done.folder / "manifest.json").read_text())
    assert told["model"]["files"].keys() == FILES
    assert told["model"]["generation"] == {"eos_token_id": 2}
    assert told["model"]["dtype"] == "float32" and told["model"]["padding"] == "left"
    assert "<image>" in told["model"]["prompt"]
    assert told["methods"]["cmac"]["resolved"] == cdkit.load("cmac").to_dict()
    assert told["parts"]["pope_random"]["benchmark"]["versions"] == {"strict": 1, "reference": 1}
    (piece,) = told["pieces"]
    assert piece["batch_size"] == 8 and piece["processes"] == 1
    assert 0 < told["model_seconds"] <= told["wall_seconds"]
    assert told["tokens"] == sum(row["tokens"] for row in predictions(done.folder))
    assert told["near_ties"]["of"] + told["near_ties"]["answers"] > 0


def test_a_finished_run_is_read_back(parts: list[Part], done: RunOutcome) -> None:
    found = one_run(done.folder)
    assert (found.model, found.method, found.mode) == ("micro", "cmac", "greedy")
    for part in parts:
        again = found.parts[part.name]
        assert again.benchmark == part.benchmark and again.images == part.images
        metrics = again.benchmark.score(again.answers[None])
        assert metrics == metrics_of(done)[part.name]["mean"] and again.errors == {}


@pytest.mark.parametrize(("keep", "torn"), [(0, False), (1, True), (11, True), (20, False)])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    parts: list[Part], done: RunOutcome, copied: Path, keep: int, torn: bool
) -> None:
    cut(copied, keep, torn=torn)
    outcome = answer(parts, copied, resume=True)
    assert bytes_of(copied) == bytes_of(done.folder)
    assert len(outcome.torn) == torn
    keys = [(row["question"], row["method"], row["seed"]) for row in journal_rows(copied)]
    assert len(set(keys)) == len(keys) == len(predictions(copied))
    assert len(json.loads((copied / "manifest.json").read_text())["pieces"]) == 2


def test_another_batch_size_ends_with_the_same_answers(
    parts: list[Part], done: RunOutcome, copied: Path
) -> None:
    cut(copied, 11)
    answer(parts, copied, resume=True, batch_size=3)
    assert public(copied) == public(done.folder)
    told = json.loads((copied / "manifest.json").read_text())["pieces"]
    assert [piece["batch_size"] for piece in told] == [8, 3]


def test_a_finished_run_is_not_asked_again(
    parts: list[Part], done: RunOutcome, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdkit, "load_model", None)
    (copied / "metrics.json").unlink()
    answer(parts, copied, resume=True)
    assert bytes_of(copied) == bytes_of(done.folder)
    assert (copied / "metrics.json").read_bytes() == (done.folder / "metrics.json").read_bytes()


def test_a_folder_that_is_there_is_not_written_into(parts: list[Part], done: RunOutcome) -> None:
    assert "is there already: --resume goes on" in refused(parts, done.folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "vcd"}, '--method was "cmac", is "vcd"'),
        ({"set": {"alpha": 1.0}}, '--method was "cmac", is "cmac, alpha 1.0"'),
        ({"limit": 2}, "--limit was not given, is 2"),
        ({"mode": "sample", "seeds": (0, 1)}, "--mode was"),
        ({"dtype": "float64"}, '--dtype was "auto", is "float64"'),
    ],
)
def test_other_settings_are_refused(
    parts: list[Part], done: RunOutcome, changes: dict[str, Any], told: str
) -> None:
    message = refused(parts, done.folder, resume=True, **changes)
    assert "was begun with other settings" in message and told in message


def test_other_questions_are_refused(parts: list[Part], done: RunOutcome) -> None:
    message = refused(parts[:2], done.folder, resume=True)
    assert "the questions of mme are others" in message


def test_seeds_limit_and_methods_of_one_token(parts: list[Part], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"mode": "sample", "seeds": (0, 3), "temperature": 1.5, "top_k": 40}
    outcome = answer(parts[:1], tmp_path / "a", method="plain", limit=2, **asked)
    told = metrics_of(outcome)["pope_random"]
    assert (told["samples"], told["asked"], told["scored"]) == (18, 12, 12)
    assert [each["seed"] for each in told["by_seed"]] == [0, 3]
    means = [each["metrics"]["accuracy"] for each in told["by_seed"]]
    assert told["mean"]["accuracy"] == pytest.approx(sum(means) / 2)
    asked |= {"method": "plain", "limit": 2, "seeds": (3,)}
    alone = answer(parts[:1], tmp_path / "b", batch_size=2, **asked)
    drawn = [row for row in public(outcome.folder) if row["seed"] == 3]
    assert public(alone.folder) == drawn
    found = one_run(outcome.folder)
    assert len(found.parts["pope_random"].errors) == 6
    assert set(found.parts["pope_random"].errors.values()) == {"not asked (--limit 2)"}
    assert found.parts["pope_random"].unasked == found.parts["pope_random"].errors.keys()


def test_beams_and_a_loop_of_its_own(parts: list[Part], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"mode": "beam", "beams": 2, "limit": 1}
    beams = predictions(answer(parts[:1], tmp_path / "a", **asked).folder)
    assert all(row["yes_score"] is not None and row["margin"] is None for row in beams)
    opera = predictions(answer(parts[:1], tmp_path / "b", method="opera", **asked).folder)
    assert all(row["yes_score"] is None for row in opera) and len(opera) == len(beams)


def test_a_sample_that_fails_is_an_error_in_its_place(
    files: BenchmarkFiles, tmp_path: Path
) -> None:
    world = tmp_path / "world"
    parts = parts_of(draw(world))[:2]
    first, second = sorted({s.image for s in parts[0].benchmark.samples()})[:2]
    whole = (parts[0].images / first).read_bytes()
    (parts[0].images / first).write_bytes(whole[:50])
    (parts[0].images / second).unlink()
    outcome = answer(parts, tmp_path / "run")
    failed = outcome.errors["pope_random"]
    assert len(failed) == 12
    reasons = set(failed.values())
    assert any("cannot read the image" in reason for reason in reasons)
    assert any("no such image" in reason for reason in reasons)
    told = metrics_of(outcome)["pope_random"]
    assert (told["samples"], told["failed"], told["scored"]) == (18, 12, 6)
    assert one_run(outcome.folder).parts["pope_random"].errors == failed

    again = answer(parts, outcome.folder, resume=True)  # not asked again unless told to
    assert again.errors == outcome.errors
    (parts[0].images / first).write_bytes(whole)
    again = answer(parts, outcome.folder, resume=True, retry_errors=True)
    assert len(again.errors["pope_random"]) == 6
    assert metrics_of(again)["pope_random"]["scored"] == 12


def test_an_image_that_is_a_link_out_of_its_folder_is_not_read(tmp_path: Path) -> None:
    (part, *_) = parts_of(draw(tmp_path / "world"))
    first, second = sorted({s.image for s in part.benchmark.samples()})[:2]
    (part.images / first).rename(tmp_path / "elsewhere.png")
    (part.images / first).symlink_to(tmp_path / "elsewhere.png")
    (part.images / "within.png").write_bytes((part.images / second).read_bytes())
    (part.images / second).unlink()
    (part.images / second).symlink_to("within.png")
    outcome = answer([part], tmp_path / "run", method="plain", limit=3)
    linked = {s.id for s in part.benchmark.samples() if s.image == first}
    assert outcome.errors["pope_random"].keys() == linked
    (reason,) = set(outcome.errors["pope_random"].values())
    assert reason.startswith("cannot use the image ") and "is a link out of its folder" in reason
    for sample in part.benchmark.samples():
        for read in (
            lambda s=sample: s.image_in(part.images),
            lambda s=sample: question_of(s, part.images, 1).picture(),
            lambda s=sample: asked_of(s, part.images, 1).picture(),
        ):
            if sample.id in linked:
                with pytest.raises(CdkitError, match="which is a link out of its folder: put"):
                    read()
            else:
                read()


def test_a_prompt_that_is_too_long_is_an_error(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = cdkit.load_model

    def short(*args: Any, **kwargs: Any) -> Any:
        model, processor = load(*args, **kwargs)
        model.config.get_text_config().max_position_embeddings = 80
        return model, processor

    monkeypatch.setattr(cdkit, "load_model", short)
    outcome = answer(parts[:2], tmp_path / "run")
    (reason,) = set(outcome.errors["pope_random"].values())
    assert "tokens and the answer may have 16, but the model has positions for 80" in reason
    assert metrics_of(outcome)["pope_random"]["scored"] == 0


def test_a_model_that_is_loaded_otherwise_is_refused(
    parts: list[Part], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(copied, 3)
    load = cdkit.load_model

    def double(*args: Any, **kwargs: Any) -> Any:
        model, processor = load(*args, **kwargs)
        return model.double(), processor

    monkeypatch.setattr(cdkit, "load_model", double)
    message = refused(parts, copied, resume=True)
    assert "with a model whose dtype was 'float32', and now is 'float64'" in message


@pytest.mark.filterwarnings("ignore:.*fork")
def test_images_that_are_loaded_ahead_change_nothing(
    parts: list[Part], done: RunOutcome, tmp_path: Path
) -> None:
    assert bytes_of(answer(parts, tmp_path / "run", workers=1).folder) == bytes_of(done.folder)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TypeError])
def test_what_is_no_samples_fault_stops_the_run(
    parts: list[Part],
    done: RunOutcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """The journal stays, and the run goes on from there."""
    generate, calls = engines.AnswerEngine._generate, []

    def failing(self: AnswerEngine, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error("no more")
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(engines.AnswerEngine, "_generate", failing)
    shown = CdkitError if error is torch.OutOfMemoryError else error
    with pytest.raises(shown, match="batch-size 8" if shown is CdkitError else "no more"):
        answer(parts, tmp_path / "run")
    kept = journal_rows(tmp_path / "run")
    assert len(kept) > 0 and not any("error" in row for row in kept)
    with pytest.raises(CdkitError, match="not finished: go on with --resume"):
        read_run(tmp_path / "run")
    monkeypatch.undo()
    answer(parts, tmp_path / "run", resume=True)
    assert bytes_of(tmp_path / "run") == bytes_of(done.folder)


def test_a_file_that_changed_is_told(files: BenchmarkFiles, tmp_path: Path) -> None:
    parts = parts_of(draw(tmp_path / "world", images=1))[:1]
    outcome = answer(parts, tmp_path / "run")
    path = next(iter(parts[0].benchmark.sources()))
    Path(path).write_text(Path(path).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(CdkitError, match="which has changed since: restore it, or run run again"):
        read_run(outcome.folder)
    Path(path).unlink()
    with pytest.raises(CdkitError, match="which cannot be read"):
        read_run(outcome.folder)


def test_a_folder_that_was_moved_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a grid's world is; and from another working directory than that of a relative path."""
    monkeypatch.chdir(tmp_path)
    first = answer(parts_of(draw(Path("world"), images=1))[:1], Path("run"))
    Path("world").rename(Path("run", "world"))
    manifest = Path("run", "manifest.json")
    text = manifest.read_text("utf-8")
    text = text.replace('"world', '"run/world').replace(
        f"{tmp_path}/world", f"{tmp_path}/run/world"
    )
    manifest.write_text(text, encoding="utf-8")
    before = read_run(first.folder)
    (tmp_path / "elsewhere").mkdir()
    Path("run").rename(Path("elsewhere", "other"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    (now,), (then,) = read_run(Path("other")), before
    ((name, part),) = now.parts.items()
    assert part.answers == then.parts[name].answers
    assert part.images == Path("other", "world", "images")
    assert all(Path(path).is_file() for path in part.benchmark.sources())
    source = next(iter(part.benchmark.sources()))
    Path(source).write_text(Path(source).read_text("utf-8") + "\n", encoding="utf-8")
    with pytest.raises(CdkitError, match="which has changed since"):
        read_run(Path("other"))


def test_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match="holds no run of cdkit eval"):
        read_run(tmp_path)


def test_near_ties_are_counted(parts: list[Part], tmp_path: Path) -> None:
    """A model with no preference: its two best tokens are one rounding apart."""
    picture = Image.new("RGB", (64, 64), "grey")
    model, processor = cdkit.load_model("micro")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    engine = AnswerEngine(model, processor)
    inputs = engine.encode([[picture]], ["is there a cat ?"])
    (even,) = engine.answers(
        cdkit.load("plain"), inputs, ["x"], limit=2, seed=None, record_margins=True
    )
    assert even.margin == 0.0 and even.yes_score == pytest.approx(0.0)


def test_rows_of_the_journal_have_the_agreed_key(done: RunOutcome) -> None:
    row = journal_rows(done.folder)[0]
    assert {"model", "question", "method", "mode", "seed", "text", "yes_score"} <= row.keys()
    assert {"tokens", "seconds"} <= row.keys()
    head = rows(next((done.folder / "journal").glob("[!.]*")))[0]
    assert head["batch_size"] == 8 and head["model"]["type"] == "llava"
