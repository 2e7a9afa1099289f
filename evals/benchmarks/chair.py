"""CHAIR: which objects does a caption mention that are not in the image?"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError, check_choice
from cdkit.evals.benchmarks.benchmark_files import Source, located, read_source
from cdkit.evals.benchmarks.chair_truth import ObjectTruth, cached_truth, coco_truth, given_truth
from cdkit.evals.benchmarks.data_folders import PHOTOS, all_files, first_file, is_micro, packed
from cdkit.evals.benchmarks.object_words import SCORERS, SYNONYMS, Synonyms, read_synonyms
from cdkit.evals.benchmarks.repetition import COLUMNS as REPETITION
from cdkit.evals.benchmarks.repetition import METRICS as REPETITION_METRICS
from cdkit.evals.benchmarks.repetition import repetition
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, check_limit
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import OfSums, Tally, share
from cdkit.registry import unknown

UnfinishedSentence = Literal["kept", "dropped"]
SENTENCE_END = re.compile(r"[.!?](?=[\"')\]\s]|$)")
"""Where a sentence ends: at a mark before a blank, a quote or the end of the text."""


def finished_sentences(caption: str) -> str:
    """A caption without what stands behind its last finished sentence; "" where there is none."""
    ends = [end.end() for end in SENTENCE_END.finditer(caption)]
    return caption[: ends[-1]] if ends else ""


def drawn(samples: Sequence[Sample], count: int | None, seed: int | None) -> tuple[Sample, ...]:
    """Choose images: the first ones, or those that a shuffle puts first.

    Args:
        samples: One sample for each image.
        count: How many to take at most; None for all.
        seed: The samples are sorted by the names of their images, then shuffled by Python's
            `random.Random(seed)`; None keeps their order.

    Returns:
        The samples chosen, in their order.
    """
    chosen = list(samples)
    if seed is not None:
        chosen.sort(key=lambda sample: sample.image)
        random.Random(seed).shuffle(chosen)
    return tuple(chosen[:count])


@dataclass(frozen=True)
class Mentions:
    """What one caption says: its length in words, and the node of each object mention in order."""

    words: int
    nodes: tuple[str, ...]


def parse(caption: str, synonyms: Synonyms, scorer: str) -> Mentions:
    """The object mentions of a caption by a named scorer; words are what stands between blanks."""
    return Mentions(len(caption.split()), tuple(SCORERS[scorer].nodes(caption, synonyms)))


COLUMNS = ("captions", "words", "mentions", "wrong", "wrong_caption", "right", "truth")


def row(mentioned: Mentions, truth: frozenset[str]) -> dict[str, float]:
    """The numbers of one caption: mentions count each time, `right` are distinct objects."""
    wrong = sum(node not in truth for node in mentioned.nodes)
    right = len(truth.intersection(mentioned.nodes))
    values = (1, mentioned.words, len(mentioned.nodes), wrong, wrong > 0, right, len(truth))
    return dict(zip(COLUMNS, map(float, values), strict=True))


Ratio = Float[np.ndarray, " resamples"]


def chair_f1(s: Mapping[str, Ratio]) -> Ratio:
    """The harmonic mean of 1 - CHAIR_i (0 where nothing is mentioned) and recall."""
    precision = share(s["mentions"] - s["wrong"], s["mentions"])
    recall = share(s["right"], s["truth"])
    return share(2 * precision * recall, precision + recall)


METRICS: Mapping[str, OfSums] = {
    "chair_s": lambda s: share(s["wrong_caption"], s["captions"]),
    "chair_i": lambda s: share(s["wrong"], s["mentions"]),
    "recall": lambda s: share(s["right"], s["truth"]),
    "f1": chair_f1,
    "mean_length": lambda s: share(s["words"], s["captions"]),
    **REPETITION_METRICS,
    "unknown": lambda s: s["unknown"],
    "truncated": lambda s: s["truncated"],
}


@final
@BENCHMARKS.register("chair")
@dataclass(frozen=True)
class CHAIR(Benchmark):
    """Objects in captions that are not in the image (COCO-style annotations, one caption an image).

    The objects of an image are its annotated categories and the objects that its reference captions
    mention (`instances` and `captions`), or they are given (`ground_truth`). A sample's id is the
    image id.

    Metrics: `chair_s`, the share of captions with a wrong object; `chair_i`, the share of wrong
    mentions (repeats count); `recall`, distinct right objects in all objects; `f1` of 1 - chair_i
    and recall; `mean_length` in words; `distinct_1` and `distinct_2`, words and pairs of words that
    are new in their caption, in all; `repetition_4`, 4-grams that stood in the caption before, in
    all; `truncated` and `unknown`, counts: captions that the token limit ended, and thoughts
    without a caption after them, which mention nothing wrong. A ratio over nothing is 0; without a
    mention, f1 is 0 too. The list of images, the prompt and the token limit move the numbers more
    than most methods do.

    Args:
        synonyms: A file with a line for each object, `OBJECT, SYNONYM, ...`; by default the list
            of CHAIR's authors.
        instances: COCO's `instances_*.json`, one file or several (train and val).
        captions: COCO's `captions_*.json` of the same images.
        ground_truth: JSON `{image id: [objects]}`, instead of `instances` and `captions`. It and
            the two before may end in .gz.
        images: A file that lists the image files to caption, one a line; by default all images
            whose objects are known.
        image_count: Caption so many images at most; by default all that are listed.
        image_seed: Sort the listed images by name and shuffle them under this seed before
            `image_count` are taken; by default the first ones are taken.
        prompt: What the model is asked.
        unfinished_sentence: What happens to the last sentence of a caption that the token limit cut
            off: "kept", or "dropped" before the caption is scored.
        scorer: How words are brought to their base form: "wordnet" as the published scripts do
            (needs nltk and its data), or "simple", which needs no data and gives close numbers.
        max_new_tokens: The token limit of a caption.
        cache: A folder that keeps the objects read from COCO's files.

    Raises:
        CdkitError: The objects are given in neither or both ways, a file cannot be read, an image
            in the list is not known, or the scorer is unknown.
    """

    bibtex: ClassVar[str] = """@inproceedings{rohrbach2018chair,
  title={Object Hallucination in Image Captioning},
  author={Rohrbach, Anna and Hendricks, Lisa Anne and Burns, Kaylee and Darrell, Trevor
          and Saenko, Kate},
  booktitle={EMNLP}, year={2018}}"""

    synonyms: Path | None = None
    instances: Path | tuple[Path, ...] = ()
    captions: Path | tuple[Path, ...] = ()
    ground_truth: Path | None = None
    images: Path | None = None
    image_count: int | None = None
    image_seed: int | None = None
    prompt: str = "Please describe this image in detail."
    unfinished_sentence: str = "kept"
    scorer: str = "simple"
    max_new_tokens: int = 512
    cache: Path | None = None

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        both = (bool(_paths(self.instances)), bool(_paths(self.captions)))
        if both != ((self.ground_truth is None,) * 2):
            raise CdkitError(
                "CHAIR needs to know what is in the images: give both the instances and the "
                "captions file of COCO, or a ground truth file alone"
            )
        if self.scorer not in SCORERS:
            raise CdkitError(unknown("scorer of captions", self.scorer, SCORERS))
        check_choice("unfinished_sentence", self.unfinished_sentence, UnfinishedSentence)
        if self.image_count is not None and self.image_count < 1:
            raise CdkitError(f"image_count is {self.image_count}: give 1 or more")
        if self.image_seed is not None and (self.image_count is None or self.image_seed < 0):
            raise CdkitError(
                f"image_seed is {self.image_seed}: give 0 or more, and how many images to draw "
                "(image_count)"
            )
        self._samples  # noqa: B018  (a broken file fails now, not after the model has run)

    def notes(self, sample_id: str, text: str) -> str:
        wrong = self.wrong_objects(sample_id, text)
        return f"not in the image: {', '.join(dict.fromkeys(wrong))}" if wrong else ""

    @classmethod
    def layout(cls) -> FolderLayout:
        return FolderLayout(
            (
                "coco/annotations/instances_val2014.json with captions_val2014.json (or "
                "chair/ground_truth.json)",
            ),
            _in_folder,
            rank=1,
        )

    def samples(self) -> tuple[Sample, ...]:
        return self._samples

    def sources(self) -> Mapping[str, str]:
        texts = (self._synonym_source, self._image_source)
        hashes = {str(source.path): source.sha256 for source in texts if source is not None}
        return {**hashes, **self._truth.sources}

    def versions(self) -> Mapping[str, int]:
        return {self.scorer: SCORERS[self.scorer].version}

    def fields_under(self, setting: str, value: object) -> Mapping[str, Any] | None:
        names = {"caption_prompt": "prompt", "image_list": "images"}
        return super().fields_under(names.get(setting, setting), value)

    def count(self, answers: Sequence[Answer]) -> Tally:
        return self._count(self._samples, answers)

    def tally_of(self, answers: Mapping[str, Answer]) -> Tally:
        """As `tally`, but only over the images that `answers` are about.

        Args:
            answers: Image id -> caption.

        Returns:
            Their tally, in the order of `samples()`.

        Raises:
            CdkitError: An id belongs to no image.
        """
        if strangers := sorted(answers.keys() - {sample.id for sample in self._samples}):
            raise CdkitError(f"no image has the id {strangers[0]!r} in {self.origin}")
        if not answers:
            raise CdkitError("there is no caption to score: give one or more")
        asked = tuple(sample for sample in self._samples if sample.id in answers)
        return self._count(asked, [answers[sample.id].read() for sample in asked])

    def wrong_objects(self, sample_id: str, caption: str) -> tuple[str, ...]:
        """The objects that a caption mentions and that are not in the image.

        Args:
            sample_id: The image id.
            caption: The caption.

        Returns:
            The wrong objects in the order of their mentions, repeats included.

        Raises:
            CdkitError: The id belongs to no image.
        """
        if sample_id not in self._truth.objects:
            raise CdkitError(f"no image has the id {sample_id!r} in {self.origin}")
        mentioned = self._parse(Answer(caption).read())
        return tuple(node for node in mentioned.nodes if node not in self._truth.objects[sample_id])

    def _count(self, samples: tuple[Sample, ...], answers: Sequence[Answer]) -> Tally:
        mentioned = [self._parse(answer) for answer in answers]
        objects = self._truth.objects
        rows = [row(m, objects[s.id]) for m, s in zip(mentioned, samples, strict=True)]
        columns = {name: np.array([values[name] for values in rows]) for name in COLUMNS}
        repeated = [repetition("" if a.unfinished else a.text) for a in answers]
        columns |= {n: np.array([values[n] for values in repeated]) for n in REPETITION}
        columns["truncated"] = np.array([float(answer.truncated) for answer in answers])
        columns["unknown"] = np.array([float(answer.unfinished) for answer in answers])
        columns["empty"] = np.array([float(not m.words) for m in mentioned]) - columns["unknown"]
        return Tally(samples, columns, METRICS, binary={"chair_s": "wrong_caption"})

    def _parse(self, answer: Answer) -> Mentions:
        text = "" if answer.unfinished else answer.text
        if answer.truncated and self.unfinished_sentence == "dropped":
            text = finished_sentences(text)
        return parse(text, self._synonyms, self.scorer)

    @property
    def origin(self) -> str:
        """The file or files that say which images there are."""
        return ", ".join(map(str, _paths(self.ground_truth or self.instances)))

    @cached_property
    def _synonym_source(self) -> Source:
        return read_source(self.synonyms or SYNONYMS)

    @cached_property
    def _image_source(self) -> Source | None:
        return None if self.images is None else read_source(self.images)

    @cached_property
    def _synonyms(self) -> Synonyms:
        return read_synonyms(self._synonym_source)

    @cached_property
    def _truth(self) -> ObjectTruth:
        if self.ground_truth is not None:
            return given_truth(self.ground_truth, self._synonyms)
        instances, captions = _paths(self.instances), _paths(self.captions)
        if self.cache is None:
            return coco_truth(instances, captions, self._synonyms, self.scorer)
        synonyms = (self._synonym_source.sha256, self._synonyms)
        return cached_truth(self.cache, instances, captions, synonyms, self.scorer)

    @cached_property
    def _samples(self) -> tuple[Sample, ...]:
        found: dict[str, Sample] = {}
        for where, image, name in self._listed():
            if image not in self._truth.objects:
                raise CdkitError(f"{where}: no image has the id {image} in {self.origin}")
            if image in found:
                raise CdkitError(f"{where}: the image {image} is there a second time: keep one")
            with located(where):
                found[image] = Sample(image, name, self.prompt, group=image)
        if not found:
            raise CdkitError(f"{self.origin} is about no image: fetch it anew or give another file")
        return drawn([*found.values()], self.image_count, self.image_seed)

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        """`(FILE:LINE, image id, file name)` of each image to caption."""
        files = self._truth.id_of
        if self._image_source is None:
            names = {image: name for name, image in files.items()}
            for image in self._truth.objects:
                yield self.origin, image, names.get(image, coco_name(image))
            return
        for where, line in self._image_source.lines():
            name = line.strip()
            yield where, files.get(name) or image_id(name, where), name


def _paths(one: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return (one,) if isinstance(one, Path) else one


def image_id(name: str, where: str) -> str:
    """The image id in a COCO file name: its last number, without leading zeros."""
    numbers = re.findall(r"\d+", name.rsplit("/", 1)[-1].split(".")[0])
    if not numbers:
        raise CdkitError(f"{where}: {name!r} is not in the instances file and holds no image id")
    return str(int(numbers[-1]))


def coco_name(image: str) -> str:
    """The file name of an image of COCO val2014, if no file names it."""
    return f"COCO_val2014_{image.zfill(12)}.jpg"


def _in_folder(folder: Path) -> Iterator[LocatedPart]:
    if is_micro(folder):
        from cdkit.evals.microworld.text import CAPTION_PROMPT

        names = {
            "synonyms": "synonyms.txt",
            "instances": "instances.json",
            "captions": "captions.json",
            "images": "caption_images.txt",
        }
        files = all_files("chair", folder, names)
        # A caption of this world fits into 48 tokens: the limit of the default grid, too.
        settings = {"prompt": CAPTION_PROMPT, "max_new_tokens": 48}
        yield LocatedPart("chair", "chair", files, folder / "images", settings, published=False)
        return
    truth = first_file(folder, *packed("chair/ground_truth.json"))
    annotated = {
        "instances": "coco/annotations/instances_val2014.json",
        "captions": "coco/annotations/captions_val2014.json",
    }
    if truth is not None:
        files = {"ground_truth": truth}
    elif (folder / "chair").is_dir() or first_file(
        folder, *packed(annotated["captions"])
    ) is not None:
        files = all_files("chair", folder, annotated)
    else:
        return  # the instances alone are there for other things, such as to build POPE
    for key, name in (("synonyms", "chair/synonyms.txt"), ("images", "chair/images.txt")):
        if (folder / name).is_file():
            files[key] = folder / name
    yield LocatedPart("chair", "chair", files, folder / PHOTOS["coco"])
