"""ScienceQA's questions about images: multiple choice, answered by one letter."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import Source, located, read_source, text_of
from cdkit.evals.benchmarks.column_metrics import share_of, sum_of
from cdkit.evals.benchmarks.data_folders import HELP
from cdkit.evals.benchmarks.letters import (
    LETTERS,
    PARSERS,
    UNKNOWN,
    check_letter_parsers,
    parsed_letter,
)
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally
from cdkit.registry import unknown

SUBJECTS: Mapping[str, str] = {
    "natural science": "natural",
    "social science": "social",
    "language science": "language",
}
GRADES: Mapping[str, str] = {
    f"grade{i}": "grade_1_6" if i <= 6 else "grade_7_12" for i in range(1, 13)
}
PARTS = (*SUBJECTS.values(), "grade_1_6", "grade_7_12")
SUFFIX = "Answer with the option's letter from the given choices directly."
SPLITS_FILE = "pid_splits.json"


@dataclass(frozen=True)
class Choice:
    """A question about an image.

    Args:
        sample: The question; its target is the letter of the right choice.
        choices: How many choices it has.
        parts: The parts of `PARTS` that it belongs to.
    """

    sample: Sample
    choices: int
    parts: tuple[str, ...]


def prompt_of(question: str, hint: str, choices: Sequence[str]) -> str:
    """The prompt of LLaVA's evaluation.

    haotian-liu/LLaVA c121f04: the format CQM of scripts/convert_sqa_to_llava_base_prompt.py:46-47
    and 97, and the suffix of llava/eval/model_vqa_science.py:62-64 (`--single-pred-prompt`).

    Args:
        question: The question.
        hint: Text to go by; "" for none.
        choices: The choices.

    Returns:
        Context, question, lettered options and the suffix, a line each.
    """
    options = " ".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(choices))
    text = f"Context: {hint.strip() or 'N/A'}\nQuestion: {question}\nOptions: {options}\n"
    return f"{text.replace('  ', ' ').strip()}\n{SUFFIX}"


@final
@BENCHMARKS.register("scienceqa")
@dataclass(frozen=True)
class ScienceQA(Benchmark):
    """General ability: multiple choice about images of school science (ScienceQA, its image part).

    Metrics: `accuracy`, a fraction of one; `chance`, the accuracy of a random guess; `unknown`, a
    count of answers without a letter of a choice (they are wrong); `truncated`, a count of those
    that the token limit ended. `natural.accuracy`, `social.accuracy`, `language.accuracy`,
    `grade_1_6.accuracy`, `grade_7_12.accuracy` are those of a part.

    Args:
        path: The release's `problems.json`, `{id: problem}`.
        splits: The release's `pid_splits.json`, `{split: [ids]}`; by default the one beside it.
        split: Which split is asked: its problems that have an image. "test" has 2,017.
        parsers: How answers are read: "letter", or "llava" (LLaVA's script). Metrics of the first
            have plain names, those of others are called `llava.accuracy` and so on.
        max_new_tokens: The token limit of an answer.

    Raises:
        CdkitError: A file cannot be read, a problem lacks a key, the split or a parser is unknown,
            or no problem of the split has an image.
    """

    bibtex: ClassVar[str] = """@inproceedings{lu2022scienceqa,
  title={Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering},
  author={Lu, Pan and Mishra, Swaroop and Xia, Tony and Qiu, Liang and Chang, Kai-Wei
          and Zhu, Song-Chun and Tafjord, Oyvind and Clark, Peter and Kalyan, Ashwin},
  booktitle={NeurIPS}, year={2022}}"""

    path: Path
    splits: Path | None = None
    split: str = "test"
    parsers: tuple[str, ...] = ("letter", "llava")
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        check_letter_parsers(self.parsers, "ScienceQA")
        if not self._asked:
            raise CdkitError(
                f"no problem of {self.path} in the split {self.split!r} of {self._sources[1].path} "
                "has an image: give the files as they were published"
            )

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            ("scienceqa/pid_splits.json with the release's file of questions",),
            _in_folder,
            only_part="path",
            rank=6,
        )

    def samples(self) -> tuple[Sample, ...]:
        return tuple(choice.sample for choice in self._asked)

    def sources(self) -> Mapping[str, str]:
        return {str(source.path): source.sha256 for source in self._sources}

    def versions(self) -> Mapping[str, int]:
        return {name: PARSERS[name].version for name in self.parsers}

    def without_image(self) -> frozenset[str]:
        """The ids of the split's problems without an image, which are not asked."""
        asked = {choice.sample.id for choice in self._asked}
        return frozenset(self._ids) - asked

    def count(self, answers: Sequence[Answer]) -> Tally:
        asked = self._asked
        truth = np.array([choice.sample.target for choice in asked])
        columns: dict[str, Float[np.ndarray, " samples"]] = {
            "one": np.ones(len(asked)),
            "chance": np.array([1 / choice.choices for choice in asked]),
            "truncated": np.array([float(answer.truncated) for answer in answers]),
        }
        there = [part for part in PARTS if any(part in choice.parts for choice in asked)]
        for part in there:
            columns[f"{part}.one"] = np.array([float(part in c.parts) for c in asked])
        sums: dict[str, OfSums] = {}
        binary: dict[str, str] = {}
        for i, name in enumerate(self.parsers):
            prefix = "" if i == 0 else f"{name}."
            parser, pairs = PARSERS[name], zip(answers, asked, strict=True)
            said = np.array([parsed_letter(parser, answer, c.choices) for answer, c in pairs])
            right = (said == truth).astype(np.float64)
            columns[f"{prefix}right"] = right
            columns[f"{prefix}unknown"] = (said == UNKNOWN).astype(np.float64)
            sums[f"{prefix}accuracy"] = share_of(f"{prefix}right", "one")
            sums[f"{prefix}unknown"] = sum_of(f"{prefix}unknown")
            binary[f"{prefix}accuracy"] = f"{prefix}right"
            for part in there:
                columns[f"{part}.{prefix}right"] = columns[f"{part}.one"] * right
                of = share_of(f"{part}.{prefix}right", f"{part}.one")
                sums[f"{prefix}{part}.accuracy"] = of
                binary[f"{prefix}{part}.accuracy"] = f"{part}.{prefix}right"
        sums["chance"] = share_of("chance", "one")
        sums["truncated"] = sum_of("truncated")
        return Tally(self.samples(), columns, sums, binary=binary)

    @cached_property
    def _sources(self) -> tuple[Source, Source]:
        splits = self.splits or self.path.with_name(SPLITS_FILE)
        return read_source(self.path), read_source(splits)

    @cached_property
    def _problems(self) -> Mapping[str, Mapping[str, object]]:
        value = self._sources[0].json(unique=True)
        if not isinstance(value, dict) or not value:
            raise CdkitError(
                f"{self.path} holds no {{id: problem}}: give ScienceQA's problems.json"
            )
        for name, problem in value.items():
            if not isinstance(problem, dict):
                kind = type(problem).__name__
                raise CdkitError(f"{self.path}: problem {name} is a JSON {kind}: it is an object")
        return value

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        path, value = self._sources[1].path, self._sources[1].json(unique=True)
        if not isinstance(value, dict):
            raise CdkitError(f"{path} holds no {{split: [ids]}}: give ScienceQA's {SPLITS_FILE}")
        if self.split not in value:
            raise CdkitError(f"{path}: {unknown('split', self.split, value)}")
        ids = value[self.split]
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise CdkitError(f"{path} has {str(ids)[:40]} as {self.split!r}: it is a list of ids")
        if twice := [name for name, count in Counter(ids).items() if count > 1]:
            raise CdkitError(f"{path} has {twice[0]} twice in {self.split!r}: keep one")
        return tuple(ids)

    @cached_property
    def _asked(self) -> tuple[Choice, ...]:
        found = []
        for name in self._ids:
            if name not in self._problems:
                raise CdkitError(
                    f"{self._sources[1].path} names the problem {name}, which is not in {self.path}"
                )
            if self._problems[name].get("image") is not None:
                found.append(_choice(name, self._problems[name], f"{self.path}: problem {name}"))
        return tuple(found)


def _choice(name: str, problem: Mapping[str, object], where: str) -> Choice:
    choices, right, hint = problem.get("choices"), problem.get("answer"), problem.get("hint", "")
    texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not isinstance(choices, list) or not texts or not 2 <= len(choices) <= len(LETTERS):
        raise CdkitError(f"{where} has {choices!r} as 'choices': it is a list of 2 to 5 texts")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise CdkitError(
            f"{where} has {right!r} as 'answer': it is the number of a choice, from 0 to "
            f"{len(choices) - 1}"
        )
    if not isinstance(hint, str):
        raise CdkitError(f"{where} has {hint!r} as 'hint': it must be text")
    parts = (
        _part(problem, "subject", SUBJECTS, where),
        _part(problem, "grade", GRADES, where),
    )
    question = text_of(problem, "question", where=where)
    folder = text_of(problem, "split", where=where)
    image = f"{folder}/{name}/{text_of(problem, 'image', where=where)}"
    with located(where):
        prompt = prompt_of(question, hint, choices)
        sample = Sample(name, image, prompt, group=image, target=LETTERS[right])
    return Choice(sample, len(choices), parts)


def _part(problem: Mapping[str, object], key: str, known: Mapping[str, str], where: str) -> str:
    value = text_of(problem, key, where=where)
    if value not in known:
        raise CdkitError(f"{where}: {unknown(key, value, known)}")
    return known[value]


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    for place in ("scienceqa", "scienceqa/data/scienceqa"):  # the second: a clone of the repository
        path, splits = folder / place / "problems.json", folder / place / "pid_splits.json"
        if not path.is_file():
            continue
        if not splits.is_file():
            raise CdkitError(
                f"scienceqa in {folder} is not whole: it lacks {place}/pid_splits.json; {HELP}"
            )
        images = folder / place / "images"
        if not images.is_dir():  # the splits' folders beside the problems
            images = folder / place
        yield LocatedPart("scienceqa", "scienceqa", {"path": path, "splits": splits}, images)
        return
