"""AMBER, its discriminative part: yes/no questions about existence, attributes and relations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber_files import ANNOTATIONS, near, rows_by_id
from cdkit.evals.benchmarks.benchmark_files import Source, located, read_source, text_of, yes_or_no
from cdkit.evals.benchmarks.data_folders import HELP, first_file
from cdkit.evals.benchmarks.yes_no import (
    ParsedAnswer,
    Parser,
    check_parsers,
    parsed_answer,
    parser_first,
    strict,
)
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally, share
from cdkit.registry import unknown

KINDS: Mapping[str, str] = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""The `type` of an annotation, and what the tables call it: some relations lack the first word."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}


def official(text: str, label: str) -> ParsedAnswer:
    """Read an answer as AMBER's script does: Yes or No to the letter, all else is unknown."""
    return {"Yes": "yes", "No": "no"}.get(text, "unknown")  # type: ignore[return-value]


PARSERS: Mapping[str, Parser] = {
    "strict": Parser(strict, version=1),
    "official": Parser(official, version=1),
}


def metrics(prefix: str, kinds: Sequence[str]) -> dict[str, OfSums]:
    """The metrics over the questions of `kinds`, from the sums of the columns `KIND.PARSER...`.

    Positive is NO, as AMBER has it: precision is the share of right answers among the answers no,
    recall among the questions whose truth is no. A ratio over nothing is 0; `unknown` is a count.
    """

    def total(column: str) -> OfSums:
        return lambda s: sum((s[f"{kind}.{column}"] for kind in kinds), np.zeros(1))

    def of(part: str, whole: str) -> OfSums:
        return lambda s: share(total(part)(s), total(whole)(s))

    def f1(s: Mapping[str, Float[np.ndarray, " resamples"]]) -> Float[np.ndarray, " resamples"]:
        return share(2 * total(f"{prefix}hit")(s), total(f"{prefix}no")(s) + total("truth_no")(s))

    return {
        "accuracy": of(f"{prefix}right", "one"),
        "precision": of(f"{prefix}hit", f"{prefix}no"),
        "recall": of(f"{prefix}hit", "truth_no"),
        "f1": f1,
        "yes_ratio": of(f"{prefix}yes", "one"),
        "unknown": total(f"{prefix}unknown"),
    }


