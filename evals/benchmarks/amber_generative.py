"""AMBER, its generative part: which objects does a description name, and are they there?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER, images_of_release, released
from cdkit.evals.benchmarks.amber_files import ANNOTATIONS, near, rows_by_id
from cdkit.evals.benchmarks.amber_nouns import SCORERS, Judged, NounScorer, judge
from cdkit.evals.benchmarks.benchmark_files import Source, located, read_source, text_of
from cdkit.evals.benchmarks.column_metrics import share_of, sum_of
from cdkit.evals.benchmarks.data_folders import HELP
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally
from cdkit.registry import unknown

GENERATIVE = "generative"
OFFICIAL = "official"
METRICS: Mapping[str, OfSums] = {
    "chair": share_of("wrong", "nouns"),
    "cover": share_of("covered", "truth"),
    "hal": share_of("wrong_response", "responses"),
    "cog": share_of("imagined", "imaginable"),
}


def amber_score(chair: float, f1: float) -> float:
    """The AMBER score of both parts.

    Args:
        chair: CHAIR of the generative part, a fraction of one.
        f1: F1 of the discriminative part, a fraction of one.

    Returns:
        `(1 - chair + f1) / 2`.
    """
    return (1 - chair + f1) / 2


@dataclass(frozen=True)
class Shown:
    """What is in an image, and what is not though people would imagine it."""

    truth: tuple[str, ...]
    imagined: tuple[str, ...]


@final
@BENCHMARKS.register("amber_generative")
@dataclass(frozen=True)
class AMBERGenerative(Benchmark):
    """Descriptions of images, judged by the objects they name (AMBER's generative part).

    Metrics, all fractions of one: `chair`, wrong nouns in all nouns that are objects (repeats
    count); `cover`, objects of the image that are named; `hal`, descriptions with a wrong noun;
    `cog`, objects that people would imagine, and that are named though they are not there. As in
    AMBER's script `cog` is a share of the objects that could be imagined; the paper divides by the
    named objects. `unknown` counts thoughts without a description after them, and `truncated`
    descriptions that the token limit ended.

    Only the scorer "official" gives these names. Those of the others begin with the scorer's name
    (`simple.chair`), because their numbers differ.

    Args:
        path: The release's `query_generative.json`: a JSON list of objects with `id`, `image`,
            `query`.
        annotations: The release's `annotations.json`; by default the one beside the query file or
            in the folder above, as for the two files below.
        associations: The release's `relation.json`, `{object: [words]}`.
        safe_words: The release's `safe_words.txt`, one word a line.
        scorer: How nouns are found and compared: "official" as in AMBER's script (nltk's tagger,
            and spaCy's vectors for words of like meaning), "listed" (the tagger, and only the words
            in the lists), or "simple" (only the words in the lists, by regular expressions).
        max_new_tokens: The token limit of a description.

    Raises:
        CdkitError: A file cannot be read, a query has no annotation or no generative one, an object
            has no associations, the scorer is unknown, or what it needs is not installed.
    """

    bibtex: ClassVar[str] = AMBER.bibtex

    path: Path
    annotations: Path | None = None
    associations: Path | None = None
    safe_words: Path | None = None
    scorer: str = "simple"
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        if self.scorer not in SCORERS:
            raise CdkitError(unknown("scorer of AMBER's descriptions", self.scorer, SCORERS))
        self._scorer.check()
        self._asked  # noqa: B018  (a broken file fails now, not after the model has run)

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            (
                "amber/data/query/query_generative.json with annotations.json, relation.json and "
                "safe_words.txt in amber/data",
            ),
            _in_folder,
            only_part="path",
            release="amber",
            rank=4,
        )

    def samples(self) -> tuple[Sample, ...]:
        return tuple(sample for sample, _ in self._asked)

    def sources(self) -> Mapping[str, str]:
        return {str(source.path): source.sha256 for source in self._sources}

    def versions(self) -> Mapping[str, int]:
        return {self.scorer: self._scorer.version}

    def others(self) -> frozenset[str]:
        """The ids of AMBER's other questions: files of answers often hold them too."""
        asked = {sample.id for sample, _ in self._asked}
        return frozenset(rows_by_id(self._sources[1]).keys() - asked)

    def count(self, answers: Sequence[Answer]) -> Tally:
        judged = [
            self.judge(sample.id, "" if answer.unfinished else answer.text)
            for (sample, _), answer in zip(self._asked, answers, strict=True)
        ]
        shown = [shown for _, shown in self._asked]
        numbers = {
            "responses": [1 for _ in judged],
            "nouns": [j.nouns for j in judged],
            "wrong": [j.wrong for j in judged],
            "wrong_response": [j.wrong > 0 for j in judged],
            "covered": [j.covered for j in judged],
            "truth": [len(s.truth) for s in shown],
            "imagined": [j.imagined for j in judged],
            "imaginable": [len(s.imagined) for s in shown],
            "unknown": [answer.unfinished for answer in answers],
            "empty": [not answer.text.split() for answer in answers],
            "truncated": [answer.truncated for answer in answers],
        }
        columns = {name: np.array(values, dtype=np.float64) for name, values in numbers.items()}
        prefix = "" if self.scorer == OFFICIAL else f"{self.scorer}."
        sums = {f"{prefix}{name}": of for name, of in METRICS.items()}
        sums |= {name: sum_of(name) for name in ("unknown", "truncated")}
        return Tally(self.samples(), columns, sums, binary={f"{prefix}hal": "wrong_response"})

    def judge(self, sample_id: str, text: str) -> Judged:
        """Judge one description.

        Args:
            sample_id: The id of its question.
            text: The description.

        Returns:
            Its counts.

        Raises:
            CdkitError: No question has the id.
        """
        if sample_id not in self._shown:
            raise CdkitError(f"no question of {self.path} has the id {sample_id!r}")
        shown = self._shown[sample_id]
        nouns = self._scorer.nouns(text, self._objects)
        return judge(
            nouns,
            shown.truth,
            shown.imagined,
            self._associations,
            self._safe,
            self._scorer.alike,
        )

    @property
    def _scorer(self) -> NounScorer:
        return SCORERS[self.scorer]

    @cached_property
    def _sources(self) -> tuple[Source, Source, Source, Source]:
        names = (
            (ANNOTATIONS, self.annotations, "annotations"),
            ("relation.json", self.associations, "associated words"),
            ("safe_words.txt", self.safe_words, "safe words"),
        )
        paths = [near(self.path, name, given, what) for name, given, what in names]
        first, second, third = map(read_source, paths)
        return read_source(self.path), first, second, third

    @cached_property
    def _associations(self) -> Mapping[str, tuple[str, ...]]:
        source = self._sources[2]
        value = source.json(unique=True)
        if not isinstance(value, dict) or not value:
            raise CdkitError(
                f"{source.path} holds no {{object: [words]}}: give AMBER's relation.json"
            )
        return {
            name: _names(words, f"{source.path}: {name!r}", "its words")
            for name, words in value.items()
        }

    @cached_property
    def _objects(self) -> frozenset[str]:
        return frozenset(self._associations).union(*self._associations.values())

    @cached_property
    def _safe(self) -> frozenset[str]:
        return frozenset(line.strip() for _, line in self._sources[3].lines())

    @cached_property
    def _shown(self) -> Mapping[str, Shown]:
        return {sample.id: shown for sample, shown in self._asked}

    @cached_property
    def _asked(self) -> tuple[tuple[Sample, Shown], ...]:
        queries, annotations, *_ = self._sources
        truth = rows_by_id(annotations)
        found: list[tuple[Sample, Shown]] = []
        for name, (where, row) in rows_by_id(queries).items():
            if name not in truth:
                raise CdkitError(f"{where}: {annotations.path} has no annotation of the id {name}")
            place, annotation = truth[name]
            if (kind := text_of(annotation, "type", where=place)) != GENERATIVE:
                raise CdkitError(
                    f"{where} asks for no description (id {name} is of type {kind!r}): give the "
                    "file of the generative questions alone, query_generative.json"
                )
            shown = Shown(
                self._known(annotation.get("truth"), place, "truth"),
                self._known(annotation.get("hallu"), place, "hallu"),
            )
            image = text_of(row, "image", where=where)
            with located(where):
                prompt = text_of(row, "query", where=where)
                found.append((Sample(name, image, prompt, group=image), shown))
        if not found:
            raise CdkitError(f"{self.path} asks nothing: fetch it anew or give another file")
        return tuple(found)

    def _known(self, value: object, place: str, key: str) -> tuple[str, ...]:
        names = _names(value, place, repr(key))
        for name in names:
            if name not in self._associations:
                raise CdkitError(
                    f"{place} has the object {name!r}, which is not in {self._sources[2].path}: "
                    "use the files of one release"
                )
        return names


def _names(value: object, where: str, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise CdkitError(f"{where} has {value!r} as {what}: it needs a list of names")
    return tuple(value)


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    questions = released(folder, "query/query_generative.json")
    if questions is None:
        return
    files = {"path": questions}
    for key, name in (
        ("annotations", "annotations.json"),
        ("associations", "relation.json"),
        ("safe_words", "safe_words.txt"),
    ):
        path = released(folder, name)
        if path is None:
            raise CdkitError(
                f"amber_generative in {folder} is not whole: it lacks amber/{name}; {HELP}"
            )
        files[key] = path
    yield LocatedPart("amber_generative", "amber_generative", files, images_of_release(folder))
