"""What a benchmark is: questions about images, and numbers from the answers.

A benchmark turns answers into a `Tally`: per-sample numbers plus the functions that make metrics of
them under any weighting of the images. The score is the tally at weight one, and the bootstrap is
the same tally at other weights, so that a table and its intervals can never disagree.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

from cdkit.errors import CdkitError
from cdkit.interfaces.data_folder import FolderLayout
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally
from cdkit.registry import Registry

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
