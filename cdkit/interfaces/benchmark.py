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
from typing import Any, ClassVar, TypeVar, final

import numpy as np
from jaxtyping import Float, Int

from cdkit.errors import CdkitError
from cdkit.interfaces.answer_text import UNFINISHED, proper_answer
from cdkit.interfaces.data_folder import FolderLayout
from cdkit.registry import Registry

OfSums = Callable[[Mapping[str, Float[np.ndarray, " resamples"]]], Float[np.ndarray, " resamples"]]
"""A metric: the weighted sum of each column -> the metric's value."""
Weighed = Callable[[Float[np.ndarray, "resamples images"]], Float[np.ndarray, " resamples"]]
"""A metric: the weight of each image -> the metric's value."""
Prepare = Callable[
    [Mapping[str, Float[np.ndarray, " samples"]], Int[np.ndarray, " samples"]], Weighed
]
"""Makes a metric: the columns, and the number of each sample's image -> a function of weights."""
Fit = Callable[
    [Mapping[str, Float[np.ndarray, " samples"]], Int[np.ndarray, " samples"]],
    Float[np.ndarray, " samples"],
]
"""Makes a column: the columns, and the number of each sample's image -> one number a sample."""


@dataclass(frozen=True)
class Sample:
    """One question.

    Raises:
        CdkitError: If the id or the group is empty, or the image is outside the image folder.
    """

    id: str
    """The question's name, unique in the benchmark."""
    image: str
    """The path of the image inside the image folder."""
    prompt: str
    """The question as it is asked, without a chat template."""
    group: str
    """The name of the image as the unit of resampling."""
    target: str | None = None
    """The right answer; None where the benchmark has none."""

    def __post_init__(self) -> None:
        if not self.id or not self.group:
            raise CdkitError(f"a sample needs an id and a group, not {self.id!r}, {self.group!r}")
        if _outside(self.image):
            raise CdkitError(
                f"the image name {self.image!r} is not inside the image folder: "
                "use a file name or a relative path without '..'"
            )

    def image_in(self, folder: Path) -> Path:
        """Find the image file.

        Args:
            folder: The image folder.

        Returns:
            The path of the file.

        Raises:
            CdkitError: If there is no such file, or it is a link to a place outside the folder.
        """
        path = folder / self.image
        if not path.is_file():
            raise CdkitError(f"sample {self.id} needs the image {path}, which is no file")
        try:
            check_inside(path, folder)
        except CdkitError as error:
            raise CdkitError(f"sample {self.id} needs the image {error}") from None
        return path


@dataclass(frozen=True)
class Answer:
    """A model's answer to one sample.

    Raises:
        CdkitError: If the yes score is NaN.
    """

    text: str
    """The answer."""
    yes_score: float | None = None
    """logsumexp(yes variants) - logsumexp(no variants) of the first step's combined logits, BEFORE
    the plausibility constraint; None where the run did not record it."""
    truncated: bool = False
    """Whether the token limit ended the answer."""
    tokens: int = 0
    """How many tokens were generated."""

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
    """Divide: every ratio of a benchmark is defined so.

    Args:
        part: The numerator, such as weighted counts.
        whole: The denominator.

    Returns:
        `part / whole`, and 0 where `whole` is not above 0.
    """
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def image_index(samples: Sequence[Sample]) -> Int[np.ndarray, " samples"]:
    """Number the images of samples.

    Args:
        samples: The samples.

    Returns:
        For each sample the number of its image, from 0 in the order of first appearance.
    """
    index: dict[str, int] = {}
    numbers = [index.setdefault(sample.group, len(index)) for sample in samples]
    return np.array(numbers, dtype=np.int64)


@final
@dataclass(frozen=True, eq=False)
class Tally:
    """Numbers made from one run's answers, and the metrics as functions of image weights.

    Raises:
        ValueError: If a column has not one number for each sample, or a metric is defined twice.
    """

    samples: tuple[Sample, ...]
    """The questions, in the order of the answers."""
    columns: Mapping[str, Float[np.ndarray, " samples"]]
    """Name -> one number for each sample."""
    sums: Mapping[str, OfSums]
    """Metric -> a function of the weighted sums of the columns."""
    prepared: Mapping[str, Prepare] = field(default_factory=dict)
    """Metric -> what makes it. It is called once, with the columns and the samples' image numbers,
    and returns a function of image weights."""
    binary: Mapping[str, str] = field(default_factory=dict)
    """Metric that only counts a column of zeros and ones -> that column."""
    fitted: Mapping[str, Fit] = field(default_factory=dict)
    """Column that depends on other samples too, such as by a threshold chosen on them -> what makes
    it. Where samples are left out, the column is computed again from those that remain."""
    joint: Int[np.ndarray, " samples"] | None = None
    """Samples with the same number are scored together: where one is left out, so are the others.
    None where each sample is scored by itself."""

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
        """The groups in the order of first appearance: the columns of a weight matrix."""
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
        """Compute the metrics under image weights.

        Args:
            weights: For each resample the weight of each image; 1 counts an image once.
            only: The names of the metrics to compute; None for all.

        Returns:
            Metric -> its value for each resample.
        """
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
        return {}  # filled by `at`, each metric when it is first needed

    def values(self) -> dict[str, float]:
        """Compute the metrics of the answers as they are: every image has the weight 1.

        Returns:
            Metric -> its value.
        """
        return {n: float(v[0]) for n, v in self.at(np.ones((1, len(self.images)))).items()}

    def without(self, ids: Collection[str]) -> "Tally":
        """Leave samples out, as if the benchmark did not have them.

        Args:
            ids: The ids of the samples to leave out.

        Returns:
            The tally of the other samples.

        Raises:
            CdkitError: If no sample remains.
        """
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


