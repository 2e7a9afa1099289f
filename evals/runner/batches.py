"""Which questions go through the model together, and which of them still have to.

Batches are fixed from ALL questions of a run before a resume considers finished answers. So for one
batch size they are the same after a restart and on any number of processes, and so are the rounding
errors that the other rows of a batch cause.

Of questions with prompts of one length, those about the same images are put into batches that have
equal images and follow each other: then the image encoder runs once for them (`encoder_cache`).
"""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from cdkit.evals.runner.journal import JournalRow, Key
from cdkit.evals.runner.modes import BEAM, Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.shared_passes import passes
from cdkit.evals.runner.workload import Asked, Workload


@dataclass(frozen=True)
class Group:
    """Answers that are made together.

    Args:
        asked: (method's hash, decode) of each.
        shared: Whether the methods share one pass, whose logits decide the first token; else the
            one entry of `asked` is generated.
    """

    asked: tuple[tuple[str, Decode], ...]
    shared: bool


@dataclass(frozen=True)
class GroupWork:
    """A group's work on a batch.

    Args:
        group: The group.
        wanted: (index of a question, index in `group.asked`) of each answer to write. The others
            were made before; they only keep the batch as it was (see `_plans`).
    """

    group: Group
    wanted: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class BatchPlan:
    """Questions to answer together, by each of the groups."""

    name: str
    questions: tuple[Question, ...]
    keys: tuple[str, ...]
    """The questions' names in the journal."""
    groups: tuple[GroupWork, ...]

    @property
    def answers(self) -> int:
        """How many journal rows it writes."""
        return sum(len(plan.wanted) for plan in self.groups)

    @property
    def images(self) -> tuple[Path, ...]:
        """The image of each question."""
        return tuple(question.image for question in self.questions)


def groups_of(asked: Asked, workload: Workload, *, first_step: bool) -> tuple[Group, ...]:
    """What is made together of what a batch is asked.

    Args:
        asked: What each question of the batch is asked by.
        workload: The run's methods.
        first_step: Whether the first step's logits may decide.

    Returns:
        One group for each pass that methods share, then one for each answer that is generated: in
        a beam search, where a first token depends on those that follow, of a method with a loop
        of its own, and wherever `first_step` is false.
    """
    stepwise = {
        name: tuple(d for d in sorted(decodes, key=str) if d.mode != BEAM)
        for name, decodes in asked.items()
        if first_step and workload.variants[name].stepwise
    }
    found = [
        Group(tuple((v.name, d) for v in work.variants for d in stepwise[v.name]), shared=True)
        for work in passes(workload.variants[name] for name, some in stepwise.items() if some)
    ]
    found += [
        Group(((name, decode),), shared=False)
        for name, decodes in asked.items()
        for decode in sorted(decodes, key=str)
        if decode not in stepwise.get(name, ())
    ]
    return tuple(found)


def plan_batches(
    workload: Workload,
    lengths: Sequence[int],
    size: int,
    *,
    model: str,
    rows: Mapping[Key, JournalRow],
    first_step: bool,
    without: Mapping[str, str] | None = None,
    retry: bool = False,
) -> list[BatchPlan]:
    """Plan the batches that are left, the longest first, so that memory runs out at once or never.

    A batch has one token limit, neighbouring lengths, and questions that are asked alike.
    Batches with equal images follow each other.

    Args:
        workload: All that the run asks.
        lengths: Tokens of each question's prompt.
        size: Questions in a batch.
        model: The model's name in the journal.
        rows: Finished rows of the journal.
        first_step: Whether the first step's logits may decide yes/no questions.
        without: Hashes of methods that the model cannot run -> why.
        retry: Whether rows with an error are tried again.

    Returns:
        The batches in the order to run them.
    """
    questions, refused = list(workload.demand), without or {}
    order = sorted(range(len(questions)), key=lambda i: (-questions[i].limit, -lengths[i], i))
    length_of = dict(zip(questions, lengths, strict=True))
    alike: dict[object, list[Question]] = {}
    for question in (questions[index] for index in order):
        asked = frozenset(workload.demand[question].items())
        decided = first_step and question.yes_no
        alike.setdefault((question.limit, decided, asked), []).append(question)
    found: list[BatchPlan] = []
    for members in alike.values():
        first = members[0]
        able = {n: d for n, d in workload.demand[first].items() if n not in refused}
        groups = groups_of(able, workload, first_step=first_step and first.yes_no)
        for batch in _batches(members, length_of, size):
            found += _plans(
                batch, tuple(workload.keys[q] for q in batch), groups, model, rows, retry
            )
    return found


