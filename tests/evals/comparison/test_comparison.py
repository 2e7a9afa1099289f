"""Finished runs side by side: what may be compared, and what is said of it."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from evals.finished_runs import MANIFEST, finished, without_part

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.comparison import comparable, comparison_run
from cdkit.evals.comparison.run_names import name_runs
from cdkit.evals.comparison.tallies import tallies
from cdkit.evals.microworld import write_benchmarks
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.reports.formatting import DASH
from cdkit.evals.reports.results import direction
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.evals.runner.questions import asked_samples
from cdkit.evals.statistics.run_comparison import compare
from cdkit.evals.statistics.significance import holm, mcnemar
from cdkit.interfaces.benchmark import Benchmark

Benchmarks = Mapping[str, Benchmark]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Benchmarks:
    files = write_benchmarks(tmp_path_factory.mktemp("world"), images=16, exam_images=3)
    return {
        "pope_random": POPE(files.pope["random"]),
        "chair": CHAIR(
            files.synonyms,
            instances=files.annotations,
            captions=files.captions,
            images=files.caption_images,
        ),
        "mme": MME(files.mme, tasks=("existence", "count")),
    }


@pytest.fixture(scope="module")
def two(benchmarks: Benchmarks, tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        finished(folder / "first", "greedy search", benchmarks, 0.5),
        finished(folder / "second", "ours <b>|x", benchmarks, 0.9),
    ]


@pytest.fixture(scope="module")
def compared(two: list[FinishedRun]) -> comparison_run.ComparedRuns:
    return comparison_run.compare_runs(name_runs(two), resamples=50)


def changed(run: FinishedRun, **manifest: object) -> FinishedRun:
    return dataclasses.replace(run, manifest={**run.manifest, **manifest})


def exchanged(run: FinishedRun, part: str, benchmark: Benchmark) -> FinishedRun:
    """The run, whose part was asked another benchmark's questions."""
    parts = {**run.parts, part: dataclasses.replace(run.parts[part], benchmark=benchmark)}
    return dataclasses.replace(run, parts=parts)


def refused(a: FinishedRun, b: FinishedRun, **how: bool) -> str:
    with pytest.raises(CdkitError) as error:
        comparable.check(name_runs([a, b], ["a", "b"]), **how)
    return str(error.value)


def test_a_table_each_with_the_first_run_as_its_base(
    compared: comparison_run.ComparedRuns, two: list[FinishedRun]
) -> None:
    tables = compared.results.tables
    assert [table.benchmark for table in tables] == ["pope_random", "chair", "mme"]
    for table in tables:
        assert table.base == "greedy search" and list(table.rows) == ["greedy search", "ours <b>|x"]
        part = table.benchmark
        benchmark = two[0].parts[part].benchmark
        for run in two:
            cells = table.rows[run.method].cells
            values = benchmark.score(run.parts[part].answers[None])
            first = {m: v for m, v in values.items() if not m.startswith("reference.")}
            assert {metric: cell.value.value for metric, cell in cells.items()} == first
        tested = [cell.p for cell in table.rows["ours <b>|x"].cells.values() if cell.p is not None]
        assert table.tests == len(tested) == sum(direction(m) != 0 for m in table.metrics)
        adjusted = [c.p_holm for c in table.rows["ours <b>|x"].cells.values() if c.p is not None]
        assert adjusted == pytest.approx(holm(tested))


def test_the_base_may_be_any_run(
    two: list[FinishedRun], compared: comparison_run.ComparedRuns
) -> None:
    turned = comparison_run.compare_runs(name_runs(two, base="ours <b>|x"), resamples=50)
    assert turned.base == "ours <b>|x"
    for table, other in zip(turned.results.tables, compared.results.tables, strict=True):
        for metric in table.metrics:
            mine = table.rows["greedy search"].cells[metric]
            theirs = other.rows["ours <b>|x"].cells[metric]
            assert mine.difference is not None and theirs.difference is not None
            assert mine.difference.value == pytest.approx(-theirs.difference.value)
            assert mine.p == theirs.p and mine.detectable == pytest.approx(theirs.detectable)


