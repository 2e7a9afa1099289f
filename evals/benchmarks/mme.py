"""MME: pairs of yes/no questions about an image, scored in points a task."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.data_folders import is_micro
from cdkit.evals.benchmarks.mme_files import MMEQuestion, MMETask, read_tasks
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally, share
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
    """Read an answer as MME's script does: "yes", then "no" in the first four characters."""
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
    """Each task's `acc`, `acc_plus` and `score`, the totals over the tasks there are, and counts.

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
    return found | {"unknown": lambda s: s["unknown"], "truncated": lambda s: s["truncated"]}


@final
@BENCHMARKS.register("mme")
@dataclass(frozen=True)
class MME(Benchmark):
    """Perception and cognition by pairs of yes/no questions (14 tasks in a folder).

    Metrics: for each task `TASK.acc` (right answers), `TASK.acc_plus` (images with both answers
    right), both fractions of one, and `TASK.score` (points, at most 200); the totals `perception`,
    `cognition` and `hallucination` (points); `unknown` counts answers that are neither yes nor no,
    `truncated` those that the token limit ended. One answer in a task of 30 images is worth up to 5
    points. The unit of resampling is the image; existence, count, position and color ask about
    photos of COCO, where one photo may stand in several of them.

    Args:
        folder: The published release, with a folder TASK of images and questions for each task (the
            images are in the same folder); or a folder with a file TASK.txt for each task, as the
            release's evaluation tool reads them: tab-separated rows `image, question, truth` and
            maybe a fourth column of answers (see `recorded`). Two successive rows belong to one
            image.
        tasks: The tasks to ask; by default all that are in the folder.
        subfolder: For text files, where the images of a task lie inside the image folder:
            "{task}" or "{task}/images".
        max_new_tokens: The token limit of an answer.
        question_suffix: Text behind each question.

    Raises:
        CdkitError: A task is unknown or missing, or a file cannot be read.
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
    question_suffix: str = ""

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        for task in self.tasks:
            if task not in TASKS:
                raise CdkitError(unknown("MME task", task, TASKS))
        self._questions  # noqa: B018  (a broken file fails now, not after the model has run)

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            ("mme/TASK/ or mme/TASK.txt (existence, count, ...)",),
            _in_folder,
            only_part="folder",
            rank=2,
        )

    def samples(self) -> tuple[Sample, ...]:
        return tuple(question.sample for question in self._questions)

    def sources(self) -> Mapping[str, str]:
        return {k: v for task in self._tasks.values() for k, v in task.sources.items()}

    def versions(self) -> Mapping[str, int]:
        return {"parse": VERSION}

    def recorded(self) -> dict[str, Answer]:
        """The answers in the fourth column of the files, by sample id."""
        return {
            question.sample.id: Answer(question.answer)
            for question in self._questions
            if question.answer is not None
        }

    def unanswered(self) -> tuple[str, ...]:
        """FILE:LINE of each row without a fourth column."""
        return tuple(question.where for question in self._questions if question.answer is None)

    def count(self, answers: Sequence[Answer]) -> Tally:
        asked = self._questions
        parsed = np.array(["other" if a.unfinished else parse(a.text) for a in answers])
        right = (parsed == np.array([q.sample.target for q in asked])).astype(np.float64)
        # Both answers of a pair share its point, so that any weighting of images counts it once.
        both = np.repeat(right.reshape(-1, 2).prod(axis=1), 2) / 2
        columns: dict[str, Float[np.ndarray, " samples"]] = {}
        for task in self._tasks:
            mine = np.array([float(question.task == task) for question in asked])
            columns[f"{task}.questions"] = mine
            columns[f"{task}.right"] = mine * right
            columns[f"{task}.both"] = mine * both
        columns["unknown"] = (parsed == "other").astype(np.float64)
        columns["truncated"] = np.array([float(answer.truncated) for answer in answers])
        tasks = tuple(self._tasks)
        return Tally(
            self.samples(),
            columns,
            metrics(tasks),
            binary={f"{task}.acc": f"{task}.right" for task in tasks},
            joint=np.arange(len(right)) // 2,
        )

    @cached_property
    def _tasks(self) -> Mapping[str, MMETask]:
        return read_tasks(self.folder, self.tasks, TASKS, self.subfolder)

    @cached_property
    def _questions(self) -> tuple[MMEQuestion, ...]:
        read = (question for task in self._tasks.values() for question in task.questions)
        return tuple(self._suffixed(question) for question in read)

    def _suffixed(self, question: MMEQuestion) -> MMEQuestion:
        prompt = question.sample.prompt + self.question_suffix
        sample = dataclasses.replace(question.sample, prompt=prompt)
        return dataclasses.replace(question, sample=sample)


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    for place in ("mme", "mme/MME_Benchmark", "mme/MME_Benchmark_release_version/MME_Benchmark"):
        there = folder / place
        if any((there / f"{task}.txt").is_file() or (there / task).is_dir() for task in TASKS):
            images, settings = there, dict[str, object]()  # the release: all in one place
            if is_micro(folder):
                images = folder / "images"
            elif (there / "images").is_dir():  # beside text files
                images = there / "images"
                if any((images / task).is_dir() for task in TASKS):
                    settings = {"subfolder": "{task}"}
            published = not is_micro(folder)
            yield LocatedPart("mme", "mme", {"folder": there}, images, settings, published)
            return
