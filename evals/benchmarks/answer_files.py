"""Answers in files, each matched with its question and held against what the row says of it."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import answer_of, read_source, rows, text_of
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer, Sample

PROMPTS = ("question", "prompt", "query")
"""Keys under which a row may repeat its question."""
IMAGES = ("image", "imange", "image_file", "image_path", "file_name", "image_id")
"""Keys under which a row may name its image."""
COCO = re.compile(r"^coco_(?:train|val|test)\d{4}_")


@dataclass(frozen=True)
class AnswerFormat:
    """The rows of a file of answers.

    Args:
        ids: Keys of the sample's id; the first that a row has counts.
        texts: Keys of the answer.
        named: Whether the benchmark knows the names of its images; where it does not, only a
            number in a name tells two images apart.
        prompts: Keys of the question; none where programs ask in words of their own.
        about: What errors call the link from a row to its sample.
        named_by: Keys whose values, joined by "_", are the sample's id, in a row that has all.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    named: bool = True
    prompts: tuple[str, ...] = PROMPTS
    about: str = "answers the question"
    named_by: tuple[str, ...] = ()

    def names(self, row: Mapping[str, object]) -> bool:
        """Whether a row says which sample it is about."""
        whole = bool(self.named_by) and all(row.get(key) is not None for key in self.named_by)
        return whole or _has(row, self.ids)

    def name_of(self, row: Mapping[str, object], where: str) -> str:
        """The id of the sample that a row is about."""
        if self.named_by and not _has(row, self.ids):
            return "_".join(text_of(row, key, where=where).strip() for key in self.named_by)
        return text_of(row, *self.ids, where=where)


def matched_answers(
    benchmark: Benchmark,
    questions: object,
    path: Path,
    form: AnswerFormat,
    *,
    every: bool = True,
    skip: Collection[str] = (),
) -> dict[str, Answer]:
    """The answers to a benchmark's questions.

    Rows without an id are taken in the questions' order if each repeats its question.

    Args:
        benchmark: The benchmark.
        questions: What errors call its questions: their file.
        path: The answers: JSON lines or one JSON list.
        form: The keys of its rows.
        every: Whether all questions need an answer.
        skip: Ids of other questions, whose answers are passed over.

    Returns:
        Sample id -> answer, in the file's order.

    Raises:
        CdkitError: The file cannot be read; a row belongs to no question, answers one a second
            time, or names another image or another question than its own; a question has no
            answer.
    """
    samples = {sample.id: sample for sample in benchmark.samples()}
    placed = list(rows(read_source(path)))
    if not placed:
        raise CdkitError(f"{path} holds no answer: give the file that holds them")
    by_order = every and bool(form.prompts) and not any(form.names(row) for _, row in placed)
    order = list(samples)
    found: dict[str, Answer] = {}
    for number, (where, row) in enumerate(placed):
        if not by_order:
            name = form.name_of(row, where)
            if name in skip:
                continue
        elif not _has(row, form.prompts):
            keys = " or ".join(map(repr, form.ids))
            raise CdkitError(
                f"{where} lacks {form.ids[0]!r}: every row needs {keys}, or all rows stand in the "
                f"questions' order, and each repeats its question as {form.prompts[0]!r}"
            )
        elif number >= len(order):
            raise CdkitError(
                f"{where} answers no question: {questions} has {len(order)}, and rows without "
                f"{form.ids[0]!r} are taken in their order"
            )
        else:
            name = order[number]
        if name in found:
            raise CdkitError(f"{where} answers sample {name} a second time: keep one answer each")
        if name not in samples:
            raise CdkitError(f"{where} {form.about} {name}, which is not in {questions}")
        found[name] = answer_of(row, form.texts, where)
        if said := contradiction(row, samples[name], form):
            raise CdkitError(
                f"{where} answers another question than the one of {questions} with the id {name}: "
                f"{said}; give the answers to these questions"
            )
        if form.prompts and found[name].text.strip() and found[name].text == samples[name].prompt:
            raise CdkitError(
                f"{where} has the question itself as its answer: give the file of the answers"
            )
    if every and (missing := [name for name in samples if name not in found]):
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CdkitError(
            f"{path} answers {len(found)} of the {len(samples)} questions in {questions} "
            f"(not {few}): a score over a part of the questions is another benchmark; answer them "
            "all"
        )
    return found


def contradiction(row: Mapping[str, object], sample: Sample, form: AnswerFormat) -> str:
    """What a row says of its image or its question and the sample does not; "" where they agree.

    An image may stand under any folder, without its ending, or as COCO's number. A question may
    have more words around it, such as "Answer with yes or no".
    """
    for key in (key for key in IMAGES if key not in form.ids):
        if (told := _text(row.get(key))) and not _same_image(told, sample.image, form.named):
            return f"its {key} is {told!r}, and the question is about {sample.image!r}"
    asked = _words(sample.prompt)
    for key in form.prompts:
        if (told := _text(row.get(key))) and not _same_question(_words(told), asked):
            return f"its {key} is {told!r}, and the question is {sample.prompt!r}"
    return ""


def _has(row: Mapping[str, object], keys: Sequence[str]) -> bool:
    return any(row.get(key) is not None for key in keys)


def _text(value: object) -> str:
    """The text, the number or the one text of a list; "" of all else, which says nothing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def _same_image(told: str, image: str, named: bool) -> bool:
    one, two = _stem(told), _stem(image)
    if one == two or not (named or one.isdecimal()):
        return True
    numbers = re.findall(r"\d+", two)  # a bare number is an image's id
    return one.isdecimal() and bool(numbers) and numbers[-1].lstrip("0") == one


def _stem(name: str) -> str:
    """A file's name without folders, ending, COCO's prefix and leading zeros."""
    stem = PurePosixPath(name.replace("\\", "/").lower()).name
    stem = re.sub(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)$", "", stem)
    return COCO.sub("", stem).lstrip("0")


def _same_question(told: str, asked: str) -> bool:
    return f" {asked} " in f" {told} " or f"{asked} ".startswith(f"{told} ")


def _words(text: str) -> str:
    """In small letters, without marks; POPE's first release asks about "the imange"."""
    return " ".join(re.findall(r"\w+", text.lower())).replace("imange", "image")