def test_changes_are_counted_towards_right(
    compared: comparison_run.ComparedRuns, two: list[FinishedRun], benchmarks: Benchmarks
) -> None:
    of = {(c.benchmark, c.metric): c for c in compared.changes}
    said = [run.parts["pope_random"].answers[None] for run in two]
    right = [
        [
            (a[s.id].text == "Yes.") == (s.target == "yes")
            for s in benchmarks["pope_random"].samples()
        ]
        for a in said
    ]
    pairs = list(zip(*right, strict=True))
    change = of["pope_random", "accuracy"]
    assert change.became_right == pairs.count((False, True)) > 0
    assert change.became_wrong == pairs.count((True, False))
    assert change.mcnemar == mcnemar(change.became_right, change.became_wrong)
    # CHAIR_s is a share of wrong captions: fewer of them are captions that became right.
    tables = {table.benchmark: table for table in compared.results.tables}
    cell = tables["chair"].rows["ours <b>|x"].cells["chair_s"]
    assert (of["chair", "chair_s"].became_right, of["chair", "chair_s"].became_wrong) == (
        cell.lost,
        cell.gained,
    )
    assert of["chair", "chair_s"].became_right > of["chair", "chair_s"].became_wrong == 0
    assert ("pope_random", "f1") not in of


def test_every_test_has_a_row_with_its_power(compared: comparison_run.ComparedRuns) -> None:
    for table, text_table in zip(
        compared.results.tables, compared.results.text_tables, strict=False
    ):
        assert text_table.title.startswith(table.title)
        assert len(text_table.rows) == table.tests
    row = compared.results.text_tables[0].rows[0]
    assert row[0] == "ours <b>|x: accuracy % ↑" and DASH not in row
    level = f"{0.05 / compared.results.tables[0].tests:.2g}".removeprefix("0")
    assert compared.results.text_tables[0].heads[-2:] == ("least at .05", f"least at {level}, Holm")
    cell = compared.results.tables[0].rows["ours <b>|x"].cells["accuracy"]
    assert cell.detectable is not None and cell.detectable_holm is not None
    assert 0 < cell.detectable < cell.detectable_holm


def test_seeds_are_paired_in_order(benchmarks: Benchmarks, tmp_path: Path) -> None:
    pope = {"pope_random": benchmarks["pope_random"]}
    a = finished(tmp_path / "a", "a", pope, 0.5, seeds=(2, 0, 1), mode="sample")
    b = finished(tmp_path / "b", "b", pope, 0.8, seeds=(0, 1, 2), mode="sample")
    found = comparison_run.compare_runs(name_runs([a, b]), resamples=50)
    assert found.notes == ()
    (table,) = found.results.tables
    assert table.decoding == "sampling, 3 seeds"
    in_order = [
        [pope["pope_random"].tally(run.parts["pope_random"].answers[s]) for s in (0, 1, 2)]
        for run in (b, a)
    ]
    expected = compare(in_order[0], in_order[1], resamples=50)["accuracy"]
    assert table.rows["b"].cells["accuracy"].difference == expected.difference
    (change,) = (c for c in found.changes if c.metric == "accuracy")
    assert change.seeds == 3 and change.mcnemar is None and change.became_wrong == 0


def test_other_seeds_are_told_and_other_counts_refused(
    benchmarks: Benchmarks, tmp_path: Path
) -> None:
    pope = {"pope_random": benchmarks["pope_random"]}

    def run(name: str, *seeds: int) -> FinishedRun:
        return finished(tmp_path / name, name, pope, 0.5, seeds=seeds, mode="sample")

    (note,) = comparable.check(name_runs([run("a", 0, 1), run("b", 4, 5)]))
    assert note.startswith("seeds of pope_random differ: a 0, 1, b 4, 5; ")
    assert len(comparable.check(name_runs([run("a", 0, 1), run("b", 0)]))) == 1  # paired with each
    told = refused(run("a", 0, 1), run("b", 0, 1, 2))
    assert told.startswith("a has 2 seeds of pope_random and b has 3: runs are paired seed by seed")


