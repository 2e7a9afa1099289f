"""What goes through the model together: the same after any kill, on any number of processes."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import cdkit
from cdkit.evals.runner.batches import BatchPlan, plan_batches, shard
from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.workload import Workload

LENGTHS = (5, 9, 5, 7, 7, 9, 5, 6, 5, 30)
QUESTIONS = [
    Question(Path(f"{i}.png"), "q", 16 if i % 3 else 64, yes_no=i != 7) for i in range(len(LENGTHS))
]
METHODS = {name: cdkit.load(name) for name in ("plain", "cmac", "cmac_cmpc", "opera")}
ASKED = {
    "plain": frozenset({Decode("sample", 0), Decode("sample", 1), Decode("beam")}),
    "cmac": frozenset({Decode("sample", 0), Decode("sample", 1)}),
    "cmac_cmpc": frozenset({Decode("sample", 0)}),
    "opera": frozenset({Decode("beam")}),
}
EACH = 7
"""Answers to a question."""
LOAD = Workload(METHODS, dict.fromkeys(QUESTIONS, ASKED), first_token=True, root=Path("run"))


def work(
    size: int,
    rows: Mapping[Key, JournalRow],
    *,
    retry: bool = False,
    first: bool = True,
    without: Mapping[str, str] | None = None,
) -> list[BatchPlan]:
    return plan_batches(
        LOAD, LENGTHS, size, model="m", rows=rows, first_step=first, without=without, retry=retry
    )


def made(each: BatchPlan) -> dict[Key, JournalRow]:
    """What the journal holds after the work, in its order."""
    found = []
    for plan in each.groups:
        for i, j in sorted(plan.wanted):
            method, decode = plan.group.asked[j]
            key = ("m", each.keys[i], method, decode.mode, decode.seed)
            found.append(JournalRow(*key, batch=each.name))
    return {row.key: row for row in found}


sizes, subsets = st.integers(1, 12), st.sets(st.integers(0, EACH * len(QUESTIONS)))
flags = st.booleans()


@given(size=sizes, first=flags)
def test_everything_is_asked_once(size: int, first: bool) -> None:
    rows: dict[Key, JournalRow] = {}
    for each in work(size, {}, first=first):
        new = made(each)
        assert not new.keys() & rows.keys()
        assert len(new) == each.answers and len(each.questions) <= size
        assert len({question.limit for question in each.questions}) == 1
        rows |= new
    assert len(rows) == len(QUESTIONS) * EACH
    assert rows.keys() == set(LOAD.rows("m"))
    assert work(size, rows, first=first) == []


@given(size=sizes, later=sizes, done=subsets, first=flags)
def test_what_is_left_is_asked_once_after_any_stop(
    size: int, later: int, done: set[int], first: bool
) -> None:
    everything = [row for each in work(size, {}, first=first) for row in made(each).values()]
    rows = {row.key: row for i, row in enumerate(everything) if i in done}
    new: dict[Key, JournalRow] = {}
    for each in work(later, rows, first=first):
        assert not made(each).keys() & (rows.keys() | new.keys())
        new |= made(each)
    assert len(rows) + len(new) == len(everything)


@given(size=sizes, stop=st.integers(0, 70), first=flags)
def test_a_batch_that_was_cut_off_runs_whole(size: int, stop: int, first: bool) -> None:
    """The rows before `stop` are on the disk: what is left has the mates that it had."""
    before = work(size, {}, first=first)
    everything = [row for each in before for row in made(each).values()]
    rows = {row.key: row for row in everything[:stop]}
    names = {each.name: each for each in before}
    for each in work(size, rows, first=first):
        assert names[each.name].questions == each.questions
        whole = {plan.group for plan in names[each.name].groups}
        assert {plan.group for plan in each.groups} <= whole


def test_lengths_are_neighbours_and_the_longest_come_first() -> None:
    lengths = dict(zip(QUESTIONS, LENGTHS, strict=True))
    of_limit = [each for each in work(2, {}, first=False) if each.questions[0].limit == 16]
    found = [lengths[question] for each in of_limit for question in each.questions]
    assert found == sorted(found, reverse=True)


def test_methods_share_a_pass_where_the_first_step_decides() -> None:
    """A beam search, and a method with a loop of its own, are generated."""
    (decided,) = (
        each for each in work(99, {}) if each.questions[0].limit == 16 and each.answers > 8
    )
    shared = [plan.group.asked for plan in decided.groups if plan.group.shared]
    alone = [plan.group.asked for plan in decided.groups if not plan.group.shared]
    assert [{name for name, _ in asked} for asked in shared] == [{"plain"}, {"cmac", "cmac_cmpc"}]
    assert alone == [(("plain", Decode("beam")),), (("opera", Decode("beam")),)]
    for each in work(99, {}, first=False):
        assert not any(plan.group.shared for plan in each.groups)


def test_an_open_question_is_never_decided_by_its_first_token() -> None:
    for each in work(99, {}):
        if not all(question.yes_no for question in each.questions):
            assert not any(plan.group.shared for plan in each.groups)
            assert not any(question.yes_no for question in each.questions)


def test_a_method_that_the_model_refuses_is_not_asked() -> None:
    rows = {key for each in work(4, {}, without={"cmac": "why"}) for key in made(each)}
    assert rows == {key for key in LOAD.rows("m") if key[2] != "cmac"}


def test_errors_are_asked_again_alone_and_only_then() -> None:
    rows = {key: row for each in work(4, {}) for key, row in made(each).items()}
    broken = next(iter(rows.values()))
    rows[broken.key] = JournalRow(*broken.key, error="x", batch=broken.batch)
    assert work(4, rows) == []
    (again,) = work(4, rows, retry=True)
    assert list(again.keys) == [broken.question] and made(again).keys() == {broken.key}


@st.composite
def asked_images(draw: st.DrawFn) -> tuple[list[Question], list[int]]:
    """Questions about some images, in any order, with the lengths of their prompts."""
    images = draw(st.lists(st.integers(0, 5), min_size=1, max_size=40))
    lengths = draw(st.lists(st.integers(7, 9), min_size=len(images), max_size=len(images)))
    return [
        Question(Path(f"{image}.png"), f"q{i}", 16, yes_no=True) for i, image in enumerate(images)
    ], lengths


def plans_of(questions: list[Question], lengths: list[int], size: int) -> list[BatchPlan]:
    load = Workload(METHODS, dict.fromkeys(questions, ASKED), first_token=True, root=Path("run"))
    return plan_batches(load, lengths, size, model="m", rows={}, first_step=False)


@given(asked=asked_images(), size=sizes)
def test_equal_images_cost_no_batch_and_no_padding(
    asked: tuple[list[Question], list[int]], size: int
) -> None:
    questions, lengths = asked
    length_of = dict(zip(questions, lengths, strict=True))
    plans = plans_of(questions, lengths, size)
    assert sorted(q.prompt for p in plans for q in p.questions) == sorted(
        q.prompt for q in questions
    )
    assert len(plans) == -(-len(questions) // size)
    longest = [max(length_of[q] for q in plan.questions) for plan in plans]
    assert longest == sorted(longest, reverse=True)
    mixed = [plan for plan in plans if len({length_of[q] for q in plan.questions}) > 1]
    assert len(mixed) < len(set(lengths))  # as where they are cut from a list sorted by length
    runs = [list(run) for _, run in groupby(plans, key=lambda plan: plan.images)]
    assert all(
        len({length_of[q] for p in run for q in p.questions}) == 1 for run in runs if run[1:]
    )


def test_batches_with_equal_images_follow_each_other() -> None:
    """Of 4 images with 5 questions each: all 4 at once; then what is left."""
    questions = [Question(Path(f"{i % 4}.png"), f"q{i}", 16, yes_no=True) for i in range(20)]
    names = [tuple(path.stem for path in p.images) for p in plans_of(questions, [9] * 20, 4)]
    assert names == [("0", "1", "2", "3")] * 5
    of_eight = [tuple(path.stem for path in p.images) for p in plans_of(questions, [9] * 20, 8)]
    assert of_eight[:2] == [("0", "1", "2", "3") * 2] * 2 and len(of_eight) == 3
    of_six = [tuple(path.stem for path in p.images) for p in plans_of(questions, [9] * 20, 6)]
    assert of_six[0] == of_six[1] == ("0", "1", "2") * 2 and len(of_six) == 4
    alone = [path.stem for p in plans_of(questions, [9] * 20, 1) for path in p.images]
    assert alone == [name for name in "0123" for _ in range(5)]


@given(asked=asked_images(), size=sizes, world=st.integers(1, 5))
def test_shards_keep_equal_images_together(
    asked: tuple[list[Question], list[int]], size: int, world: int
) -> None:
    plans = plans_of(*asked, size)
    shares = [shard(plans, rank, world) for rank in range(world)]
    assert sorted(p.name for share in shares for p in share) == sorted(p.name for p in plans)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def runs(some: list[BatchPlan]) -> int:
        return len(list(groupby(some, key=lambda plan: plan.images)))

    # a run is cut only for a process that would be idle, and then in halves
    assert sum(map(runs, shares)) <= runs(plans) + world * len(plans).bit_length() * (world > 1)


def test_a_process_has_all_batches_with_the_same_images() -> None:
    questions = [Question(Path(f"{i % 8}.png"), f"q{i}", 16, yes_no=True) for i in range(40)]
    plans = plans_of(questions, [9] * 40, 2)
    for rank in range(2):
        share = shard(plans, rank, 2)
        assert len(share) == 10 and len({plan.images for plan in share}) == 2


def test_a_process_is_not_idle_while_another_has_work() -> None:
    questions = [Question(Path(f"{i % 2}.png"), f"q{i}", 16, yes_no=True) for i in range(16)]
    plans = plans_of(questions, [9] * 16, 2)
    assert [len(shard(plans, rank, 3)) for rank in range(3)] == [3, 3, 2]
    assert len({plan.images for plan in plans}) == 1


@given(size=sizes, world=st.integers(1, 5))
def test_shards_share_all_work(size: int, world: int) -> None:
    everything = work(size, {})
    shares = [shard(everything, rank, world) for rank in range(world)]
    assert sorted(each.name for share in shares for each in share) == sorted(
        each.name for each in everything
    )
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_run_s_folder_may_be_moved(tmp_path: Path) -> None:
    def key(root: Path, image: Path) -> str:
        asked = {Question(image, "q", 4, True): ASKED}
        (found,) = Workload(METHODS, asked, True, root).keys.values()
        return found

    one, two = tmp_path / "one", tmp_path / "two"
    assert key(one, one / "world" / "a.png") == key(two, two / "world" / "a.png")
    assert key(one, tmp_path / "a.png") == key(two, tmp_path / "a.png")
    assert key(one, one / "a.png") != key(one, tmp_path / "a.png")