Following = TypeVar("Following", bound="Benchmark")


class Benchmark(abc.ABC):
    """Questions, and a pure function from answers to a `Tally`.

    A subclass is a frozen dataclass, registered by `@BENCHMARKS.register("name")`. It reads its
    files when it is built, so that a broken file is one CdkitError before any model runs.
    """

    bibtex: ClassVar[str] = ""
    """The paper that introduced it, as one BibTeX entry."""

    max_new_tokens: int
    """The largest number of tokens of an answer. It changes the result, so it is a field of the
    benchmark."""

    @abc.abstractmethod
    def samples(self) -> tuple[Sample, ...]:
        """List the questions; reads no file again.

        Returns:
            The questions, in the order of the file.
        """

    @abc.abstractmethod
    def count(self, answers: Sequence[Answer]) -> Tally:
        """Turn answers into numbers; a pure function.

        The answers are answers proper (see `Answer.read`). An `unfinished` one, and one that cannot
        be read, has a 1 in the column "unknown", and one that the token limit ended in "truncated":
        reports warn where there are many.

        Args:
            answers: One answer for each sample, in the order of `samples()`.

        Returns:
            The tally of the answers.
        """

    @abc.abstractmethod
    def sources(self) -> Mapping[str, str]:
        """Name the files that the benchmark read.

        Returns:
            The path of each file -> the SHA-256 of its content, in hexadecimal digits.
        """

    @classmethod
    def layout(cls) -> FolderLayout | None:
        """Say where the benchmark's files lie in a data folder, for `--bench NAME --data DIR`.

        Returns:
            What is expected there, and the search for it; None where the benchmark has no place in
            a data folder: then a grid names its files.
        """
        return None

    def notes(self, sample_id: str, text: str) -> str:
        """Say in a few words what a reader should see beside an answer, such as what it makes up.

        Args:
            sample_id: The question.
            text: The answer.

        Returns:
            The words; empty where there are none.
        """
        return ""

    def versions(self) -> Mapping[str, int]:
        """Name the parsers and scorers on which the numbers depend.

        Returns:
            The name of each -> its version.
        """
        return {}

    def fields_under(self, setting: str, value: object) -> Mapping[str, Any] | None:
        """Say how this benchmark follows one setting of a protocol.

        Args:
            setting: The setting's name, such as "question_suffix", "caption_prompt" or "parser".
            value: Its value.

        Returns:
            The fields that follow it, by name; by default the field of the setting's name. None
            where the benchmark cannot follow the setting.
        """
        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {setting: value} if setting in names else None

    @final
    def under(self: Following, settings: Mapping[str, object]) -> Following:
        """Follow a protocol.

        Args:
            settings: Settings of a protocol that a benchmark follows, by name.

        Returns:
            The benchmark with these settings; it has read its files again.

        Raises:
            CdkitError: It cannot follow a setting, or a value is not allowed.
        """
        found: dict[str, Any] = {}
        lost: list[str] = []
        for setting, value in settings.items():
            follows = self.fields_under(setting, value)
            if follows is None:
                lost.append(setting)
            else:
                found |= follows
        name = BENCHMARKS.name_of(type(self))
        if lost:
            raise CdkitError(
                f"the benchmark {name} cannot follow {', '.join(lost)}, which the protocol sets: "
                "take a protocol that is made for it, or leave these settings out"
            )
        try:
            return dataclasses.replace(self, **found) if found else self  # type: ignore[type-var]
        except CdkitError as error:
            raise CdkitError(f"the benchmark {name} under the protocol: {error}") from None

    @final
    def tally(self, answers: Mapping[str, Answer], *, without: Collection[str] = ()) -> Tally:
        """Check answers and turn them into numbers.

        Args:
            answers: Sample id -> answer.
            without: Ids of samples to leave out, answered or not: those that failed, in this run
                or in one that it is compared with. The metrics then cover a part of the questions,
                and a table of them must say so.

        Returns:
            The tally of the answers.

        Raises:
            CdkitError: If an answer is missing, an id is unknown, or no sample remains.
        """
        samples = self.samples()
        if not samples:
            raise CdkitError("the benchmark asks nothing, so there is nothing to score")
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
        """Compute the metrics.

        Args:
            answers: Sample id -> answer.

        Returns:
            Metric -> its value. Shares and ratios are fractions of one, not percentages; MME
            scores are points.

        Raises:
            CdkitError: If an answer is missing, or an id is unknown.
        """
        return self.tally(answers).values()

    @final
    def describe(self) -> dict[str, object]:
        """Describe the benchmark for a manifest.

        Returns:
            Its name, all settings, the versions of parsers and scorers, and the hashes of files, as
            plain values.
        """
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


def check_inside(path: Path, folder: Path) -> None:
    """The one rule about links: a file is used where no link leads out of its folder.

    The folder may be a link itself.

    Args:
        path: A file in `folder`, or below.
        folder: The folder of a benchmark's images.

    Raises:
        CdkitError: The file, or a folder on its way, is a link to something outside.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CdkitError(
            f"{path}, which is a link out of its folder: put the file there, or make the whole "
            f"folder {folder} a link"
        )


def check_limit(max_new_tokens: int) -> None:
    """Check the token limit of answers.

    Args:
        max_new_tokens: The largest number of tokens of an answer.

    Raises:
        CdkitError: If it is less than 1.
    """
    if max_new_tokens < 1:
        raise CdkitError(f"max_new_tokens is {max_new_tokens}: an answer needs 1 or more")


def sha256(data: bytes) -> str:
    """Compute the hash by which manifests name a file.

    Args:
        data: The file's content.

    Returns:
        The SHA-256, in hexadecimal digits.
    """
    return hashlib.sha256(data).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _few(ids: Sequence[str], most: int = 3) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")