def test_what_decides_the_numbers_must_be_equal(
    two: list[FinishedRun], benchmarks: Benchmarks, tmp_path: Path
) -> None:
    a, b = two
    pope = benchmarks["pope_random"]
    assert isinstance(pope, POPE)
    lines = pope.path.read_text().splitlines()
    (tmp_path / "other.json").write_text("\n".join(lines[:-1]))
    told = refused(a, exchanged(b, "pope_random", POPE(tmp_path / "other.json")))
    assert re.search(
        r"of pope_random the files differ \(SHA-256 \w{8} and \w{8}\); the samples", told
    )
    told = refused(a, exchanged(b, "pope_random", dataclasses.replace(pope, max_new_tokens=4)))
    assert "of pope_random max_new_tokens is 16 in one, 4 in the other; run both on" in told
    turned = dataclasses.replace(pope, parsers=("reference", "strict"))
    assert "parsers is [" in refused(a, exchanged(b, "pope_random", turned))
    assert "the benchmarks are pope and mme" in refused(
        a, exchanged(b, "pope_random", benchmarks["mme"])
    )
    assert refused(a, dataclasses.replace(b, mode="beam")) == (
        "a and b cannot be compared: their decode modes are greedy and beam search; "
        "run both in one mode"
    )
    a, b = (dataclasses.replace(run, mode="sample") for run in (a, b))
    cold = changed(b, settings={**MANIFEST["settings"], "temperature": 0.7})
    assert "temperature is 1.0 in one, 0.7 in the other" in refused(a, cold)
    bare = changed(b, model={**MANIFEST["model"], "prompt": "<image> is it so ?"})
    assert "their prompts are 'USER: <image>" in refused(a, bare)


def test_the_same_file_in_another_place_is_the_same(
    two: list[FinishedRun], benchmarks: Benchmarks, tmp_path: Path
) -> None:
    pope = benchmarks["pope_random"]
    assert isinstance(pope, POPE)
    (tmp_path / "copy.json").write_bytes(pope.path.read_bytes())
    moved = exchanged(two[1], "pope_random", POPE(tmp_path / "copy.json"))
    assert comparable.check(name_runs([two[0], moved])) == ()


