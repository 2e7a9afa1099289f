"""What a benchmark is: questions about images, and numbers from the answers.

A benchmark turns answers into a `Tally`: per-sample numbers plus the functions that make metrics of
them under any weighting of the images. The score is the tally at weight one, and the bootstrap is
the same tally at other weights, so that a table and its intervals can never disagree.
"""

import abc
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float, Int

from cdkit.errors import CdkitError
from cdkit.interfaces.answer_text import UNFINISHED, proper_answer
from cdkit.registry import Registry

OfSums = Callable[[Mapping[str, Float[np.ndarray, " resamples"]]], Float[np.ndarray, " resamples"]]
Weighed = Callable[[Float[np.ndarray, "resamples images"]], Float[np.ndarray, " resamples"]]
Prepare = Callable[
    [Mapping[str, Float[np.ndarray, " samples"]], Int[np.ndarray, " samples"]], Weighed
]
Fit = Callable[
    [Mapping[str, Float[np.ndarray, " samples"]], Int[np.ndarray, " samples"]],
    Float[np.ndarray, " samples"],
]


@dataclass(frozen=True)
class Sample:
    """One question.

    `id` is unique in the benchmark; `image` is a path inside the image folder; `prompt` is the
    question as asked, without a chat template; `group` names the image as the unit of resampling;
    `target` is the right answer where there is one.
    """

    id: str
    image: str
    prompt: str
    group: str
    target: str | None = None

    def __post_init__(self) -> None:
        if not self.id or not self.group:
            raise CdkitError(f"a sample needs an id and a group, not {self.id!r}, {self.group!r}")
        if _outside(self.image):
            raise CdkitError(
                f"the image name {self.image!r} is not inside the image folder: "
                "use a file name or a relative path without '..'"
            )

    def image_in(self, folder: Path) -> Path:
        """The image file in `folder`; a CdkitError where it is not, or is a link out of it."""
        path = folder / self.image
        if not path.is_file():
            raise CdkitError(f"sample {self.id} needs the image {path}, which is no file")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CdkitError(
                f"sample {self.id} needs the image {path}, which is a link out of its folder: put "
                "the file there, or make the whole folder a link"
            )
        return path


@dataclass(frozen=True)
class Answer:
    """What a model said to one sample.

    `yes_score` is logsumexp(yes variants) - logsumexp(no variants) of the first step's combined
    logits BEFORE the plausibility constraint, where the run recorded it; `truncated`: the token
    limit ended the answer; `tokens`: how many were generated.
    """

    text: str
    yes_score: float | None = None
    truncated: bool = False
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.yes_score is not None and math.isnan(self.yes_score):
            raise CdkitError("a yes score is NaN: the model's logits were not finite")

    def read(self) -> "Answer":
        """The answer proper, as benchmarks count it: without a thought and a template's marks.

        Where a thought is cut off, or nothing follows it, it is `unfinished`.
        """
        found = proper_answer(self.text)
        return self if found == self.text else dataclasses.replace(self, text=found)

    @property
    def unfinished(self) -> bool:
        """Of an answer as `read` gives it: whether it is a thought without an answer after it."""
        return self.text == UNFINISHED


@functools.lru_cache(maxsize=4096)  # an image's questions stand together: parsed once
def _outside(image: str) -> bool:
    """Whether an image name leads out of the image folder, on any system, or to no file in it."""
    posix, windows = PurePosixPath(image), PureWindowsPath(image)
    anchored = posix.is_absolute() or bool(windows.anchor)
    return not posix.parts or anchored or ".." in windows.parts or "\0" in image


def share(
    part: Float[np.ndarray, " resamples"], whole: Float[np.ndarray, " resamples"]
) -> Float[np.ndarray, " resamples"]:
    """`part / whole`, and 0 where the whole is 0: how every ratio here is defined."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def image_index(samples: Sequence[Sample]) -> Int[np.ndarray, " samples"]:
    """Each sample's image as a number: images count from 0 in the order they come first."""
    index: dict[str, int] = {}
    numbers = [index.setdefault(sample.group, len(index)) for sample in samples]
    return np.array(numbers, dtype=np.int64)


