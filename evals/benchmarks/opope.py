"""OPOPE: POPE's questions, answered from captions. Is the object mentioned?"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import Source, read_source, rows
from cdkit.evals.benchmarks.column_metrics import sum_of
from cdkit.evals.benchmarks.object_words import SCORERS as WORDS
from cdkit.evals.benchmarks.object_words import SYNONYMS, Synonyms, read_synonyms
from cdkit.evals.benchmarks.pope import POPE, yes_no_metrics
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally, share
from cdkit.registry import unknown

BETA = 0.2
"""Of the F-measure: precision counts 25 times as much as recall, as the paper has it."""
OFFICIAL = "official"
ASKED = re.compile(r"is there (?:an?|the) (.+?) in the im(?:a|an)ge *\??", re.IGNORECASE)


@dataclass(frozen=True)
class Polled:
    """The questions about one image.

    Args:
        sample: The caption's sample.
        objects: What is asked for, and whether it is there.
    """

    sample: Sample
    objects: tuple[tuple[str, bool], ...]


def mentions_any_word(caption: str, name: str) -> bool:
    """Whether an object is mentioned, as HALC's script has it.

    BillChan226/HALC 5feca62, eval/opope_eval.py, `recorder`: any word of the object's name is a
    part of the caption, letter by letter. So "scarf" mentions a car, "light" a traffic light, and
    "puppy" no dog.

    Args:
        caption: The caption.
        name: The object's name.
    """
    return any(word in caption for word in name.split(" "))


def f_beta(prefix: str) -> OfSums:
    """The F-measure at `BETA`, from the sums of the columns `PREFIXhit`, `PREFIXyes`, `label`."""
    weight = BETA * BETA

    def of(s: Mapping[str, Float[np.ndarray, " resamples"]]) -> Float[np.ndarray, " resamples"]:
        return share((1 + weight) * s[f"{prefix}hit"], weight * s["label"] + s[f"{prefix}yes"])

    return of


@final
@BENCHMARKS.register("opope")
@dataclass(frozen=True)
class OPOPE(Benchmark):
    """Object hallucination by POPE's questions, answered from a caption of each image.

    A question is answered yes where the caption mentions the object. Nothing is asked of the model
    but the caption, so a tendency to say yes does not count. A sample is an image; its id is the
    number in the image's name, as in CHAIR's captions.

    Metrics over the questions, fractions of one: `accuracy`, `precision`, `recall`, `f1`, `f_beta`
    (beta 0.2: captions mention few objects, so the paper favours precision) and `yes_ratio`;
    `unknown` counts thoughts without a caption after them, which mention nothing, `truncated`
    captions that the token limit ended. HALC's script draws its questions itself, from the images
    that have a caption: take the file of questions as a part of the result.

    Args:
        path: A POPE file (see `POPE`), whose questions are "Is there a THING in the image?" or
            THING alone.
        scorers: What counts as a mention: "official" (HALC's script: a word of the object's name is
            a part of the caption), or "simple" or "wordnet" (CHAIR's: the object or a synonym is
            mentioned). Metrics of the first have plain names, those of others are called
            `simple.f1` and so on.
        synonyms: For CHAIR's scorers a file with a line for each object, `OBJECT, SYNONYM, ...`; by
            default the list of CHAIR's authors.
        prompt: What the model is asked.
        max_new_tokens: The token limit of a caption.

    Raises:
        CdkitError: A file cannot be read, a question is of another form, two images have one
            number, a scorer is unknown, or it does not know an object.
    """

    bibtex: ClassVar[str] = """@inproceedings{chen2024halc,
  title={{HALC}: Object Hallucination Reduction via Adaptive Focal-Contrast Decoding},
  author={Chen, Zhaorun and Zhao, Zhuokai and Luo, Hongyin and Yao, Huaxiu and Li, Bo
          and Zhou, Jiawei},
  booktitle={ICML}, year={2024}}"""

    path: Path
    scorers: tuple[str, ...] = (OFFICIAL,)
    synonyms: Path | None = None
    prompt: str = "Please describe this image in detail."
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        if not self.scorers or len(set(self.scorers)) < len(self.scorers):
            raise CdkitError(f"scorers are {self.scorers}: name one or more, none twice")
        for name in self.scorers:
            if name != OFFICIAL and name not in WORDS:
                raise CdkitError(unknown("scorer of OPOPE", name, (OFFICIAL, *WORDS)))
        self._polled  # noqa: B018  (a broken file fails now, not after the model has run)
        self._mentions  # noqa: B018

    def samples(self) -> tuple[Sample, ...]:
        return tuple(polled.sample for polled in self._polled)

    def sources(self) -> Mapping[str, str]:
        found = {str(self.path): self._source.sha256}
        if self.scorers != (OFFICIAL,):
            found[str(self._synonym_source.path)] = self._synonym_source.sha256
        return found

    def versions(self) -> Mapping[str, int]:
        return {name: 1 if name == OFFICIAL else WORDS[name].version for name in self.scorers}

    def count(self, answers: Sequence[Answer]) -> Tally:
        polled = self._polled
        there = [[yes for _, yes in one.objects] for one in polled]
        columns = {
            "one": np.array([float(len(labels)) for labels in there]),
            "label": np.array([float(sum(labels)) for labels in there]),
            "unknown": np.array([float(answer.unfinished) for answer in answers]),
            "truncated": np.array([float(answer.truncated) for answer in answers]),
            "empty": np.array([float(not answer.text.split()) for answer in answers]),
        }
        sums: dict[str, OfSums] = {}
        for i, name in enumerate(self.scorers):
            prefix, mentioned = "" if i == 0 else f"{name}.", self._mentions[name]
            pairs = zip(polled, answers, strict=True)
            said = [mentioned("" if a.unfinished else a.text, one) for one, a in pairs]
            both = [list(zip(*each, strict=True)) for each in zip(said, there, strict=True)]
            counts = {
                "yes": [sum(yes for yes, _ in each) for each in both],
                "hit": [sum(yes and label for yes, label in each) for each in both],
                "right": [sum(yes == label for yes, label in each) for each in both],
            }
            columns |= {f"{prefix}{k}": np.array(v, dtype=np.float64) for k, v in counts.items()}
            of = yes_no_metrics(prefix)
            del of[f"{prefix}unknown"]
            sums |= {**of, f"{prefix}f_beta": f_beta(prefix)}
        sums |= {name: sum_of(name) for name in ("unknown", "truncated")}
        return Tally(self.samples(), columns, sums)

    def asked_about(self, images: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The objects that are asked for in some images.

        Args:
            images: Ids of samples.

        Returns:
            Sample id -> the objects, in the order of the questions.
        """
        return {
            polled.sample.id: tuple(name for name, _ in polled.objects)
            for polled in self._polled
            if polled.sample.id in images
        }

    @cached_property
    def _source(self) -> Source:
        return read_source(self.path)

    @cached_property
    def _synonym_source(self) -> Source:
        return read_source(self.synonyms or SYNONYMS)

    @cached_property
    def _asked(self) -> tuple[tuple[str, Sample, str], ...]:
        """(place, POPE's sample, object) of each question."""
        found = []
        questions = POPE(self.path).samples()
        for (where, _), sample in zip(rows(self._source), questions, strict=True):
            text = " ".join(sample.prompt.split())
            asked = ASKED.fullmatch(text)
            if asked is None and ("?" in text or len(text.split()) > 3):
                raise CdkitError(
                    f"{where} asks {sample.prompt!r}: a caption answers 'Is there a THING in the "
                    "image?' only"
                )
            found.append((where, sample, text if asked is None else asked[1]))
        return tuple(found)

    @cached_property
    def _polled(self) -> tuple[Polled, ...]:
        objects: dict[str, list[tuple[str, bool]]] = {}
        images: dict[str, str] = {}
        for where, sample, name in self._asked:
            number = image_number(sample.image)
            if images.setdefault(number, sample.image) != sample.image:
                raise CdkitError(
                    f"{where} is about {sample.image}, and {images[number]} has the same number: "
                    "captions are found by the number in an image's name"
                )
            objects.setdefault(number, []).append((name, sample.target == "yes"))
        return tuple(
            Polled(Sample(number, images[number], self.prompt, group=number), tuple(asked))
            for number, asked in objects.items()
        )

    @cached_property
    def _mentions(self) -> Mapping[str, Callable[[str, Polled], list[bool]]]:
        """Scorer -> (caption, the image's questions) -> whether each object is mentioned."""
        return {
            name: by_official_rule if name == OFFICIAL else self._by_words(name)
            for name in self.scorers
        }

    def _by_words(self, scorer: str) -> Callable[[str, Polled], list[bool]]:
        synonyms: Synonyms = read_synonyms(self._synonym_source)
        for where, _, name in self._asked:
            if name.lower() not in synonyms.node_of:
                raise CdkitError(
                    f"{where} asks for {name!r}, which stands in no line of "
                    f"{self._synonym_source.path}: add it, or take the scorer {OFFICIAL!r}"
                )

        def mentioned(caption: str, polled: Polled) -> list[bool]:
            nodes = set(WORDS[scorer].nodes(caption, synonyms))
            return [synonyms.node_of[name.lower()] in nodes for name, _ in polled.objects]

        return mentioned


def by_official_rule(caption: str, polled: Polled) -> list[bool]:
    """Whether each object that is asked for is mentioned, by `mentions_any_word`."""
    return [mentions_any_word(caption, name) for name, _ in polled.objects]


def image_number(name: str) -> str:
    """What captions call an image: the last number in its name, or the name without its ending.

    Args:
        name: An image's file name, or what a file of captions has as `image_id`.
    """
    stem = re.sub(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)$", "", name.rsplit("/", 1)[-1], flags=re.I)
    numbers = re.findall(r"\d+", stem)
    return str(int(numbers[-1])) if numbers else stem