def test_a_parser_of_another_version_is_refused(
    two: list[FinishedRun], benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pope = benchmarks["pope_random"]
    newer = dataclasses.replace(pope, max_new_tokens=16)  # type: ignore[type-var]
    versions = POPE.versions
    monkeypatch.setattr(
        POPE, "versions", lambda self: {n: v + (self is newer) for n, v in versions(self).items()}
    )
    told = refused(two[0], exchanged(two[1], "pope_random", newer))
    assert "the parsers' versions are " in told


def test_models_differ_on_purpose_only(two: list[FinishedRun]) -> None:
    model: dict[str, Any] = {"name": "other/model", "revision": "main", "prompt": "another"}
    other = changed(two[1], model={**model, "dtype": "float32"})
    assert refused(two[0], other) == (
        "a and b cannot be compared: their models are micro (abababab) and other/model (main); "
        "add --across-models to compare models on purpose"
    )
    notes = comparable.check(name_runs([two[0], other], ["a", "b"]), across_models=True)
    assert notes == (
        "models differ: a is of micro (abababab), b of other/model (main)",
        "prompts differ, as the models' templates do: a, b",
    )
    # The same weights in another place are the same model, other weights in the same place are not.
    moved = changed(two[1], model={**MANIFEST["model"], "name": "elsewhere"})
    assert comparable.check(name_runs([two[0], moved])) == ()
    trained = changed(
        two[1], model={**MANIFEST["model"], "files": {"model.safetensors": "cd" * 32}}
    )
    assert "their models are micro (abababab) and micro (cdcdcdcd)" in refused(two[0], trained)


def test_what_else_differs_is_told(two: list[FinishedRun]) -> None:
    model = {**MANIFEST["model"], "dtype": "bfloat16"}
    pieces = [*MANIFEST["pieces"], {"batch_size": 32, "processes": 1, "devices": ["here: cpu"]}]
    other = changed(
        two[1],
        versions={"torch": "2.14.0", "cdkit": "0.1.0"},
        model=model,
        pieces=pieces,
        wall_seconds=99,
    )
    assert comparable.check(name_runs([two[0], other], ["a", "b"])) == (
        "model.dtype: a 'float32', b 'bfloat16'",
        "versions.torch: a '2.13.0', b '2.14.0'",
        "batch_size: a '8', b '8, 32'",
    )


def test_a_prompt_is_the_same_around_another_question(
    two: list[FinishedRun], benchmarks: Benchmarks
) -> None:
    """A manifest tells it by the first question that its run asked."""
    asked = [benchmarks[name].samples()[0].prompt for name in ("pope_random", "chair")]
    assert asked[0] != asked[1]
    a, b = (
        changed(run, model={**MANIFEST["model"], "prompt": f"USER: {question} ASSISTANT:"})
        for run, question in zip(two, asked, strict=True)
    )
    assert comparable.check(name_runs([a, b])) == ()
    assert "their prompts are " in refused(
        a, changed(b, model={**MANIFEST["model"], "prompt": asked[1]})
    )


def test_parts_that_not_all_have_are_told(two: list[FinishedRun]) -> None:
    fewer = without_part(two[1], "chair")
    found = comparison_run.compare_runs(name_runs([two[0], fewer]), resamples=10)
    assert [table.benchmark for table in found.results.tables] == ["pope_random", "mme"]
    assert found.notes == ("not compared, since not all runs have it: chair of greedy search",)
    only = without_part(without_part(fewer, "pope_random"), "mme")
    assert refused(two[0], only).startswith("the runs share no benchmark (a: pope_random, chair")


def test_unanswered_samples_are_refused_or_left_out_of_every_run(
    two: list[FinishedRun], benchmarks: Benchmarks, tmp_path: Path
) -> None:
    pope = benchmarks["pope_random"]
    gone = [sample.id for sample in pope.samples()[3:5]]
    broken = finished(tmp_path / "broken", "broken", {"pope_random": pope}, 0.8, failed=gone)
    with pytest.raises(CdkitError) as error:
        tallies(name_runs([two[0], broken]), "pope_random")
    assert str(error.value) == (
        f"broken has no answer to 2 samples of pope_random ({gone[0]}: the image is truncated; "
        f"{gone[1]}: the image is truncated): answer them (cdkit eval --resume --retry-errors), or "
        "add --allow-missing to leave them out of every run"
    )
    found = comparison_run.compare_runs(
        name_runs([two[0], broken]), allow_missing=True, resamples=20
    )
    (table,) = found.results.tables
    total = len(pope.samples())
    assert table.samples == total - 2
    assert found.notes[-1] == (
        f"pope_random: over {total - 2} of {total} samples; 2 without an answer are left out of "
        f"every run (broken: {gone[0]}: the image is truncated; {gone[1]}: the image is truncated)"
    )
    kept = pope.tally(two[0].parts["pope_random"].answers[None], without=gone).values()
    for metric, cell in table.rows["greedy search"].cells.items():
        assert cell.value.value == kept[metric]


def limited(run: FinishedRun, limit: int) -> FinishedRun:
    """As `--limit` leaves a run: without answers to the samples of further images."""
    parts = {}
    for name, part in run.parts.items():
        asked = {sample.id for sample in asked_samples(part.benchmark, limit)}
        others = frozenset(sample.id for sample in part.benchmark.samples()) - asked
        parts[name] = dataclasses.replace(
            part,
            answers={
                seed: {n: a for n, a in answers.items() if n in asked}
                for seed, answers in part.answers.items()
            },
            errors={**part.errors, **dict.fromkeys(others, f"not asked (--limit {limit})")},
            unasked=others,
        )
    return dataclasses.replace(run, parts=parts)


@pytest.mark.parametrize(("limits", "told"), [((2, 2), ""), ((2, 3), " (a: 12, b: 18 were asked)")])
def test_what_a_run_was_not_asked_is_not_missing(
    two: list[FinishedRun], limits: tuple[int, int], told: str
) -> None:
    runs = [limited(run, limit) for run, limit in zip(two, limits, strict=True)]
    found = comparison_run.compare_runs(name_runs(runs, ["a", "b"]), resamples=10)
    pope = two[0].parts["pope_random"].benchmark
    asked, total = len(asked_samples(pope, 2)), len(pope.samples())
    (note,) = (note for note in found.notes if note.startswith("pope_random: over"))
    assert (
        note == f"pope_random: over the {asked} of {total} samples that every run was asked{told}"
    )
    assert {table.samples for table in found.results.tables} >= {asked}
    answers = two[1].parts["pope_random"].answers[None]
    out = {s.id for s in pope.samples()} - {s.id for s in asked_samples(pope, 2)}
    for metric, cell in found.results.tables[0].rows["b"].cells.items():
        assert cell.value.value == pope.tally(answers, without=out).values()[metric]


def test_an_answer_missing_among_those_asked_is_missing(two: list[FinishedRun]) -> None:
    runs = [limited(run, 2) for run in two]
    gone, *_ = part_of(runs[1]).answers[None]
    answers = {n: a for n, a in part_of(runs[1]).answers[None].items() if n != gone}
    part = dataclasses.replace(part_of(runs[1]), answers={None: answers})
    runs[1] = dataclasses.replace(runs[1], parts={"pope_random": part})
    with pytest.raises(CdkitError, match=r"b has no answer to 1 sample of pope_random \("):
        tallies(name_runs(runs, ["a", "b"]), "pope_random")
    left, notes = tallies(name_runs(runs, ["a", "b"]), "pope_random", allow_missing=True)
    assert "over 11 of 12 samples; 1 without an answer are left out" in notes[1]
    assert len(left["a"][0].samples) == 11


def part_of(run: FinishedRun) -> FinishedPart:
    return run.parts["pope_random"]


def test_the_partner_of_an_unanswered_question_is_counted(
    two: list[FinishedRun], benchmarks: Benchmarks, tmp_path: Path
) -> None:
    mme = {"mme": benchmarks["mme"]}
    broken = finished(tmp_path / "broken", "broken", mme, 0.8, failed=["existence/3"])
    found = comparison_run.compare_runs(
        name_runs([two[0], broken]), allow_missing=True, resamples=20
    )
    assert (
        "; 2 without an answer are left out of every run, 1 of them scored with one that"
        in (found.notes[-1])
    )


def test_a_sample_that_one_seed_lacks_counts_as_missing(
    benchmarks: Benchmarks, tmp_path: Path
) -> None:
    pope = {"pope_random": benchmarks["pope_random"]}
    run = finished(tmp_path / "a", "a", pope, 0.5, seeds=(0, 1), mode="sample")
    part = run.parts["pope_random"]
    (first, *_), one = part.answers[1], dict(part.answers[1])
    del one[first]
    cut = dataclasses.replace(part, answers={0: part.answers[0], 1: one})
    half = dataclasses.replace(run, parts={"pope_random": cut}, folder=tmp_path / "half")
    with pytest.raises(CdkitError, match=f"b has no answer to 1 sample of .*{first}: no answer"):
        tallies(name_runs([run, half], ["a", "b"]), "pope_random")
    empty = dataclasses.replace(part, answers={})
    none = dataclasses.replace(half, parts={"pope_random": empty})
    with pytest.raises(CdkitError, match="pope_random has no answers at all"):
        tallies(name_runs([run, none], ["a", "b"]), "pope_random")


def test_names(two: list[FinishedRun]) -> None:
    a, b = two
    same = dataclasses.replace(b, method=a.method)
    assert list(name_runs([a, b], ["x", "y"], "y")) == ["y", "x"]
    for given, told in (
        (([a], None, None), "needs two runs or more, got 1"),
        (([a, a], None, None), "is given twice"),
        (([a, b], ["x"], None), "--names has 1 names for 2 runs"),
        (([a, b], ["x", " "], None), "empty name"),
        (([a, b], ["x", "x"], None), "are both called 'x': tell them apart with --names"),
        (([a, same], None, None), "are both called 'greedy search'"),
        (([a, b], ["one", "two"], "tow"), "--base: no run is called 'tow'. Did you mean 'two'"),
    ):
        with pytest.raises(CdkitError, match=re.escape(told)):
            name_runs(*given)


def test_metrics_are_chosen_by_name(two: list[FinishedRun]) -> None:
    chosen = ["accuracy", "yes_ratio", "chair_s", "existence.acc"]
    found = comparison_run.compare_runs(name_runs(two), metrics=chosen, resamples=10)
    tables = found.results.tables
    assert [t.metrics for t in tables] == [
        ("accuracy", "yes_ratio"), ("chair_s",), ("existence.acc",)
    ]  # fmt: skip
    assert [t.tests for t in tables] == [1, 1, 1]
    with pytest.raises(
        CdkitError, match=r"no metric is called 'acuracy'\. Did you mean 'accuracy'"
    ):
        comparison_run.compare_runs(name_runs(two), metrics=["acuracy"])
    with pytest.raises(CdkitError, match="--metrics names none of chair: add one of its own"):
        comparison_run.compare_runs(name_runs(two), metrics=["accuracy"])


def test_the_folder_holds_every_number(
    compared: comparison_run.ComparedRuns, tmp_path: Path
) -> None:
    comparison_run.write(compared, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "comparison.json").read_text(encoding="utf-8"))
    assert written["base"] == "greedy search" and written["statistics"]["resamples"] == 50
    assert [table["tests"] for table in written["tables"]] == [
        table.tests for table in compared.results.tables
    ]
    cell = written["tables"][0]["methods"]["ours <b>|x"]["accuracy"]
    assert cell == dataclasses.asdict(
        compared.results.tables[0].rows["ours <b>|x"].cells["accuracy"]
    )
    assert len(written["changes"]) == len(compared.changes)
    with pytest.raises(CdkitError, match="appeared meanwhile"):
        comparison_run.write(compared, tmp_path / "new")
    with pytest.raises(CdkitError, match="is there already: give another --output"):
        comparison_run.new_folder(tmp_path / "new")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "cdkit comparison: new" in page and "ours &lt;b&gt;|x: accuracy" in page
    assert "ours <b>" not in page and "to plain" not in page and "than plain" not in page
    text = (tmp_path / "new" / "tables.md").read_text(encoding="utf-8")
    assert "Differences to greedy search under" in text and "ours \\<b\\>\\|x: accuracy" in text


