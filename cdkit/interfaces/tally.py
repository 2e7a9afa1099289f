"""Numbers made from a run's answers, and metrics as functions of image weights."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float, Int

from cdkit.errors import CdkitError
from cdkit.interfaces.sample import Sample

OfSums = Callable[[Mapping[str, Float[np.ndarray, " resamples"]]], Float[np.ndarray, " resamples"]]
"""A metric: the weighted sum of each column -> the metric's value."""
Weighed = Callable[[Float[np.ndarray, "resamples images"]], Float[np.ndarray, " resamples"]]
"""A metric: the weight of each image -> the metric's value."""
Prepare = Callable[
    [Mapping[str, Float[np.ndarray, " samples"]], Int[np.ndarray, " samples"]], Weighed
]
"""Makes a metric: the columns, and the number of each sample's image -> a function of weights."""
Fit = Callable[
    [Mapping[str, Float[np.ndarray, " samples"]], Int[np.ndarray, " samples"]],
    Float[np.ndarray, " samples"],
]
"""Makes a column: the columns, and the number of each sample's image -> one number a sample."""


def share(
    part: Float[np.ndarray, " resamples"], whole: Float[np.ndarray, " resamples"]
) -> Float[np.ndarray, " resamples"]:
    """Divide: every ratio of a benchmark is defined so.

    Args:
        part: The numerator, such as weighted counts.
        whole: The denominator.

    Returns:
        `part / whole`, and 0 where `whole` is not above 0.
    """
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def image_index(samples: Sequence[Sample]) -> Int[np.ndarray, " samples"]:
    """Number the images of samples.

    Args:
        samples: The samples.

    Returns:
        For each sample the number of its image, from 0 in the order of first appearance.
    """
    index: dict[str, int] = {}
    numbers = [index.setdefault(sample.group, len(index)) for sample in samples]
    return np.array(numbers, dtype=np.int64)


@final
@dataclass(frozen=True, eq=False)
class Tally:
    """Numbers made from one run's answers, and the metrics as functions of image weights.

    Raises:
        ValueError: If a column has not one number for each sample, or a metric is defined twice.
    """

    samples: tuple[Sample, ...]
    """The questions, in the order of the answers."""
    columns: Mapping[str, Float[np.ndarray, " samples"]]
    """Name -> one number for each sample."""
    sums: Mapping[str, OfSums]
    """Metric -> a function of the weighted sums of the columns."""
    prepared: Mapping[str, Prepare] = field(default_factory=dict)
    """Metric -> what makes it. It is called once, with the columns and the samples' image numbers,
    and returns a function of image weights."""
    binary: Mapping[str, str] = field(default_factory=dict)
    """Metric that only counts a column of zeros and ones -> that column."""
    fitted: Mapping[str, Fit] = field(default_factory=dict)
    """Column that depends on other samples too, such as by a threshold chosen on them -> what makes
    it. Where samples are left out, the column is computed again from those that remain."""
    joint: Int[np.ndarray, " samples"] | None = None
    """Samples with the same number are scored together: where one is left out, so are the others.
    None where each sample is scored by itself."""

    def __post_init__(self) -> None:
        wrong = [n for n, column in self.columns.items() if column.shape != (len(self.samples),)]
        if wrong:
            raise ValueError(f"columns {wrong} do not hold one number for each sample")
        if twice := self.sums.keys() & self.prepared.keys():
            raise ValueError(f"metrics {sorted(twice)} are defined twice")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics."""
        return (*self.sums, *self.prepared)

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The groups in the order of first appearance: the columns of a weight matrix."""
        return tuple(dict.fromkeys(sample.group for sample in self.samples))

    @cached_property
    def image_of(self) -> Int[np.ndarray, " samples"]:
        """The index in `images` of each sample."""
        return image_index(self.samples)

    @cached_property
    def by_image(self) -> Mapping[str, Float[np.ndarray, " images"]]:
        """Each column summed over the samples of an image."""
        count = len(self.images)
        return {
            name: np.bincount(self.image_of, weights=column, minlength=count)
            for name, column in self.columns.items()
        }

    def at(
        self, weights: Float[np.ndarray, "resamples images"], only: Collection[str] | None = None
    ) -> dict[str, Float[np.ndarray, " resamples"]]:
        """Compute the metrics under image weights.

        Args:
            weights: For each resample the weight of each image; 1 counts an image once.
            only: The names of the metrics to compute; None for all.

        Returns:
            Metric -> its value for each resample.
        """
        table = weights @ np.stack(list(self.by_image.values()), axis=1)  # resamples, columns
        sums = {name: table[:, i] for i, name in enumerate(self.by_image)}
        found = {n: of(sums) for n, of in self.sums.items() if only is None or n in only}
        for name, prepare in self.prepared.items():
            if only is None or name in only:
                if name not in self._ready:
                    self._ready[name] = prepare(self.columns, self.image_of)
                found[name] = self._ready[name](weights)
        return found

    @cached_property
    def _ready(self) -> dict[str, Weighed]:
        return {}  # filled by `at`, each metric when it is first needed

    def values(self) -> dict[str, float]:
        """Compute the metrics of the answers as they are: every image has the weight 1.

        Returns:
            Metric -> its value.
        """
        return {n: float(v[0]) for n, v in self.at(np.ones((1, len(self.images)))).items()}

    def without(self, ids: Collection[str]) -> "Tally":
        """Leave samples out, as if the benchmark did not have them.

        Args:
            ids: The ids of the samples to leave out.

        Returns:
            The tally of the other samples.

        Raises:
            CdkitError: If no sample remains.
        """
        out = np.array([sample.id in ids for sample in self.samples], dtype=np.bool_)
        if self.joint is not None:
            out = (np.bincount(self.joint, weights=out) > 0)[self.joint]
        if out.all():
            raise CdkitError(f"all {len(out)} samples are left out: nothing remains to be scored")
        samples = tuple(s for s, gone in zip(self.samples, out, strict=True) if not gone)
        columns = {name: column[~out] for name, column in self.columns.items()}
        images = image_index(samples)
        columns |= {name: fit(columns, images) for name, fit in self.fitted.items()}
        joint = None if self.joint is None else self.joint[~out]
        return dataclasses.replace(self, samples=samples, columns=columns, joint=joint)
