"""CHAIR: which objects does a caption mention that are not in the image?"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float

from cdkit.benchmark import BENCHMARKS, Answer, Benchmark, OfSums, Sample, Tally, check_limit, share
from cdkit.errors import CdkitError
from cdkit.evals.coco import Instances, read_captions, read_instances
from cdkit.evals.files import Source, located, read
from cdkit.evals.object_words import SCORERS, Synonyms, mentions, read_synonyms
from cdkit.registry import unknown


@dataclass(frozen=True)
class Mentions:
    """What one caption says: its length in words, and the node of each object mention in order."""

    words: int
    nodes: tuple[str, ...]


def parse(caption: str, synonyms: Synonyms, scorer: str) -> Mentions:
    """The object mentions of a caption by a named scorer; words are what stands between blanks."""
    nodes = mentions(SCORERS[scorer].lemmas(caption, synonyms), synonyms)
    return Mentions(len(caption.split()), tuple(nodes))


COLUMNS = ("captions", "words", "mentions", "wrong", "wrong_caption", "right", "truth")


def row(said: Mentions, truth: frozenset[str]) -> dict[str, float]:
    """The numbers of one caption: mentions count each time, `right` are distinct objects."""
    wrong = sum(node not in truth for node in said.nodes)
    right = len(truth.intersection(said.nodes))
    values = (1, said.words, len(said.nodes), wrong, wrong > 0, right, len(truth))
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
    "truncated": lambda s: s["truncated"],
}


@final
@BENCHMARKS.register("chair")
@dataclass(frozen=True)
class CHAIR(Benchmark):
    """Objects in captions that are not in the image (COCO-style annotations, one caption an image).

    The truth of an image is its annotated categories and the objects of its reference captions
    (`instances` and `captions`), or is given as JSON `{image id: [objects]}` (`ground_truth`; any
    of the files may end in .gz). `synonyms`: one line an object, `OBJECT, SYNONYM, ...`. `images`
    lists the image files to caption, one a line; without it all images of the truth are taken.
    The list, the prompt and the token limit move the numbers more than most methods do.

    A sample's id is the image id. Metrics: `chair_s`, the share of captions with a wrong object;
    `chair_i`, the share of wrong mentions (repeats count); `recall`, distinct right objects in all
    objects; `f1` of 1 - chair_i and recall; `mean_length` in words; `truncated`, a count. A ratio
    over nothing is 0, and without a mention f1 is 0 too. Scorer `simple` needs no data; its
    numbers stand close to the published lineage's (nltk, WordNet) but are not the same.
    """

    bibtex: ClassVar[str] = """@inproceedings{rohrbach2018chair,
  title={Object Hallucination in Image Captioning},
  author={Rohrbach, Anna and Hendricks, Lisa Anne and Burns, Kaylee and Darrell, Trevor
          and Saenko, Kate},
  booktitle={EMNLP}, year={2018}}"""

    synonyms: Path
    instances: Path | None = None
    captions: Path | None = None
    ground_truth: Path | None = None
    images: Path | None = None
    prompt: str = "Please describe this image in detail."
    scorer: str = "simple"
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        check_limit(self.max_new_tokens)
        both = (self.instances is not None, self.captions is not None)
        if both != ((self.ground_truth is None,) * 2):
            raise CdkitError(
                "CHAIR needs to know what is in the images: give both the instances and the "
                "captions file of COCO, or a ground truth file alone"
            )
        if self.scorer not in SCORERS:
            raise CdkitError(unknown("scorer of captions", self.scorer, SCORERS))
        self._samples  # noqa: B018  (a broken file fails now, not after the model has run)

    def samples(self) -> tuple[Sample, ...]:
        return self._samples

    def sources(self) -> Mapping[str, str]:
        return {str(source.path): source.sha256 for source in self._sources.values()}

    def versions(self) -> Mapping[str, int]:
        return {self.scorer: SCORERS[self.scorer].version}

    def count(self, answers: Sequence[Answer]) -> Tally:
        said = [parse(answer.text, self._synonyms, self.scorer) for answer in answers]
        rows = [row(m, self._truth[s.id]) for m, s in zip(said, self._samples, strict=True)]
        columns = {name: np.array([values[name] for values in rows]) for name in COLUMNS}
        columns["truncated"] = np.array([float(answer.truncated) for answer in answers])
        return Tally(self._samples, columns, METRICS, binary={"chair_s": "wrong_caption"})

    def wrong_objects(self, sample_id: str, caption: str) -> tuple[str, ...]:
        """The mentions of a caption that are not in the image, for showing."""
        if sample_id not in self._truth:
            raise CdkitError(f"no image has the id {sample_id!r} in {self._origin}")
        said = parse(caption, self._synonyms, self.scorer)
        return tuple(node for node in said.nodes if node not in self._truth[sample_id])

    @cached_property
    def _sources(self) -> Mapping[str, Source]:
        paths = {
            "synonyms": self.synonyms,
            "instances": self.instances,
            "captions": self.captions,
            "ground_truth": self.ground_truth,
            "images": self.images,
        }
        return {name: read(path) for name, path in paths.items() if path is not None}

    @property
    def _origin(self) -> str:
        return str(self.ground_truth or self.instances)

    @cached_property
    def _synonyms(self) -> Synonyms:
        return read_synonyms(self._sources["synonyms"])

    @cached_property
    def _instances(self) -> Instances | None:
        source = self._sources.get("instances")
        return None if source is None else read_instances(source)

    @cached_property
    def _truth(self) -> Mapping[str, frozenset[str]]:
        if self._instances is None:
            return _given_truth(self._sources["ground_truth"], self._synonyms)
        captions = read_captions(self._sources["captions"])
        truth: dict[str, frozenset[str]] = {}
        for image, names in self._instances.categories.items():
            if image not in captions:
                raise CdkitError(f"{self.captions} has no caption of image {image}: give its own")
            said = [parse(text, self._synonyms, self.scorer) for text in captions[image]]
            nodes = frozenset(node for m in said for node in m.nodes)
            truth[image] = nodes.union(_node(name, self._synonyms, self._origin) for name in names)
        return truth

    @cached_property
    def _samples(self) -> tuple[Sample, ...]:
        found: dict[str, Sample] = {}
        for where, image, name in self._listed():
            if image not in self._truth:
                raise CdkitError(f"{where}: no image has the id {image} in {self._origin}")
            if image in found:
                raise CdkitError(f"{where}: the image {image} is there a second time: keep one")
            with located(where):
                found[image] = Sample(image, name, self.prompt, group=image)
        return tuple(found.values())

    def _listed(self) -> Iterator[tuple[str, str, str]]:
        """`(FILE:LINE, image id, file name)` of each image to caption."""
        files = {} if self._instances is None else self._instances.id_of
        if self.images is None:
            names = {image: name for name, image in files.items()}
            for image in self._truth:
                yield self._origin, image, names.get(image, coco_name(image))
            return
        for where, line in self._sources["images"].lines():
            name = line.strip()
            yield where, files.get(name) or image_id(name, where), name


def image_id(name: str, where: str) -> str:
    """The image id in a COCO file name: its last number, without leading zeros."""
    numbers = re.findall(r"\d+", name.rsplit("/", 1)[-1].split(".")[0])
    if not numbers:
        raise CdkitError(f"{where}: {name!r} is not in the instances file and holds no image id")
    return str(int(numbers[-1]))


def coco_name(image: str) -> str:
    """The file name of an image of COCO val2014, where no file tells it."""
    return f"COCO_val2014_{image.zfill(12)}.jpg"


def _given_truth(source: Source, synonyms: Synonyms) -> dict[str, frozenset[str]]:
    value = source.json()
    if not isinstance(value, dict) or not value:
        raise CdkitError(f"{source.path} holds no {{image id: [objects]}}: give such a JSON object")
    truth: dict[str, frozenset[str]] = {}
    for image, names in value.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CdkitError(
                f"{source.path}: image {image} has {names!r}: it needs a list of names"
            )
        truth[image] = frozenset(_node(name, synonyms, str(source.path)) for name in names)
    return truth


def _node(name: str, synonyms: Synonyms, path: str) -> str:
    node = synonyms.node_of.get(name.lower())
    if node is None:
        raise CdkitError(
            f"{path} has the object {name!r}, which stands in no line of the synonyms file: add it"
        )
    return node