def test_random_numbers_are_called_shared_where_they_are(
    compared: comparison_run.ComparedRuns, benchmarks: Benchmarks, tmp_path: Path
) -> None:
    assert comparison_run.manifest(compared, "x")["common_numbers"] is True
    pope = {"pope_random": benchmarks["pope_random"]}
    runs = [
        finished(tmp_path / str(seed), str(seed), pope, 0.5, seeds=[seed], mode="sample")
        for seed in (0, 1)
    ]
    found = comparison_run.compare_runs(name_runs(runs), resamples=10)
    assert comparison_run.manifest(found, "x")["common_numbers"] is False
    rows = [row for text_table in found.results.text_tables for row in text_table.rows]
    assert (found.notes[0],) in rows  # the tables say it too


def test_cost_is_told_beside(two: list[FinishedRun]) -> None:
    slower = dataclasses.replace(two[1], seconds=25.0)
    found = comparison_run.compare_runs(name_runs([two[0], slower]), metrics=[], resamples=10)
    assert found.results.text_tables[-1].rows == (
        ("greedy search", "12.5", "250", "50.00", "1.00"),
        ("ours <b>|x", "25.0", "250", "100.00", "2.00"),
    )
    empty = comparison_run.compare_runs(
        name_runs([two[0], dataclasses.replace(two[1], tokens=0)]), resamples=10
    )
    assert empty.results.text_tables[-1].rows[1][3:] == (DASH, DASH)


