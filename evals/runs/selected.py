"""A benchmark over some of its images: what `--limit` and samples that failed leave of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from cdkit.benchmark import Answer, Benchmark, Sample, Tally
from cdkit.errors import CdkitError


@final
@dataclass(frozen=True)
class Selected(Benchmark):
    """`whole` over the images named in `groups` alone, scored exactly as they are scored in it.

    A metric that also depends on the answers to other images (accuracy at a matched yes-rate, whose
    threshold is fitted on them) has no value here and is left out.
    """

    whole: Benchmark
    groups: frozenset[str]
    max_new_tokens: int

    def samples(self) -> tuple[Sample, ...]:
        return self._samples

    def count(self, answers: Sequence[Answer]) -> Tally:
        given = dict(zip((sample.id for sample in self._samples), answers, strict=True))
        scored = bool(answers) and all(answer.yes_score is not None for answer in answers)
        low, high = (
            self.whole.tally({s.id: given.get(s.id, _filler(far, scored)) for s in self._all})
            for far in (-FAR, FAR)
        )
        kept = np.array([sample.group in self.groups for sample in self._all])
        columns = {
            name: column[kept]
            for name, column in low.columns.items()
            if name in high.columns and np.array_equal(column[kept], high.columns[name][kept])
        }
        sums = {
            name: of
            for name, of in low.sums.items()
            if _computable(Tally(self._samples, columns, {name: of}))
        }
        prepared = {
            name: make
            for name, make in low.prepared.items()
            if _computable(Tally(self._samples, columns, {}, prepared={name: make}))
        }
        binary = {n: c for n, c in low.binary.items() if n in sums and c in columns}
        return Tally(self._samples, columns, sums, prepared=prepared, binary=binary)

    def sources(self) -> Mapping[str, str]:
        return self.whole.sources()

    def versions(self) -> Mapping[str, int]:
        return self.whole.versions()

    @cached_property
    def _all(self) -> tuple[Sample, ...]:
        return self.whole.samples()

    @cached_property
    def _samples(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self._all if sample.group in self.groups)


FAR = 1e3
"""A yes score that stands beyond all others: what changes with its sign depends on it."""


def first_images(benchmark: Benchmark, limit: int | None) -> Benchmark:
    """The benchmark over its first `limit` images; itself where that is all of them."""
    groups = list(dict.fromkeys(sample.group for sample in benchmark.samples()))
    if limit is None or limit >= len(groups):
        return benchmark
    return Selected(benchmark, frozenset(groups[:limit]), benchmark.max_new_tokens)


def answered(benchmark: Benchmark, ids: Collection[str]) -> Benchmark:
    """The benchmark over the images all of whose questions are in `ids`."""
    samples = benchmark.samples()
    lacking = {sample.group for sample in samples if sample.id not in ids}
    if not lacking:
        return benchmark
    groups = frozenset(sample.group for sample in samples) - lacking
    if not groups:
        raise CdkitError(
            "no image has answers to all of its questions: there is nothing to score; mend what "
            "the errors name and run again with --resume --retry-errors"
        )
    whole = benchmark.whole if isinstance(benchmark, Selected) else benchmark
    return Selected(whole, groups, benchmark.max_new_tokens)


def _filler(far: float, scored: bool) -> Answer:
    return Answer("yes" if far > 0 else "no", far if scored else None)


def _computable(tally: Tally) -> bool:
    """Whether the tally's metric needs none of the columns that were left out."""
    try:
        tally.values()
    except KeyError:
        return False
    return True
