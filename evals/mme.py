"""MME: pairs of yes/no questions about an image, scored in points a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Float

from cdkit.benchmark import BENCHMARKS, Answer, Benchmark, OfSums, Sample, Tally, check_limit, share
from cdkit.errors import CdkitError
from cdkit.evals.files import Source, located, read, yes_or_no
from cdkit.registry import unknown

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
TASKS = (*PERCEPTION, *COGNITION)
TOTALS: Mapping[str, tuple[str, ...]] = {
    "perception": PERCEPTION,
    "cognition": COGNITION,
    "hallucination": ("existence", "count", "position", "color"),
}
VERSION = 1

Sums = Mapping[str, Float[np.ndarray, " resamples"]]


def parse(text: str) -> Literal["yes", "no", "other"]:
    """As MME's own script: "yes", then "no", looked for in the first four characters."""
    start = text.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else "other"


def accuracy(task: str) -> OfSums:
    """Right answers in all questions of the task."""
    return lambda s: share(s[f"{task}.right"], s[f"{task}.questions"])


def accuracy_plus(task: str) -> OfSums:
    """Images with both answers right in all images of the task."""
    return lambda s: share(2 * s[f"{task}.both"], s[f"{task}.questions"])


def points(tasks: Sequence[str]) -> OfSums:
    """100 acc + 100 acc+, summed over tasks: at most 200 a task."""

    def total(s: Sums) -> Float[np.ndarray, " resamples"]:
        parts = (accuracy(task)(s) + accuracy_plus(task)(s) for task in tasks)
        return np.multiply(100, sum(parts, np.zeros(1)))

    return total


def metrics(tasks: Sequence[str]) -> dict[str, OfSums]:
    """Each task's `acc`, `acc_plus` and `score`, and the totals over the tasks there are.

    A total that lacks tasks says so in its name: "perception (4 of 10 tasks)".
    """
    found: dict[str, OfSums] = {}
    for task in tasks:
        found[f"{task}.acc"] = accuracy(task)
        found[f"{task}.acc_plus"] = accuracy_plus(task)
        found[f"{task}.score"] = points([task])
    for name, members in TOTALS.items():
        present = [task for task in members if task in tasks]
        whole = len(present) == len(members)
        if present:
            label = name if whole else f"{name} ({len(present)} of {len(members)} tasks)"
            found[label] = points(present)
    return found


@dataclass(frozen=True)
class Question:
    """One row of a task file (its id is TASK/ROW, from 1), with the fourth column, if any."""

    task: str
    sample: Sample
    answer: str | None