def record(**settings: Any) -> dict[str, Any]:
    return Protocol("some", **settings).record()


def under(run: FinishedRun, record: Mapping[str, Any]) -> FinishedRun:
    return changed(run, protocol=record, model={**MANIFEST["model"], "type": "llava"})


SUFFIX: dict[str, Any] = {"question_suffix": " Answer briefly."}


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (SUFFIX, {"question_suffix": " Yes or no."}, "question_suffix is ' Answer briefly.' in"),
        ({"image_preprocessing": "pad"}, {**SUFFIX, "image_preprocessing": "crop"},
         "image_preprocessing is 'pad' in one and 'crop' in the other; question_suffix is not"),
        ({"models": {"llava": {"system": "Be brief."}}}, SUFFIX, "system is 'Be brief.' in one"),
        ({"benchmarks": {"pope": SUFFIX}}, {"mode": "greedy"}, "mode is not set in one and 'gr"),
    ],
)  # fmt: skip
def test_protocols_that_differ_are_refused_field_by_field(
    two: list[FinishedRun], a: dict[str, Any], b: dict[str, Any], told: str
) -> None:
    found = refused(under(two[0], record(**a)), under(two[1], record(**b)))
    assert found.startswith("a and b cannot be compared: of pope_random their protocols differ: ")
    assert told in found and found.endswith("; run both under one protocol")


