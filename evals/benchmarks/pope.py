"""POPE: is there a THING in the image? Half of the questions are about things that are not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float, Int

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import (
    Source,
    located,
    read_source,
    rows,
    text_of,
    yes_or_no,
)
from cdkit.evals.benchmarks.data_folders import PHOTOS, is_micro
from cdkit.evals.benchmarks.pope_building import PUBLISHED
from cdkit.evals.benchmarks.yes_no import (
    ParsedAnswer,
    Parser,
    check_parsers,
    parsed_answer,
    parser_first,
    strict,
)
from cdkit.evals.statistics.ranking import image_auc, matched_right, rank_shares
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally, Weighed, image_index, share

Columns = Mapping[str, Float[np.ndarray, " samples"]]


def reference(text: str, label: str) -> ParsedAnswer:
    """Read an answer as POPE's script does.

    Args:
        text: The answer.
        label: Not used.

    Returns:
        "no" if No, not or no is among the words before the first full stop, else "yes".
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def vcd(text: str, label: str) -> ParsedAnswer:
    """Read an answer as VCD's script does: does the answer CONTAIN the label?

    "snowboard" contains a "no". Since the reading depends on the label, use it only to compare with
    numbers that were made by it.

    Args:
        text: The answer.
        label: The right answer, "yes" or "no".

    Returns:
        The label if the lower-cased text contains it, else the opposite.
    """
    if label in text.lower():
        return "yes" if label == "yes" else "no"
    return "no" if label == "yes" else "yes"


def opera(text: str, label: str) -> ParsedAnswer:
    """Read an answer as OPERA's script does, and PAI's and SID's: yes unless something denies.

    All sentences count, not the first alone, and so does a word that ends in "n't".

    Args:
        text: The answer.
        label: Not used.

    Returns:
        "no" if No, NO, not, no or a word with n't is among the words, else "yes".
    """
    words = text.replace(".", "").replace(",", "").split(" ")
    denies = {"No", "not", "no", "NO"} & set(words) or any(word.endswith("n't") for word in words)
    return "no" if denies else "yes"


def icd(text: str, label: str) -> ParsedAnswer:
    """Read an answer as ICD's script does: as POPE's, but a yes must be said.

    Args:
        text: The answer.
        label: Not used.

    Returns:
        "no" if No, not or no is among the words before the first full stop, "yes" if Yes or yes is,
        else "unknown", which the script does not count at all and which is wrong here.
    """
    words = set(text.split(".")[0].replace(",", "").split(" "))
    if {"No", "not", "no"} & words:
        return "no"
    return "yes" if {"Yes", "yes"} & words else "unknown"


PARSERS: Mapping[str, Parser] = {
    "strict": Parser(strict, version=1),
    "reference": Parser(reference, version=1),
    "vcd": Parser(vcd, version=1),
    "opera": Parser(opera, version=1),
    "icd": Parser(icd, version=1),
}


def yes_no_metrics(prefix: str) -> dict[str, OfSums]:
    """Accuracy and its like from the sums of the columns `PREFIXyes`, `PREFIXhit`, ...

    Positive is yes. Precision without a predicted yes, recall without a yes label and F1 without a
    hit are 0. `yes_ratio` is the share of predicted yes in all questions; `unknown` is a count.
    """

    def of(part: str, whole: str) -> OfSums:
        return lambda s: share(s[prefix + part], s[whole])

    return {
        f"{prefix}accuracy": of("right", "one"),
        f"{prefix}precision": of("hit", f"{prefix}yes"),
        f"{prefix}recall": of("hit", "label"),
        f"{prefix}f1": lambda s: share(2 * s[f"{prefix}hit"], s[f"{prefix}yes"] + s["label"]),
        f"{prefix}yes_ratio": of("yes", "one"),
        f"{prefix}unknown": lambda s: s[f"{prefix}unknown"],
    }


def ranked(columns: Columns, images: Int[np.ndarray, " samples"]) -> Weighed:
    """The AUC of the column `yes_score` for the column `label`."""
    return image_auc(columns["yes_score"], columns["label"], images)


