"""Which questions go through the model together, and which of them still have to.

Batches are fixed from ALL questions of a run before a resume considers finished answers. So for one
batch size they are the same after a restart and on any number of processes, and so are the rounding
errors that the other rows of a batch cause.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdkit.evals.runner.fingerprints import RunPart, data_hash
from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.evals.runner.questions import Question, asked_of
from cdkit.interfaces.benchmark import Benchmark, Sample


@dataclass(frozen=True)
class AskedSample:
    """A sample of a part, as it is asked; `data` is its part's hash."""

    data: str
    id: str
    question: Question


@dataclass(frozen=True)
class BatchPlan:
    """Samples to answer together under each of `seeds`; the answers of `wanted` are written.

    The others were answered before; they only keep the batch as it was (see `_plans`).
    """

    name: str
    tasks: tuple[AskedSample, ...]
    wanted: frozenset[int]
    """Indices of `tasks`."""
    seeds: tuple[int | None, ...]

    @property
    def answers(self) -> int:
        """How many journal rows it writes."""
        return len(self.wanted) * len(self.seeds)


def asked_in(part: RunPart, limit: int | None) -> list[AskedSample]:
    """The part's samples in their order; with `limit` those of its first so many images."""
    benchmark, data = part.benchmark, data_hash(part.benchmark)
    return [
        AskedSample(data, s.id, asked_of(s, part.images, benchmark.max_new_tokens))
        for s in asked_samples(benchmark, limit)
    ]


def asked_samples(benchmark: Benchmark, limit: int | None) -> list[Sample]:
    """All samples; with `limit` those of the first so many images."""
    samples = benchmark.samples()
    kept = set(list(dict.fromkeys(sample.group for sample in samples))[:limit])
    return [sample for sample in samples if sample.group in kept]


def plan_batches(
    tasks: Sequence[AskedSample],
    lengths: Sequence[int],
    size: int,
    *,
    method: str,
    seeds: Sequence[int | None],
    rows: Mapping[Key, JournalRow],
    retry: bool = False,
) -> list[BatchPlan]:
    """Plan the batches that are left, the longest first, so that memory runs out at once or never.

    A batch has one token limit and neighbouring lengths.

    Args:
        tasks: All samples of the run.
        lengths: Tokens of each sample's prompt.
        size: Samples in a batch.
        method: The method's hash.
        seeds: The seeds to answer under.
        rows: Finished rows of the journal.
        retry: Whether rows with an error are tried again.

    Returns:
        The batches in the order to run them.
    """
    order = sorted(range(len(tasks)), key=lambda i: (-tasks[i].question.limit, -lengths[i], i))
    groups: dict[int, list[AskedSample]] = {}
    for index in order:
        groups.setdefault(tasks[index].question.limit, []).append(tasks[index])
    found: list[BatchPlan] = []
    for group in groups.values():
        for start in range(0, len(group), size):
            batch = tuple(group[start : start + size])
            found += _plans(batch, method, seeds, rows, retry)
    return found


def batch_name(tasks: Sequence[AskedSample]) -> str:
    text = "\n".join(f"{task.data} {task.id}" for task in tasks)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plans(
    tasks: tuple[AskedSample, ...],
    method: str,
    seeds: Sequence[int | None],
    rows: Mapping[Key, JournalRow],
    retry: bool,
) -> list[BatchPlan]:
    """The plans of one batch: seeds that lack the same answers share one.

    If a kill interrupted the writing of this batch, all of it runs again, so that the lost answers
    are made in the same batch as before.
    """
    name = batch_name(tasks)
    by_need: dict[tuple[bool, frozenset[int]], list[int | None]] = {}
    for seed in seeds:
        done = [rows.get((task.data, task.id, method, seed)) for task in tasks]
        absent = {i for i, row in enumerate(done) if row is None}
        again = {i for i, row in enumerate(done) if retry and row is not None and row.error}
        torn = bool(absent) and any(row is not None and row.batch == name for row in done)
        if wanted := frozenset(absent | again):
            by_need.setdefault((torn, wanted), []).append(seed)
    return [
        _cut(name, tasks, wanted, tuple(alike), whole=torn)
        for (torn, wanted), alike in by_need.items()
    ]


def _cut(
    name: str,
    tasks: tuple[AskedSample, ...],
    wanted: frozenset[int],
    seeds: tuple[int | None, ...],
    *,
    whole: bool,
) -> BatchPlan:
    if whole:
        return BatchPlan(name, tasks, wanted, seeds)
    kept = tuple(task for i, task in enumerate(tasks) if i in wanted)
    return BatchPlan(batch_name(kept), kept, frozenset(range(len(kept))), seeds)


def shard(plans: Sequence[BatchPlan], rank: int, world: int) -> list[BatchPlan]:
    """The share of one of `world` processes: none has work twice, all have about as much."""
    return list(plans[rank::world])