def test_the_same_protocol_under_another_name_is_the_same(two: list[FinishedRun]) -> None:
    laid_out: dict[str, Any] = {
        "summary": "other words",
        "question_suffix": None,
        "models": {"llava": SUFFIX, "blip": {"system": "Only there."}},
        "benchmarks": {"opope": {"max_new_tokens": 3}},  # which no run has
    }
    mine = under(two[0], Protocol("one", **SUFFIX).record())
    theirs = under(two[1], Protocol("other", **laid_out).record())
    assert comparable.check(name_runs([mine, theirs])) == ()


def test_parameters_of_methods_and_a_run_without_protocol_are_named(
    two: list[FinishedRun],
) -> None:
    runs = [under(two[0], record(methods={"vcd": {"beta": 0.2}})), under(two[1], record())]
    (note,) = comparable.check(name_runs(runs, ["a", "b"]))
    assert note == "protocols of a and b: methods.vcd.beta is 0.2 in one and not set in the other"
    runs = [under(two[0], {}), under(two[1], record(mode="greedy"))]
    (note,) = comparable.check(name_runs(runs, ["a", "b"]))
    assert note == "protocols of a and b: mode is not set in one and 'greedy' in the other"
    padded = under(two[1], record(image_preprocessing="pad"))
    assert "image_preprocessing is not set in one and 'pad' in" in refused(runs[0], padded)


def test_a_prompt_that_a_protocol_changed_is_named_with_its_setting(two: list[FinishedRun]) -> None:
    other = under(two[1], record(system="Be brief."))
    other = changed(other, model={**MANIFEST["model"], "type": "llava", "prompt": "Be brief. Q"})
    told = refused(under(two[0], {}), other)
    assert "their prompts are 'USER: <image>" in told
    assert "(protocols: system is not set in one and 'Be brief.' in the other); run both" in told