@final
@dataclass(frozen=True, eq=False)
class Tally:
    """The numbers of one run's answers, ready to be weighed.

    `columns` holds one number a sample. A metric in `sums` is computed from the weighted sums of
    the columns; one in `prepared` is made once from the columns and the samples' image numbers, and
    then maps image weights to values. `binary` names the metrics that count a 0/1 column and
    nothing else, and that column.

    Two fields say what to do where samples are left out. A column in `fitted` looks at other
    samples too, as a threshold chosen on them does: it is computed anew from the columns and the
    image numbers of those that stay. Samples with the same number in `joint` are scored as one:
    where one is left out, so are the others.
    """

    samples: tuple[Sample, ...]
    columns: Mapping[str, Float[np.ndarray, " samples"]]
    sums: Mapping[str, OfSums]
    prepared: Mapping[str, Prepare] = field(default_factory=dict)
    binary: Mapping[str, str] = field(default_factory=dict)
    fitted: Mapping[str, Fit] = field(default_factory=dict)
    joint: Int[np.ndarray, " samples"] | None = None

    def __post_init__(self) -> None:
        wrong = [n for n, column in self.columns.items() if column.shape != (len(self.samples),)]
        if wrong:
            raise ValueError(f"columns {wrong} do not hold one number for each sample")
        if twice := self.sums.keys() & self.prepared.keys():
            raise ValueError(f"metrics {sorted(twice)} are defined twice")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics."""
        return (*self.sums, *self.prepared)

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The groups in the order they come first: the columns of a weight matrix."""
        return tuple(dict.fromkeys(sample.group for sample in self.samples))

    @cached_property
    def image_of(self) -> Int[np.ndarray, " samples"]:
        """The index in `images` of each sample."""
        return image_index(self.samples)

    @cached_property
    def by_image(self) -> Mapping[str, Float[np.ndarray, " images"]]:
        """Each column summed over the samples of an image."""
        count = len(self.images)
        return {
            name: np.bincount(self.image_of, weights=column, minlength=count)
            for name, column in self.columns.items()
        }

    def at(
        self, weights: Float[np.ndarray, "resamples images"], only: Collection[str] | None = None
    ) -> dict[str, Float[np.ndarray, " resamples"]]:
        """The metrics (those in `only`, or all), once for each row of image weights."""
        table = weights @ np.stack(list(self.by_image.values()), axis=1)  # resamples, columns
        sums = {name: table[:, i] for i, name in enumerate(self.by_image)}
        found = {n: of(sums) for n, of in self.sums.items() if only is None or n in only}
        for name, prepare in self.prepared.items():
            if only is None or name in only:
                if name not in self._ready:
                    self._ready[name] = prepare(self.columns, self.image_of)
                found[name] = self._ready[name](weights)
        return found

    @cached_property
    def _ready(self) -> dict[str, Weighed]:
        return {}  # filled by `at`, each metric when it is first asked for

    def values(self) -> dict[str, float]:
        """The metrics of the answers as they are: every image weighs one."""
        return {n: float(v[0]) for n, v in self.at(np.ones((1, len(self.images)))).items()}

    def without(self, ids: Collection[str]) -> "Tally":
        """The tally of the other samples, as if the benchmark had not asked these."""
        out = np.array([sample.id in ids for sample in self.samples], dtype=np.bool_)
        if self.joint is not None:
            out = (np.bincount(self.joint, weights=out) > 0)[self.joint]
        if out.all():
            raise CdkitError(f"all {len(out)} samples are left out: nothing remains to be scored")
        samples = tuple(s for s, gone in zip(self.samples, out, strict=True) if not gone)
        columns = {name: column[~out] for name, column in self.columns.items()}
        images = image_index(samples)
        columns |= {name: fit(columns, images) for name, fit in self.fitted.items()}
        joint = None if self.joint is None else self.joint[~out]
        return dataclasses.replace(self, samples=samples, columns=columns, joint=joint)


