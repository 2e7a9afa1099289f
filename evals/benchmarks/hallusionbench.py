"""HallusionBench by rule: yes/no questions about figures, in pairs and around one figure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import Source, located, read_source, rows, text_of
from cdkit.evals.benchmarks.column_metrics import share_of, sum_of
from cdkit.evals.benchmarks.data_folders import first_file
from cdkit.evals.benchmarks.yes_no import Parser, anywhere, check_parsers, parsed_answer, strict
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally

CATEGORIES = ("VD", "VS")
"""Visual dependent, and visual supplement: the latter can be answered without the figure."""
KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
"""What makes a row's name, joined by "_", as in the official script."""
PARSERS: Mapping[str, Parser] = {
    "strict": Parser(strict, version=1),
    "anywhere": Parser(anywhere, version=1),
}
FOLDER = "hallusion_bench"
LEVELS = ("figure", "pair", "easy", "hard")
"""What is right if all of its questions are: the script's figures, and its pairs of questions over
all figures, over the figures as found, and over the edited ones."""


@dataclass(frozen=True)
class FigureQuestion:
    """One row of the file.

    Args:
        sample: The question.
        category: "VD" or "VS".
        text_only: Whether it is asked without a figure.
        unit: Level -> the name of the group of questions at that level that it belongs to.
    """

    sample: Sample
    category: str
    text_only: bool
    unit: Mapping[str, str]


def metrics(prefix: str, scope: str) -> dict[str, OfSums]:
    """The accuracies from the sums of the columns `SCOPEone`, `SCOPEPREFIXright` and so on."""

    found = {"accuracy": share_of(f"{scope}{prefix}right", f"{scope}one")}
    for level in LEVELS:
        of = share_of(f"{scope}{prefix}{level}_right", f"{scope}{level}")
        found[f"{level}_accuracy"] = of
    return found


@final
@BENCHMARKS.register("hallusionbench")
@dataclass(frozen=True)
class HallusionBench(Benchmark):
    """Illusion and language hallucination by yes/no questions, read by rule (no judge).

    Metrics, fractions of one: `accuracy` of questions; `figure_accuracy`, figures whose questions
    are all right; `pair_accuracy`, questions that are right with every figure they are asked about;
    `easy_accuracy` and `hard_accuracy`, the same over the figures as found (and without a figure),
    and over the edited ones; `yes_ratio` of the predictions. `unknown` counts answers that are
    neither yes nor no, `truncated` those that the token limit ended. `VD.accuracy`,
    `VS.pair_accuracy` and so on are those of a category. The grouping and the names of the groups
    are those of the official script (tianyi-lab/HallusionBench 744007c, utils.py:130-411), which
    has the answers judged by GPT-4: numbers by rule are comparable with numbers by rule only.

    The unit of resampling is a set: the figures that share their questions.

    Args:
        path: The release's `HallusionBench.json`, a JSON list of objects.
        text_only: Whether the 178 questions without a figure count too. A run cannot ask them, for
            it needs an image, so this is for answers made elsewhere. An answer to one that is
            neither yes nor no is right, as in the official script.
        parsers: How answers are read: "strict" (the first sentence) or "anywhere" (the whole
            answer). Metrics of the first have plain names, those of others are called
            `anywhere.accuracy` and so on.
        max_new_tokens: The token limit of an answer.

    Raises:
        CdkitError: The file cannot be read, a row lacks a key or stands twice, or a parser is
            unknown.
    """

    bibtex: ClassVar[str] = """@inproceedings{guan2024hallusionbench,
  title={{HallusionBench}: An Advanced Diagnostic Suite for Entangled Language Hallucination and
         Visual Illusion in Large Vision-Language Models},
  author={Guan, Tianrui and Liu, Fuxiao and Wu, Xiyang and Xian, Ruiqi and Li, Zongxia
          and Liu, Xiaoyu and Wang, Xijun and Chen, Lichang and Huang, Furong and Yacoob, Yaser
          and Manocha, Dinesh and Zhou, Tianyi},
  booktitle={CVPR}, year={2024}}"""

    path: Path
    text_only: bool = False
    parsers: tuple[str, ...] = ("strict", "anywhere")
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        check_parsers(self.parsers, PARSERS, "HallusionBench")
        if not self._asked:
            raise CdkitError(f"{self.path} asks nothing: fetch it anew or give another file")

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            ("hallusionbench/HallusionBench.json",), _in_folder, only_part="path", rank=5
        )

    def samples(self) -> tuple[Sample, ...]:
        return tuple(question.sample for question in self._asked)

    def sources(self) -> Mapping[str, str]:
        return {str(self.path): self._source.sha256}

    def versions(self) -> Mapping[str, int]:
        return {name: PARSERS[name].version for name in self.parsers}

    def without_figure(self) -> frozenset[str]:
        """The ids of the questions that are asked without a figure, whether they count or not."""
        return frozenset(question.sample.id for question in self._rows if question.text_only)

    def count(self, answers: Sequence[Answer]) -> Tally:
        asked = self._asked
        truth = np.array([question.sample.target for question in asked])
        honest = np.array(
            [q.text_only and not a.unfinished for q, a in zip(asked, answers, strict=True)]
        )
        there = [c for c in CATEGORIES if any(question.category == c for question in asked)]
        scopes = {"": np.ones(len(asked))} | {
            f"{c}.": np.array([float(question.category == c) for question in asked]) for c in there
        }
        columns: dict[str, Float[np.ndarray, " samples"]] = {}
        sums: dict[str, OfSums] = {}
        binary: dict[str, str] = {}
        members = {level: self._groups(level) for level in LEVELS}
        for scope, inside in scopes.items():
            columns[f"{scope}one"] = inside
            columns |= {f"{scope}{level}": inside * of for level, (of, _) in members.items()}
        for i, name in enumerate(self.parsers):
            prefix = "" if i == 0 else f"{name}."
            said = np.array([parsed_answer(PARSERS[name], answer, "") for answer in answers])
            vague = said == "unknown"
            right = ((said == truth) | (vague & honest)).astype(np.float64)
            for scope, inside in scopes.items():
                columns[f"{scope}{prefix}right"] = inside * right
                for level, (weight, groups) in members.items():
                    whole = weight * _all_right(right, groups)
                    columns[f"{scope}{prefix}{level}_right"] = inside * whole
                of = metrics(prefix, scope)
                sums |= {f"{prefix}{scope}{metric}": each for metric, each in of.items()}
                binary[f"{prefix}{scope}accuracy"] = f"{scope}{prefix}right"
            columns[f"{prefix}yes"] = (said == "yes").astype(np.float64)
            columns[f"{prefix}unknown"] = vague.astype(np.float64)
            sums[f"{prefix}yes_ratio"] = share_of(f"{prefix}yes", "one")
            sums[f"{prefix}unknown"] = sum_of(f"{prefix}unknown")
        columns["truncated"] = np.array([float(answer.truncated) for answer in answers])
        sums["truncated"] = sum_of("truncated")
        sets = list(dict.fromkeys(question.sample.group for question in asked))
        joint = np.array([sets.index(question.sample.group) for question in asked], dtype=np.int64)
        return Tally(self.samples(), columns, sums, binary=binary, joint=joint)

    def _groups(self, level: str) -> tuple[Float[np.ndarray, " samples"], list[list[int]]]:
        """What each question is of its group at a level, 1 / its size, and the groups' members."""
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for number, question in enumerate(self._asked):
            if level in question.unit:
                groups[question.unit[level]].append(number)
        weights = np.zeros(len(self._asked))
        for group in groups.values():
            weights[group] = 1 / len(group)
        return weights, list(groups.values())

    @cached_property
    def _source(self) -> Source:
        return read_source(self.path)

    @cached_property
    def _asked(self) -> tuple[FigureQuestion, ...]:
        return tuple(q for q in self._rows if self.text_only or not q.text_only)

    @cached_property
    def _rows(self) -> tuple[FigureQuestion, ...]:
        found: dict[str, FigureQuestion] = {}
        for where, row in rows(self._source):
            question = _question(row, where)
            name = question.sample.id
            if name in found:
                raise CdkitError(f"{where} has the question {name} again: each stands once")
            found[name] = question
        return tuple(found.values())


