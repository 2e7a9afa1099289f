"""Samples that are left out: the numbers are those of a file that never had them."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from evals.finished_runs import said

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally, share

GONE = {"3", "16", "17"}


def pope(path: Path, gone: Collection[str] = ()) -> POPE:
    """Twelve images, the later ones with more questions; without the ids in `gone`."""
    rows, number = [], 0
    for image in range(12):
        for _ in range(2 + image % 3):
            row = {"question_id": number, "image": f"{image}.png", "text": "is there a cat ?"}
            rows.append(row | {"label": "yes" if number % 2 else "no"})
            number += 1
    kept = [row for row in rows if str(row["question_id"]) not in gone]
    path.write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
    return POPE(path)


def mme(folder: Path, gone: Collection[int] = ()) -> MME:
    """Two tasks of six pairs, some photos in both; without the pairs in `gone` of the first."""
    folder.mkdir()
    for task, first in (("existence", 0), ("count", 4)):
        pairs = [
            f"{image}.png\tis it {what} ?\t{answer}\n"
            for image in range(first, first + 6)
            for what, answer in (("so", "Yes"), ("not so", "No"))
            if not (task == "existence" and image in gone)
        ]
        (folder / f"{task}.txt").write_text("".join(pairs))
    return MME(folder)


def answers(benchmark: Benchmark) -> dict[str, Answer]:
    return said(benchmark.samples(), 0.7, 1, scored=True)


def test_pope_without_samples_is_pope_of_a_shorter_file(tmp_path: Path) -> None:
    whole, shorter = pope(tmp_path / "whole.json"), pope(tmp_path / "shorter.json", GONE)
    found = answers(whole)
    expected = shorter.tally({s.id: found[s.id] for s in shorter.samples()})
    tally = whole.tally(found, without=GONE)
    assert tally.samples == expected.samples and tally.values() == expected.values()
    assert {"auc", "matched_accuracy"} <= tally.values().keys()
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=20).astype(float)
    for metric, drawn in expected.at(weights).items():
        assert tally.at(weights)[metric] == pytest.approx(drawn)
    # Unanswered or answered, a sample left out is the same.
    unanswered = {name: answer for name, answer in found.items() if name not in GONE}
    assert whole.tally(unanswered, without=GONE).values() == tally.values()


def test_what_looks_at_other_samples_is_made_anew(tmp_path: Path) -> None:
    """The mutation: the column kept as it was on all samples gives another accuracy."""
    whole = pope(tmp_path / "whole.json")
    gone = {s.id for s in whole.samples() if s.target == "yes" and int(s.id) < 25}
    tally = whole.tally(answers(whole))
    kept = dataclasses.replace(tally, fitted={}).without(gone).values()
    anew = tally.without(gone).values()
    assert kept["matched_accuracy"] != anew["matched_accuracy"]
    assert kept["accuracy"] == anew["accuracy"]


def test_without_yes_scores_nothing_is_ranked(tmp_path: Path) -> None:
    whole = pope(tmp_path / "whole.json")
    unscored = said(whole.samples(), 0.7, 1, scored=False)
    assert "auc" not in whole.tally(unscored, without=GONE).metrics


def test_the_other_answer_of_a_pair_goes_with_it(tmp_path: Path) -> None:
    whole, shorter = mme(tmp_path / "whole"), mme(tmp_path / "shorter", gone=[2])
    found = answers(whole)
    second = "existence/6"  # of the third pair
    del found[second]
    tally = whole.tally(found, without={second})
    assert len(tally.samples) == 22
    theirs = [s for s in whole.samples() if s.id not in ("existence/5", "existence/6")]
    renamed = zip(shorter.samples(), theirs, strict=True)
    assert tally.values() == shorter.tally({a.id: found[b.id] for a, b in renamed}).values()
    alone = dataclasses.replace(tally, joint=None)
    assert len(alone.without({"existence/1"}).samples) == 21  # the mutation: half a pair remains
    assert len(tally.without({"existence/1"}).samples) == 20


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    whole = pope(tmp_path / "whole.json")
    with pytest.raises(CdkitError, match="all 36 samples are left out: nothing remains"):
        whole.tally({}, without=[s.id for s in whole.samples()])
    with pytest.raises(CdkitError, match="cannot leave out 99: no sample has such an id"):
        whole.tally(answers(whole), without={"99"})
    with pytest.raises(CdkitError, match=r"1 of 36 samples have no answer \(3\)"):
        whole.tally({n: a for n, a in answers(whole).items() if n != "3"}, without={"5"})


def test_a_tally_by_hand() -> None:
    samples = tuple(Sample(str(i), "a.png", "q", group=str(i // 2)) for i in range(4))
    tally = Tally(
        samples,
        {"one": np.ones(4), "right": np.array([1.0, 0.0, 1.0, 1.0])},
        {"accuracy": lambda s: share(s["right"], s["one"])},
    )
    assert tally.without({"1"}).values() == {"accuracy": 1.0}
    assert tally.without({"2", "3"}).images == ("0",)
    assert tally.without(()).values() == tally.values()
