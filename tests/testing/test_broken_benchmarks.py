"""The contract suite finds each broken promise of a benchmark: one broken so for each."""

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally, share
from cdkit.testing import check_benchmark

pytestmark = pytest.mark.contract

counter = itertools.count()


@dataclass(frozen=True)
class Quiz(Benchmark):
    """Yes/no questions, one a line: IMAGE, a tab, the question, a tab, yes or no."""

    path: Path
    max_new_tokens: int = 8

    def samples(self) -> tuple[Sample, ...]:
        return self.read

    def sources(self) -> Mapping[str, str]:
        return {str(self.path): hashlib.sha256(self.path.read_bytes()).hexdigest()}

    def count(self, answers: Sequence[Answer]) -> Tally:
        asked = zip(answers, self.read, strict=True)
        right = np.array([float(a.text.lower().strip(".") == s.target) for a, s in asked])
        columns = {"right": right, "one": np.ones_like(right)}
        sums = {"accuracy": lambda s: share(s["right"], s["one"])}
        return Tally(self.read, columns, sums, binary={"accuracy": "right"})

    @cached_property
    def read(self) -> tuple[Sample, ...]:
        return questions(self.path)


def questions(path: Path) -> tuple[Sample, ...]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(Sample(str(i), r[0], r[1], r[0], r[2]) for i, r in enumerate(rows))


class Undocumented(Quiz):
    __doc__ = ""


@dataclass
class Thawed(Benchmark):
    """Not frozen."""

    path: Path
    max_new_tokens: int = 8
    samples, sources, count, read = Quiz.samples, Quiz.sources, Quiz.count, Quiz.read


class Listed(Quiz):
    """A list of samples."""

    def samples(self) -> Any:
        return list(self.read)


class Empty(Quiz):
    """No samples."""

    def samples(self) -> tuple[Sample, ...]:
        return ()


class Shuffled(Quiz):
    """Another order each time."""

    def samples(self) -> tuple[Sample, ...]:
        return self.read[:: 1 if next(counter) % 2 else -1]


class Twice(Quiz):
    """One id for two questions."""

    @cached_property
    def read(self) -> tuple[Sample, ...]:
        return (*questions(self.path), Sample("0", "z.png", "is it ?", "z", "no"))


class Silent(Quiz):
    """A blank question."""

    @cached_property
    def read(self) -> tuple[Sample, ...]:
        return (*questions(self.path), Sample("9", "z.png", " ", "z", "no"))


class ByQuestion(Quiz):
    """Each question a unit of resampling, though two ask about one image."""

    @cached_property
    def read(self) -> tuple[Sample, ...]:
        samples = questions(self.path)
        return tuple(Sample(s.id, s.image, s.prompt, s.id, s.target) for s in samples)


class Sourceless(Quiz):
    """Names no file."""

    def sources(self) -> Mapping[str, str]:
        return {}


class Unhashed(Quiz):
    """Sizes in the place of hashes."""

    def sources(self) -> Mapping[str, Any]:
        return {str(self.path): self.path.stat().st_size}


class Elsewhere(Quiz):
    """A file that is not there."""

    def sources(self) -> Mapping[str, str]:
        return {f"{self.path}.old": "0" * 64}


class Stale(Quiz):
    """The hash of another file."""

    def sources(self) -> Mapping[str, str]:
        return {str(self.path): "0" * 64}


class Odd(Quiz):
    """A version that JSON cannot hold."""

    def versions(self) -> Mapping[str, Any]:
        return {"parser": {1}}


class Numbered(Quiz):
    """A version under a number: JSON's keys are text."""

    def versions(self) -> Mapping[Any, int]:
        return {1: 1}


class Lenient(Quiz):
    """Takes what it gets."""

    def tally(self, answers: Mapping[str, Answer]) -> Tally:  # type: ignore[misc, override]
        return self.count([answers.get(s.id, Answer("")) for s in self.samples()])


class Strangers(Quiz):
    """Refuses missing answers only."""

    def tally(self, answers: Mapping[str, Answer]) -> Tally:  # type: ignore[misc, override]
        return super().tally({s.id: answers[s.id] for s in self.samples() if s.id in answers})


class ByOrder(Quiz):
    """Takes the answers as they come."""

    def tally(self, answers: Mapping[str, Answer]) -> Tally:  # type: ignore[misc, override]
        super().tally(answers)
        order = [float(name) for name in answers]
        tally = self.count(list(answers.values()))
        columns = {**tally.columns, "first": np.array(order) * (np.arange(len(order)) == 0)}
        return Tally(tally.samples, columns, {**tally.sums, "first": lambda s: s["first"]})


class Writing(Quiz):
    """Sorts the list that it is passed."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        answers.append(Answer("yes"))  # type: ignore[attr-defined]
        return tally


class Moody(Quiz):
    """Another number each time."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        return with_metric(super().count(answers), lambda s: s["one"] + next(counter))


class Divided(Quiz):
    """Characters for each answer that has any."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        long = np.array([float(len(a.text)) for a in answers])
        tally = Tally(tally.samples, {**tally.columns, "long": long}, tally.sums)
        return with_metric(tally, lambda s: s["one"] / np.where(s["long"], s["long"], np.nan))


class FirstImage(Quiz):
    """A ratio over the first image, which a resample may lack."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        column = np.array([float(s.group == self.read[-1].group) for s in self.read])
        tally = Tally(tally.samples, {**tally.columns, "last": column}, tally.sums)
        return with_metric(tally, lambda s: s["one"] / np.where(s["last"], s["last"], np.nan))