def row_name(row: Mapping[str, object], where: str) -> str:
    """The name of a question: its keys, joined by "_"."""
    return "_".join(text_of(row, key, where=where).strip() for key in KEYS)


def _question(row: Mapping[str, object], where: str) -> FigureQuestion:
    category, kind, set_id, figure, number = (text_of(row, k, where=where).strip() for k in KEYS)
    if category not in CATEGORIES:
        raise CdkitError(f"{where} has the category {category!r}: it is VD or VS")
    seen = _one_of(row, "visual_input", ("0", "1", "2"), where)
    target = ("no", "yes")[int(_one_of(row, "gt_answer", ("0", "1"), where))]
    family = "_".join((category, kind, set_id))
    unit = {"pair": f"{family}_{number}"}
    unit["hard" if seen == "2" else "easy"] = unit["pair"]
    if not (category == "VS" and figure == "0"):
        unit["figure"] = f"{family}_{figure}"
    with located(where):
        sample = Sample(
            id=row_name(row, where),
            image=_image(row, seen, where) or f"{category}/{kind}/{set_id}_{figure}.png",
            prompt=text_of(row, "question", where=where),
            group=family,
            target=target,
        )
    return FigureQuestion(sample, category, seen == "0", unit)


def _one_of(row: Mapping[str, object], key: str, known: Sequence[str], where: str) -> str:
    value = text_of(row, key, where=where).strip()
    if value not in known:
        raise CdkitError(f"{where} has {value!r} as {key!r}: it is {' or '.join(known)}")
    return value


def _image(row: Mapping[str, object], seen: str, where: str) -> str:
    """The image inside the release's folder; "" for a question without a figure."""
    if seen == "0":
        if row.get("filename") is not None:
            raise CdkitError(f"{where} has no visual input, and a file: give the file as published")
        return ""
    path = PurePosixPath(text_of(row, "filename", where=where))
    return str(path.relative_to(FOLDER) if path.parts[:1] == (FOLDER,) else path)


def _all_right(
    right: Float[np.ndarray, " samples"], groups: Sequence[Sequence[int]]
) -> Float[np.ndarray, " samples"]:
    """For each question 1 where every question of its group is right."""
    whole = np.zeros(len(right))
    for group in groups:
        whole[list(group)] = right[list(group)].min()
    return whole


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    path = first_file(folder, "hallusionbench/HallusionBench.json")
    if path is not None:
        images = path.parent / "hallusion_bench"
        if not images.is_dir():  # unpacked without its own folder
            images = path.parent
        yield LocatedPart("hallusionbench", "hallusionbench", {"path": path}, images)
