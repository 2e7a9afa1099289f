"""Preparing batches for the model; a sample that cannot be prepared has a reason."""

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from time import monotonic, sleep
from typing import Any

from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cdkit.errors import CdkitError
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.batches import BatchPlan
from cdkit.evals.runner.pictures import picture_size
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.stopping import ended_by, lost
from cdkit.processors import positions

PATIENCE = 2.0
"""Seconds until the system has told of a process whose connection is broken."""


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """A batch on the CPU: `kept` are the indices of its questions that `inputs` hold, in order."""

    work: BatchPlan
    kept: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    """Empty where no question could be made ready."""
    errors: Mapping[int, str]


class BatchDataset(Dataset[PreparedBatch]):
    """The batches of one process, each made ready when it is asked for."""

    def __init__(self, work: Sequence[BatchPlan], engine: AnswerEngine) -> None:
        self._work, self._engine = work, engine
        self._most = positions(engine.model.config)

    def __len__(self) -> int:
        return len(self._work)

    def __getitem__(self, index: int) -> PreparedBatch:
        return prepare_batch(self._work[index], self._engine, self._most)


class BatchLoader(DataLoader[PreparedBatch]):
    """The batches in order, made ready in this process or by workers in advance.

    Raises:
        CdkitError: A worker is gone. It may be lost in the middle of anything, so what is seen of
            it is torch's word, a broken connection or half of what it sent.
    """

    def __iter__(self) -> Any:  # torch's own class of iterators is private
        others = {*multiprocessing.active_children()}
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        batches = super().__iter__()
        main = threading.current_thread() is threading.main_thread()
        if self.num_workers and main and before is not None:
            # torch's handler raises in the middle of whatever runs when a worker ends, where the
            # error may be taken for another; the next batch tells of it as well
            signal.signal(signal.SIGCHLD, before)
        return _watched(batches, {*multiprocessing.active_children()} - others)


def _watched(
    batches: Iterator[PreparedBatch], workers: Collection[BaseProcess]
) -> Iterator[PreparedBatch]:
    try:
        yield from batches
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        code = _end_of_one(workers)
        if not code:
            raise
        what = f"a process that loads images (--workers) is gone: it {ended_by(code)}"
        raise lost(what) from error


def _end_of_one(workers: Collection[BaseProcess]) -> int | None:
    """The exit code of a worker that has not ended well; None where there is none, or not soon."""
    until = monotonic() + PATIENCE
    code = None
    while not code and workers and monotonic() < until:
        code = next((each.exitcode for each in workers if each.exitcode), None)
        sleep(0.01)
    return code


def prepare_batch(work: BatchPlan, engine: AnswerEngine, most: int | None) -> PreparedBatch:
    """The batch without the samples whose image cannot be read or whose prompt is too long."""
    errors: dict[int, str] = {}
    pictures: dict[int, Image] = {}
    for index, question in enumerate(work.questions):
        try:
            pictures[index] = question.picture()
        except CdkitError as error:
            errors[index] = str(error)
    inputs = _processed(work.questions, pictures, engine, errors)
    if most is not None and inputs:
        lengths = inputs["attention_mask"].sum(dim=-1).tolist()
        limit = work.questions[0].limit
        long = {i: n for i, n in zip(pictures, lengths, strict=True) if n + limit > most}
        for index, length in long.items():
            errors[index] = (
                f"the prompt has {length} tokens and the answer may have {limit}, but the model "
                f"has positions for {most}: shorten the question, or lower the token limit"
            )
            del pictures[index]
        if long:  # made anew: its padding counted with those that are out
            inputs = _processed(work.questions, pictures, engine, errors)
    return PreparedBatch(work, tuple(pictures), inputs, errors)


def _processed(
    questions: Sequence[Question],
    pictures: dict[int, Image],
    engine: AnswerEngine,
    errors: dict[int, str],
) -> Mapping[str, Tensor]:
    """All pictures with their prompts; one that the processor refuses is taken out of them."""
    if not pictures:
        return {}
    try:
        return _together(questions, pictures, engine)
    except ValueError:
        refused: dict[int, str] = {}
        for index, picture in pictures.items():
            try:
                _together(questions, {index: picture}, engine)
            except ValueError as error:
                why = " ".join(str(error).split())
                ours = isinstance(error, CdkitError)
                refused[index] = why if ours else f"the model's processor refuses it: {why}"
        if not refused:
            raise  # not the fault of one of them
        errors.update(refused)
        for index in refused:
            del pictures[index]
        return _together(questions, pictures, engine) if pictures else {}


def _together(
    questions: Sequence[Question], pictures: Mapping[int, Image], engine: AnswerEngine
) -> Mapping[str, Tensor]:
    prompts = [questions[index].prompt for index in pictures]
    return engine.processed([[picture] for picture in pictures.values()], prompts)


def prompt_lengths(questions: Sequence[Question], engine: AnswerEngine) -> list[int]:
    """Tokens of each question's prompt, with those of its image where the processor can tell.

    Only a file's head is read for that; an image whose head cannot be read counts for nothing.
    """
    texts = engine.lengths([question.prompt for question in questions])
    count = getattr(engine.processor, "_get_num_multimodal_tokens", None)
    if count is None:
        return texts
    sizes = {path: picture_size(path) for path in {question.image for question in questions}}
    tokens = {size: _image_tokens(count, size) for size in {*sizes.values()}}
    of_image = {path: tokens[size] for path, size in sizes.items()}
    return [
        length + of_image[question.image] for length, question in zip(texts, questions, strict=True)
    ]


def _image_tokens(count: Callable[..., Any], size: tuple[int, int] | None) -> int:
    """What cannot be counted (the method is private to Hugging Face) costs some padding only."""
    try:
        return 0 if size is None else int(count(image_sizes=[list(size)])["num_image_tokens"][0])
    except (ValueError, TypeError, AttributeError, LookupError):
        return 0