class Summed(Quiz):
    """One number for all resamples."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        return with_metric(super().count(answers), lambda s: s["right"].sum(keepdims=True))


class Normalised(Quiz):
    """Each resample against the mean of all."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        return with_metric(super().count(answers), lambda s: s["right"] - s["right"].mean())


class Turned(Quiz):
    """The tally in another order than the samples."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        return Tally(tally.samples[::-1], tally.columns, tally.sums)


class Weighty(Quiz):
    """A share of a column that is not 0 or 1."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        columns = {**tally.columns, "right": tally.columns["right"] / 2}
        return Tally(tally.samples, columns, tally.sums, binary={"accuracy": "right"})


class Strange(Quiz):
    """A binary metric that there is not."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        return Tally(tally.samples, tally.columns, tally.sums, binary={"precision": "right"})


class Unreadable(Quiz):
    """Never reads an answer as right."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        _, *rest = super().count(answers).columns["right"]
        columns = {"right": np.array([0.0, *rest]), "one": np.ones(len(answers))}
        sums = {"accuracy": lambda s: share(s["right"], s["one"])}
        return Tally(self.read, columns, sums, binary={"accuracy": "right"})


class Deaf(Quiz):
    """Counts every answer as right."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        return super().count([Answer(sample.target or "") for sample in self.read])


class Metricless(Quiz):
    """Columns only."""

    def count(self, answers: Sequence[Answer]) -> Tally:
        tally = super().count(answers)
        return Tally(tally.samples, tally.columns, {})


def with_metric(tally: Tally, metric: Callable[..., Any]) -> Tally:
    return Tally(tally.samples, tally.columns, {**tally.sums, "odd": metric})


BROKEN: list[tuple[type[Any], str]] = [
    (Undocumented, "its class has a docstring"),
    (Thawed, "it is a frozen dataclass"),
    (Listed, "samples() is a tuple of cdkit.interfaces.benchmark.Sample"),
    (Empty, "it has a sample"),
    (Shuffled, "samples() gives the same each time"),
    (Twice, "no two samples have the same id"),
    (Silent, "every sample has a prompt"),
    (ByQuestion, "the questions about an image are one group"),
    (Sourceless, "sources() names the files that it read"),
    (Unhashed, "sources() maps paths to SHA-256 in hex"),
    (Elsewhere, "the paths in sources() are files"),
    (Stale, "sources() has the SHA-256 of the file as it is"),
    (Odd, "describe() is plain JSON"),
    (Numbered, "describe() is the same after a trip through JSON"),
    (Lenient, "tally refuses a missing answer with a CdkitError"),
    (Strangers, "tally refuses a needless answer with a CdkitError"),
    (ByOrder, "the order of the answers does not matter"),
    (Writing, "count writes nothing into what it is passed"),
    (Moody, "count is pure: equal answers, equal metrics"),
    (Divided, "metrics of empty answers are finite"),
    (FirstImage, "metrics are finite under any weights of the images"),
    (Summed, "a metric has one value for each resample"),
    (Normalised, "a resample depends on no other one"),
    (Turned, "the tally has the samples, in order"),
    (Weighty, "the column right is 0 or 1"),
    (Strange, "binary maps a metric to its column"),
    (Unreadable, "the targets are right answers, all of them"),
    (Deaf, "garbage is no right answer"),
    (Metricless, "it has a metric"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [("a", "yes"), ("a", "no"), ("b", "yes"), ("c", "no"), ("d", "yes")]
    file = tmp_path / "quiz.tsv"
    file.write_text("".join(f"{name}.png\tis it {i} ?\t{t}\n" for i, (name, t) in enumerate(rows)))
    return file


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above, registered as long as a test runs."""
    broken: list[type[Any]] = [Quiz, *(cls for cls, _ in BROKEN)]
    classes = {cls.__name__: cls for cls in broken}
    assert len(BENCHMARKS)  # loaded, so that nothing else is added to the replacement
    monkeypatch.setattr(BENCHMARKS, "_classes", {**BENCHMARKS._classes, **classes})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("cls", "promise"), BROKEN, ids=[promise for _, promise in BROKEN])
def test_a_broken_benchmark(cls: type[Any], promise: str, path: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_benchmark(cls(path))


@pytest.mark.usefixtures("registered")
def test_the_frame_itself_is_sound(path: Path) -> None:
    for sample in Quiz(path).samples():
        (path.parent / sample.image).touch()
    check_benchmark(Quiz(path), images=path.parent)


@pytest.mark.usefixtures("registered")
def test_an_image_that_is_not_there(path: Path) -> None:
    (path.parent / "a.png").touch()
    with pytest.raises(AssertionError, match=r"every image is a file in .* Got: \['b.png'"):
        check_benchmark(Quiz(path), images=path.parent)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("limit", [0, None])
def test_a_limit_that_allows_no_answer(path: Path, limit: Any) -> None:
    with pytest.raises(AssertionError, match="max_new_tokens is 1 or more"):
        check_benchmark(Quiz(path, max_new_tokens=limit))


def test_strangers(path: Path) -> None:
    with pytest.raises(AssertionError, match=r"it is registered by @BENCHMARKS.register"):
        check_benchmark(Quiz(path))
    with pytest.raises(AssertionError, match=r"it subclasses cdkit.Benchmark"):
        check_benchmark("pope")