@final
@BENCHMARKS.register("mme")
@dataclass(frozen=True)
class MME(Benchmark):
    """Perception and cognition by pairs of yes/no questions (a folder with one file a task).

    A file TASK.txt holds tab-separated rows `image, question, truth` and maybe a fourth column of
    answers (see `recorded`); two rows in a row belong to one image. `tasks` names those to ask, all
    that are in the folder by default. `subfolder` is where the images of a task lie inside the
    image folder, as "{task}" or "{task}/images" in the published release. Metrics: for each task
    `TASK.acc` and `TASK.acc_plus` (fractions), `TASK.score` (points, at most 200); the totals
    `perception`, `cognition` and `hallucination` (points). One answer in a task of 30 images is
    worth up to 5 points. The unit of resampling is the image's file name, over all tasks: the
    release asks about one photo in several tasks.
    """

    bibtex: ClassVar[str] = """@article{fu2023mme,
  title={{MME}: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models},
  author={Fu, Chaoyou and Chen, Peixian and Shen, Yunhang and Qin, Yulei and Zhang, Mengdan
          and Lin, Xu and Yang, Jinrui and Zheng, Xiawu and Li, Ke and Sun, Xing and others},
  journal={arXiv preprint arXiv:2306.13394}, year={2023}}"""

    folder: Path
    tasks: tuple[str, ...] = ()
    subfolder: str = ""
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        for task in self.tasks:
            if task not in TASKS:
                raise CdkitError(unknown("MME task", task, TASKS))
        self._questions  # noqa: B018  (a broken file fails now, not after the model has run)

    def samples(self) -> tuple[Sample, ...]:
        return tuple(question.sample for question in self._questions)

    def sources(self) -> Mapping[str, str]:
        return {str(source.path): source.sha256 for source in self._sources.values()}

    def versions(self) -> Mapping[str, int]:
        return {"parse": VERSION}

    def recorded(self) -> dict[str, Answer]:
        """The answers in the files' fourth column, as evaluation tools leave them."""
        return {
            question.sample.id: Answer(question.answer)
            for question in self._questions
            if question.answer is not None
        }

    def count(self, answers: Sequence[Answer]) -> Tally:
        asked = self._questions
        right = np.array(
            [float(parse(a.text) == q.sample.target) for a, q in zip(answers, asked, strict=True)]
        )
        # Both answers of a pair share its point, so that any weighting of images counts it once.
        both = np.repeat(right.reshape(-1, 2).prod(axis=1), 2) / 2
        columns: dict[str, Float[np.ndarray, " samples"]] = {}
        for task in self._sources:
            mine = np.array([float(question.task == task) for question in asked])
            columns[f"{task}.questions"] = mine
            columns[f"{task}.right"] = mine * right
            columns[f"{task}.both"] = mine * both
        binary = {f"{task}.acc": f"{task}.right" for task in self._sources}
        return Tally(
            self.samples(),
            columns,
            metrics(tuple(self._sources)),
            binary=binary,
            joint=np.arange(len(right)) // 2,
        )

    @cached_property
    def _sources(self) -> Mapping[str, Source]:
        if not self.folder.is_dir():
            raise CdkitError(f"{self.folder} is no folder: MME is a folder with one TASK.txt each")
        there = {path.stem: path for path in sorted(self.folder.glob("*.txt"))}
        for name, path in there.items():
            if name not in TASKS:
                raise CdkitError(f"{path}: {unknown('MME task', name, TASKS)}")
        chosen = [task for task in TASKS if task in (self.tasks or there)]
        lacking = [task for task in chosen if task not in there] if chosen else ["any task"]
        if lacking:
            raise CdkitError(
                f"{self.folder} has no file of {', '.join(lacking)}: a task is read from TASK.txt, "
                f"and there is {', '.join(there) or 'none'}"
            )
        return {task: read(there[task]) for task in chosen}

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        return tuple(
            question
            for task, source in self._sources.items()
            for question in _read_task(task, source, self.subfolder)
        )


def _read_task(task: str, source: Source, subfolder: str) -> list[Question]:
    found: list[Question] = []
    asked: set[tuple[str, str]] = set()
    rows = [(where, line.split("\t")) for where, line in source.lines()]
    for number, (where, cells) in enumerate(rows):
        if len(cells) not in (3, 4) or not all(cell.strip() for cell in cells[:3]):
            raise CdkitError(
                f"{where} has {len(cells)} cells, or an empty one: a row is image, question, yes "
                "or no, and maybe an answer, with a tab between each"
            )
        image, question = cells[0].strip(), cells[1].strip()
        partner = rows[number ^ 1][1][0].strip() if number ^ 1 < len(rows) else None
        if partner != image:
            raise CdkitError(
                f"{where} is about {image}, the other row of its pair about "
                f"{partner or 'nothing'}: an image has two questions, one after the other"
            )
        if (image, question) in asked:
            raise CdkitError(f"{where} asks the same of {image} again: each question stands once")
        asked.add((image, question))
        target = yes_or_no(cells[2], where)
        with located(where):
            sample = Sample(
                id=f"{task}/{number + 1}",
                image="/".join(filter(None, (subfolder.replace("{task}", task), image))),
                prompt=question,
                group=image,
                target=target,
            )
        found.append(Question(task, sample, cells[3] if len(cells) == 4 else None))
    return found