def _batches(
    questions: Sequence[Question], length_of: Mapping[Question, int], size: int
) -> list[tuple[Question, ...]]:
    """Cut questions, the longest first, into as few batches of `size` as there can be."""
    found: list[tuple[Question, ...]] = []
    rest: list[Question] = []
    for _, of_length in groupby(questions, key=length_of.__getitem__):
        equal, others = _with_equal_images(list(of_length), size)
        found += equal
        rest += others
    found += [tuple(rest[start : start + size]) for start in range(0, len(rest), size)]
    return sorted(found, key=lambda batch: -length_of[batch[0]])


def _with_equal_images(
    questions: Sequence[Question], size: int
) -> tuple[list[tuple[Question, ...]], list[Question]]:
    """Full batches that have equal images, two or more in a row, and the questions that are left.

    A batch asks once about each of `size` images, or where there are fewer, equally often about
    each.
    """
    found: list[tuple[Question, ...]] = []
    left = list(questions)
    for width in (width for width in range(size, 0, -1) if size % width == 0):
        while batches := _about(_by_image(left), width, size // width):
            found += batches
            taken = set(chain.from_iterable(batches))
            left = [question for question in left if question not in taken]
    return found, left


def _by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions about each image, those with the most questions first."""
    found: dict[Path, list[Question]] = {}
    for question in questions:
        found.setdefault(question.image, []).append(question)
    return sorted(found.values(), key=len, reverse=True)


def _about(
    by_image: Sequence[Sequence[Question]], width: int, each: int
) -> list[tuple[Question, ...]]:
    """Batches of `each` questions about each of `width` images, where two or more can be made."""
    found: list[tuple[Question, ...]] = []
    for start in range(0, len(by_image) - width + 1, width):
        images = by_image[start : start + width]
        count = len(images[-1]) // each
        if count < 2:
            break
        rounds = list(zip(*(asked[: count * each] for asked in images), strict=True))
        found += [
            tuple(chain.from_iterable(rounds[first : first + each]))
            for first in range(0, count * each, each)
        ]
    return found


def batch_name(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]


def _plans(
    questions: tuple[Question, ...],
    keys: tuple[str, ...],
    groups: Sequence[Group],
    model: str,
    rows: Mapping[Key, JournalRow],
    retry: bool,
) -> list[BatchPlan]:
    """The plans of one batch: groups that lack answers to the same questions share one.

    If a kill interrupted the writing of a group, all of it runs again, so that the lost answers
    are made in the same batch as before.
    """
    name = batch_name(keys)
    by_need: dict[tuple[int, ...], list[GroupWork]] = {}
    for group in groups:
        done = {
            (i, j): rows.get((model, key, method, decode.mode, decode.seed))
            for i, key in enumerate(keys)
            for j, (method, decode) in enumerate(group.asked)
        }
        absent = {place for place, row in done.items() if row is None}
        again = {place for place, row in done.items() if retry and row is not None and row.error}
        wanted = frozenset(absent | again)
        if not wanted:
            continue
        torn = bool(absent) and any(row is not None and row.batch == name for row in done.values())
        needed = {i for i, _ in wanted} if not torn else set(range(len(keys)))
        by_need.setdefault(tuple(sorted(needed)), []).append(GroupWork(group, wanted))
    return [_cut(questions, keys, needed, plans) for needed, plans in by_need.items()]


def _cut(
    questions: tuple[Question, ...],
    keys: tuple[str, ...],
    needed: tuple[int, ...],
    plans: Sequence[GroupWork],
) -> BatchPlan:
    place = {index: new for new, index in enumerate(needed)}
    kept = tuple(keys[index] for index in needed)
    moved = tuple(
        GroupWork(plan.group, frozenset((place[i], j) for i, j in plan.wanted)) for plan in plans
    )
    return BatchPlan(batch_name(kept), tuple(questions[i] for i in needed), kept, moved)


def shard(plans: Sequence[BatchPlan], rank: int, world: int) -> list[BatchPlan]:
    """The share of one of `world` processes: none has work twice, all have about as much.

    Batches with equal images stay together, until a process would have nothing to do.
    """
    waiting = deque(list(run) for _, run in groupby(plans, key=lambda plan: plan.images))
    taken: list[list[BatchPlan]] = [[] for _ in range(world)]
    shares: list[list[BatchPlan]] = [[] for _ in range(world)]
    for turn in range(len(plans)):
        at = turn % world
        if not taken[at]:
            if waiting:
                taken[at] = waiting.popleft()
            else:
                longest = max(taken, key=len)
                kept = len(longest) // 2
                taken[at], longest[kept:] = longest[kept:], []
        shares[at].append(taken[at].pop(0))
    return shares[rank]