def matched(columns: Columns, images: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Which answers are right where the column `yes_score` is cut at the rate of yes labels."""
    return matched_right(columns["yes_score"], columns["label"], images)


@final
@BENCHMARKS.register("pope")
@dataclass(frozen=True)
class POPE(Benchmark):
    """Object hallucination by yes/no questions about images (one file: one negative sampling).

    Metrics: `accuracy`, `precision`, `recall`, `f1` and `yes_ratio` are fractions of one (positive
    is yes); `unknown` counts answers that are neither yes nor no, and they are wrong; `truncated`
    counts those that the token limit ended. If every
    answer has a yes score, there are also `auc` and `matched_accuracy`, the accuracy at a matched
    yes-rate.

    Args:
        path: The questions: one JSON object a line, or one JSON list of objects, as the questions
            about A-OKVQA and GQA were published. Keys: `question_id`, `image` (or `imange`, as some
            published files have it), `text`, `label` (yes or no).
        parsers: How answers are read: "strict", "reference" (POPE's script), "vcd" (VCD's script),
            "opera" (OPERA's, PAI's and SID's) or "icd" (ICD's). Metrics of the first have plain
            names, those of others are called `NAME.accuracy` and so on.
        max_new_tokens: The token limit of an answer.
        question_suffix: Text behind each question, such as
            " Please answer this question with one word."

    Raises:
        CdkitError: The file cannot be read, a row lacks a key, an id stands twice, or a parser is
            unknown.
    """

    bibtex: ClassVar[str] = """@inproceedings{li2023pope,
  title={Evaluating Object Hallucination in Large Vision-Language Models},
  author={Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin
          and Wen, Ji-Rong},
  booktitle={EMNLP}, year={2023}}"""

    path: Path
    parsers: tuple[str, ...] = ("strict", "reference")
    max_new_tokens: int = 16
    question_suffix: str = ""

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        check_parsers(self.parsers, PARSERS, "POPE")
        self._samples  # noqa: B018  (a broken file fails now, not after the model has run)

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            (
                "pope/{coco,aokvqa,gqa}/{coco,aokvqa,gqa}_pope_{random,popular,adversarial}.json",
                "the same names in pope/ or in the folder itself",
            ),
            _in_folder,
            only_part="path",
            rank=0,
        )

    def samples(self) -> tuple[Sample, ...]:
        return self._samples

    def sources(self) -> Mapping[str, str]:
        return {str(self.path): self._source.sha256}

    def versions(self) -> Mapping[str, int]:
        return {name: PARSERS[name].version for name in self.parsers}

    def fields_under(self, setting: str, value: object) -> Mapping[str, Any] | None:
        if setting == "parser":
            return {"parsers": parser_first(value, self.parsers)}
        return super().fields_under(setting, value)

    def count(self, answers: Sequence[Answer]) -> Tally:
        labels = [sample.target == "yes" for sample in self._samples]
        columns = {"one": np.ones(len(labels)), "label": np.array(labels, dtype=np.float64)}
        sums: dict[str, OfSums] = {}
        binary: dict[str, str] = {}
        for i, name in enumerate(self.parsers):
            prefix = "" if i == 0 else f"{name}."
            parser, asked = PARSERS[name], zip(answers, self._samples, strict=True)
            parsed = np.array([parsed_answer(parser, a, s.target or "") for a, s in asked])
            columns[f"{prefix}yes"] = (parsed == "yes").astype(np.float64)
            columns[f"{prefix}unknown"] = (parsed == "unknown").astype(np.float64)
            columns[f"{prefix}right"] = (parsed == np.where(labels, "yes", "no")).astype(np.float64)
            columns[f"{prefix}hit"] = columns["label"] * columns[f"{prefix}yes"]
            sums |= yes_no_metrics(prefix)
            binary[f"{prefix}accuracy"] = f"{prefix}right"
        columns["truncated"] = np.array([float(answer.truncated) for answer in answers])
        sums["truncated"] = lambda s: s["truncated"]
        scores = [a.yes_score for a in answers if a.yes_score is not None]
        if len(scores) < len(answers):
            return Tally(self._samples, columns, sums, binary=binary)
        images = image_index(self._samples)
        columns["yes_score"] = rank_shares(np.array(scores))
        columns["matched"] = matched(columns, images)
        sums["matched_accuracy"] = lambda s: share(s["matched"], s["one"])
        binary["matched_accuracy"] = "matched"
        return Tally(
            self._samples,
            columns,
            sums,
            prepared={"auc": ranked},
            binary=binary,
            fitted={"matched": matched},
        )

    @cached_property
    def _source(self) -> Source:
        return read_source(self.path)

    @cached_property
    def _samples(self) -> tuple[Sample, ...]:
        found: dict[str, Sample] = {}
        for where, row in rows(self._source):
            name = text_of(row, "question_id", where=where)
            if name in found:
                raise CdkitError(f"{where} has the question_id {name} again: each id stands once")
            image = text_of(row, "image", "imange", where=where)
            prompt = text_of(row, "text", where=where)
            label = yes_or_no(text_of(row, "label", where=where), where)
            with located(where):
                found[name] = Sample(
                    name, image, prompt + self.question_suffix, group=image, target=label
                )
        if not found:
            raise CdkitError(f"{self.path} asks nothing: fetch it anew or give another file")
        return tuple(found.values())


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    if is_micro(folder):
        for split in PUBLISHED:
            path = folder / f"micro_pope_{split}.json"
            if path.is_file():
                name, images = f"pope_micro_{split}", folder / "images"
                yield LocatedPart(name, "pope", {"path": path}, images, published=False)
        return
    for photos, pictures in PHOTOS.items():
        # The last two are the folders of POPE's repository, so that a clone of it will do.
        places = ("", "pope", f"pope/{photos}", f"pope/output/{photos}")
        for split in PUBLISHED:
            for place in (*places, f"pope/output/seem/{photos}"):
                for stem in (f"{photos}_pope_{split}", f"{photos}_pope_seem_{split}"):
                    for suffix in (".json", ".jsonl"):
                        path = folder / place / f"{stem}{suffix}"
                        if path.is_file():
                            name = f"pope_{photos}_{split}"
                            yield LocatedPart(name, "pope", {"path": path}, folder / pictures)