@final
@BENCHMARKS.register("amber")
@dataclass(frozen=True)
class AMBER(Benchmark):
    """Hallucination by yes/no questions of six kinds (AMBER's discriminative part).

    POSITIVE IS NO, as in AMBER's tables: precision and recall say how well the model denies what is
    not there. Metrics of all questions have plain names (`accuracy`, `precision`, `recall`, `f1`,
    `yes_ratio`: fractions of one; `unknown`: a count, and an unknown answer is wrong), and
    `truncated` counts the answers that the token limit ended. Those of a kind are called
    `existence.f1`, `attribute.f1` (state, number and action together), `state.f1`, `number.f1`,
    `action.f1`, `relation.f1`.

    Args:
        path: A query file of the release, `query_discriminative.json` or the one of a kind: a JSON
            list of objects with `id`, `image`, `query`.
        annotations: The release's `annotations.json`; by default the one beside the query file or
            in the folder above.
        parsers: How answers are read: "strict" or "official" (AMBER's script). Metrics of the first
            have plain names, those of others are called `official.f1` and so on.
        max_new_tokens: The token limit of an answer.
        question_suffix: Text behind each question.

    Raises:
        CdkitError: A file cannot be read, a query has no annotation, an id stands twice, or a
            parser is unknown.
    """

    bibtex: ClassVar[str] = """@article{wang2023amber,
  title={{AMBER}: An {LLM}-free Multi-dimensional Benchmark for {MLLMs} Hallucination Evaluation},
  author={Wang, Junyang and Wang, Yuhang and Xu, Guohai and Zhang, Jing and Gu, Yukai
          and Jia, Haitao and Yan, Ming and Zhang, Ji and Sang, Jitao},
  journal={arXiv preprint arXiv:2311.07397}, year={2023}}"""

    path: Path
    annotations: Path | None = None
    parsers: tuple[str, ...] = ("strict", "official")
    max_new_tokens: int = 16
    question_suffix: str = ""

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        check_parsers(self.parsers, PARSERS, "AMBER")
        self._asked  # noqa: B018  (a broken file fails now, not after the model has run)

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            ("amber/data/query/query_discriminative.json with amber/data/annotations.json",),
            _in_folder,
            only_part="path",
            rank=3,
        )

    def samples(self) -> tuple[Sample, ...]:
        return tuple(sample for sample, _ in self._asked)

    def sources(self) -> Mapping[str, str]:
        return {str(source.path): source.sha256 for source in self._sources}

    def versions(self) -> Mapping[str, int]:
        return {name: PARSERS[name].version for name in self.parsers}

    def fields_under(self, setting: str, value: object) -> Mapping[str, Any] | None:
        if setting == "parser":
            return {"parsers": parser_first(value, self.parsers)}
        return super().fields_under(setting, value)

    def count(self, answers: Sequence[Answer]) -> Tally:
        truth = np.array([(sample.target or "").lower() for sample, _ in self._asked])
        kinds = np.array([kind for _, kind in self._asked])
        every = {"one": np.ones(len(truth), dtype=bool), "truth_no": truth == "no"}
        sums: dict[str, OfSums] = {}
        binary: dict[str, str] = {}
        there = tuple(dict.fromkeys(KINDS[name] for name in KINDS if KINDS[name] in set(kinds)))
        for i, name in enumerate(self.parsers):
            prefix = "" if i == 0 else f"{name}."
            parsed = np.array([parsed_answer(PARSERS[name], answer, "") for answer in answers])
            every[f"{prefix}yes"], every[f"{prefix}no"] = parsed == "yes", parsed == "no"
            every[f"{prefix}unknown"] = parsed == "unknown"
            every[f"{prefix}right"] = parsed == truth
            every[f"{prefix}hit"] = (parsed == "no") & (truth == "no")
            sums |= {prefix + metric: of for metric, of in metrics(prefix, there).items()}
            binary[f"{prefix}accuracy"] = f"{prefix}right"
            binary |= {f"{prefix}{kind}.accuracy": f"{kind}.{prefix}right" for kind in there}
            for part, members in PARTS.items():
                if here := [kind for kind in members if kind in there]:
                    of_part = metrics(prefix, here)
                    sums |= {f"{prefix}{part}.{metric}": of for metric, of in of_part.items()}
        columns = {
            f"{kind}.{name}": ((kinds == kind) & column).astype(np.float64)
            for kind in there
            for name, column in every.items()
        }
        columns |= {
            name: every[name].astype(np.float64)
            for name in (*binary.values(), "unknown")
            if name in every
        }
        columns["truncated"] = np.array([float(answer.truncated) for answer in answers])
        sums["truncated"] = lambda s: s["truncated"]
        return Tally(self.samples(), columns, sums, binary=binary)

    @cached_property
    def _sources(self) -> tuple[Source, Source]:
        found = near(self.path, ANNOTATIONS, self.annotations, "annotations")
        return read_source(self.path), read_source(found)

    @cached_property
    def _asked(self) -> tuple[tuple[Sample, str], ...]:
        queries, annotations = self._sources
        truth = rows_by_id(annotations)
        found: dict[str, tuple[Sample, str]] = {}
        for name, (where, row) in rows_by_id(queries).items():
            if name not in truth:
                raise CdkitError(f"{where}: {annotations.path} has no annotation of the id {name}")
            place, annotation = truth[name]
            kind = text_of(annotation, "type", where=place)
            if kind == "generative":
                raise CdkitError(
                    f"{where} asks for a description (id {name}): give the file of the "
                    "discriminative questions alone, query_discriminative.json"
                )
            if kind not in KINDS:
                raise CdkitError(f"{place}: {unknown('type of AMBER question', kind, KINDS)}")
            label = yes_or_no(text_of(annotation, "truth", where=place), place)
            image = text_of(row, "image", where=where)
            with located(where):
                prompt = text_of(row, "query", where=where) + self.question_suffix
                # Yes or No: how the official parser wants it
                sample = Sample(name, image, prompt, group=image, target=label.capitalize())
            found[name] = sample, KINDS[kind]
        if not found:
            raise CdkitError(f"{self.path} asks nothing: fetch it anew or give another file")
        return tuple(found.values())


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    if not (folder / "amber").is_dir():
        return
    questions = released(folder, "query/query_discriminative.json")
    truth = released(folder, "annotations.json")
    if questions is None and released(folder, "query/query_generative.json") is not None:
        return  # the generative part alone
    if questions is None or truth is None:
        lacking = "query_discriminative.json" if questions is None else "annotations.json"
        raise CdkitError(f"amber in {folder} is not whole: it lacks amber/{lacking}; {HELP}")
    files = {"path": questions, "annotations": truth}
    yield LocatedPart("amber", "amber", files, images_of_release(folder))


def released(folder: Path, name: str) -> Path | None:
    """A file of AMBER's release: in its folder `data`, or all of them in one folder."""
    return first_file(folder, f"amber/data/{name}", f"amber/{name.rsplit('/', 1)[-1]}")


def images_of_release(folder: Path) -> Path:
    return folder / ("amber/images" if (folder / "amber/images").is_dir() else "amber/image")
