"""Fault: the yes-ratio that is reported is that of the labels, 50 % whatever the model says."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cdkit.evals.benchmarks.pope import POPE
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally

LABELS = ("yes", "no", "no", "no", "yes", "no", "no", "no")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pope.json"
    rows = (
        {"question_id": i, "image": f"{i // 2}.jpg", "text": "is it ?", "label": label}
        for i, label in enumerate(LABELS)
    )
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def yes_ratios(benchmark: Benchmark, said: Sequence[str]) -> list[float]:
    """Under every name that the benchmark has for it."""
    answers = {s.id: Answer(text) for s, text in zip(benchmark.samples(), said, strict=True)}
    score = benchmark.score(answers)
    return [value for name, value in score.items() if name.endswith("yes_ratio")]


@pytest.mark.parametrize("count", range(len(LABELS) + 1))
def test_it_is_the_share_of_predicted_yes(path: Path, count: int) -> None:
    said = ["Yes"] * count + ["No"] * (len(LABELS) - count)
    assert yes_ratios(POPE(path), said) == [count / len(LABELS)] * 2


@dataclass(frozen=True)
class OfTheTruth(Benchmark):
    """The faulty variant: the ratio is counted over the labels."""

    right: POPE
    max_new_tokens: int = 16

    def samples(self) -> tuple[Sample, ...]:
        return self.right.samples()

    def sources(self) -> Mapping[str, str]:
        return self.right.sources()

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = self.right.count(answers)
        columns = {
            name: tally.columns["label"] if name.endswith("yes") else column
            for name, column in tally.columns.items()
        }
        return replace(tally, columns=columns)


def test_the_ratio_of_the_truth_is_noticed(path: Path) -> None:
    faulty = OfTheTruth(POPE(path))
    for said in ("Yes", "No"):
        ratios = yes_ratios(faulty, [said] * len(LABELS))
        assert ratios == [np.mean([label == "yes" for label in LABELS])] * 2
        assert ratios != yes_ratios(POPE(path), [said] * len(LABELS))