class Benchmark(abc.ABC):
    """Questions, and a pure function from answers to a `Tally`.

    A subclass is a frozen dataclass, registered by `@BENCHMARKS.register("name")`. It reads its
    files when it is built, so that a broken file is one CdkitError before any model runs.
    """

    bibtex: ClassVar[str] = ""

    max_new_tokens: int
    """The token limit of an answer: part of the result, so a field of the benchmark."""

    @abc.abstractmethod
    def samples(self) -> tuple[Sample, ...]:
        """The questions, in the file's order; reads nothing anew."""

    @abc.abstractmethod
    def count(self, answers: Sequence[Answer]) -> Tally:
        """The tally of `answers`, which stand in the order of `samples()`, none missing.

        They are answers proper (see `Answer.read`). An `unfinished` one, and one that cannot be
        read, has a 1 in the column "unknown", and one that the token limit ended in "truncated":
        reports warn where there are many.
        """

    @abc.abstractmethod
    def sources(self) -> Mapping[str, str]:
        """The SHA-256 (hex) of each file the benchmark read, by its path."""

    def versions(self) -> Mapping[str, int]:
        """The versions of the parsers and scorers that decide the numbers, by name."""
        return {}

    @final
    def tally(self, answers: Mapping[str, Answer], *, without: Collection[str] = ()) -> Tally:
        """The tally of answers by sample id; a missing or an unknown id is a CdkitError.

        The samples in `without`, answered or not, are left out: those that failed, in this run or
        in one that it is compared with. The metrics are then over a part of the questions, which
        whoever shows them has to say.
        """
        samples = self.samples()
        known = {sample.id for sample in samples}
        if without := frozenset(without):
            if lost := sorted(without - known):
                raise CdkitError(f"cannot leave out {_few(lost)}: no sample has such an id")
            scored = all(a.yes_score is not None for n, a in answers.items() if n not in without)
            filler = Answer("", yes_score=0.0 if scored else None)  # counted, then left out
            answers = {**answers, **dict.fromkeys(without, filler)}
        if missing := [sample.id for sample in samples if sample.id not in answers]:
            raise CdkitError(
                f"{len(missing)} of {len(samples)} samples have no answer ({_few(missing)}): "
                "a score over a part of the questions is another benchmark; answer them all"
            )
        if strangers := sorted(answers.keys() - known):
            raise CdkitError(
                f"{len(strangers)} answers belong to no sample ({_few(strangers)}): "
                "give the answers of this benchmark's own questions"
            )
        tally = self.count([answers[sample.id].read() for sample in samples])
        return tally.without(without) if without else tally

    @final
    def score(self, answers: Mapping[str, Answer]) -> dict[str, float]:
        """The metrics by name; shares and ratios are fractions of one, MME scores are points."""
        return self.tally(answers).values()

    @final
    def describe(self) -> dict[str, object]:
        """For a manifest: the name, all settings, versions and file hashes, as plain values."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {
            "benchmark": BENCHMARKS.name_of(type(self)),
            **fields,
            "versions": dict(self.versions()),
            "sources": dict(self.sources()),
        }


BENCHMARKS: Registry[Benchmark] = Registry(
    Benchmark,  # type: ignore[type-abstract]
    what="benchmark",
    folder="cdkit.evals.benchmarks",
    group="cdkit.benchmarks",
)


def check_limit(max_new_tokens: int) -> None:
    """A CdkitError for a token limit that allows no answer."""
    if max_new_tokens < 1:
        raise CdkitError(f"max_new_tokens is {max_new_tokens}: an answer needs 1 or more")


def sha256(data: bytes) -> str:
    """The hash that manifests name a file by."""
    return hashlib.sha256(data).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _few(ids: Sequence[str], most: int = 3) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")
