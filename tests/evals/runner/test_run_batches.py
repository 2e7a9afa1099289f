"""What goes through the model together: the same after any kill, on any number of processes."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cdkit.evals.runner.batches import AskedSample, BatchPlan, plan_batches, shard
from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.evals.runner.questions import Question

LENGTHS = (5, 9, 5, 7, 7, 9, 5, 6, 5, 30)
TASKS = [
    AskedSample("d", str(i), Question(Path(f"{i}.png"), "q", 16 if i % 3 else 64, True))
    for i in range(len(LENGTHS))
]
SEEDS = (0, 1)


def work(size: int, rows: dict[Key, JournalRow], *, retry: bool = False) -> list[BatchPlan]:
    return plan_batches(TASKS, LENGTHS, size, method="m", seeds=SEEDS, rows=rows, retry=retry)


def made(each: BatchPlan) -> dict[Key, JournalRow]:
    """What the journal holds after the work."""
    found = [
        JournalRow("d", each.tasks[i].id, "m", seed, batch=each.name)
        for seed in each.seeds
        for i in sorted(each.wanted)
    ]
    return {row.key: row for row in found}


sizes, subsets = st.integers(1, 12), st.sets(st.integers(0, 19))


@given(size=sizes)
def test_everything_is_asked_once(size: int) -> None:
    rows: dict[Key, JournalRow] = {}
    for each in work(size, {}):
        new = made(each)
        assert not new.keys() & rows.keys()
        assert len(new) == each.answers and len(each.tasks) <= size
        assert len({task.question.limit for task in each.tasks}) == 1
        rows |= new
    assert len(rows) == len(TASKS) * len(SEEDS)
    assert work(size, rows) == []


@given(size=sizes, later=sizes, done=subsets)
def test_what_is_left_is_asked_once_after_any_stop(size: int, later: int, done: set[int]) -> None:
    everything = [row for each in work(size, {}) for row in made(each).values()]
    rows = {row.key: row for i, row in enumerate(everything) if i in done}
    new: dict[Key, JournalRow] = {}
    for each in work(later, rows):
        assert not made(each).keys() & (rows.keys() | new.keys())
        new |= made(each)
    assert len(rows) + len(new) == len(everything)


@given(size=sizes, stop=st.integers(0, 20))
def test_a_batch_that_was_cut_off_runs_whole(size: int, stop: int) -> None:
    """The rows before `stop` are on the disk: what is left has the mates that it had."""
    first = work(size, {})
    everything = [row for each in first for row in made(each).values()]
    rows = {row.key: row for row in everything[:stop]}
    names = {each.name: each.tasks for each in first}
    for each in work(size, rows):
        assert names[each.name] == each.tasks


def test_lengths_are_neighbours_and_the_longest_come_first() -> None:
    lengths = {task.id: length for task, length in zip(TASKS, LENGTHS, strict=True)}
    of_limit = [each for each in work(2, {}) if each.tasks[0].question.limit == 16]
    found = [lengths[task.id] for each in of_limit for task in each.tasks]
    assert found == sorted(found, reverse=True)


def test_errors_are_asked_again_alone_and_only_then() -> None:
    rows = {key: row for each in work(4, {}) for key, row in made(each).items()}
    broken = next(iter(rows.values()))
    rows[broken.key] = JournalRow(
        broken.data, broken.id, "m", broken.seed, error="x", batch=broken.batch
    )
    assert work(4, rows) == []
    (again,) = work(4, rows, retry=True)
    assert [task.id for task in again.tasks] == [broken.id] and again.seeds == (broken.seed,)


@given(size=sizes, world=st.integers(1, 5))
def test_shards_share_all_work(size: int, world: int) -> None:
    everything = work(size, {})
    shares = [shard(everything, rank, world) for rank in range(world)]
    assert sorted(each.name for share in shares for each in share) == sorted(
        each.name for each in everything
    )
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
