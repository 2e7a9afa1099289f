"""Which questions go through the model together, and which of them still have to.

Batches are fixed from ALL questions of a run before a resume considers finished answers. So for one
batch size they are the same after a restart and on any number of processes, and so are the rounding
errors that the other rows of a batch cause.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        for start in range(0, len(members), size):
            batch = tuple(members[start : start + size])
            found += _plans(
                batch, tuple(workload.keys[q] for q in batch), groups, model, rows, retry
            )
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
    """The share of one of `world` processes: none has work twice, all have about as much."""
    return list(plans[rank::world])
