"""Hidden states that a method reads in the prompts of branches, and changes in calls of the
decoder."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cdkit.attention.context import AttentionRecord
from cdkit.branches.state import BranchState
from cdkit.execution.plan import GroupPlan
from cdkit.generation.branch_prompts import prompt_alone
from cdkit.generation.engine import Engine
from cdkit.generation.start import start
from cdkit.interfaces.cache_names import CACHE
from cdkit.states.answer_states import AnswerStates, prepare
from cdkit.states.attached_states import AttachedStates
from cdkit.states.state_call import PromptRecorder, SiteCall, StateCall
from cdkit.states.token_kinds import TokenKinds


def read_prompts(
    engine: Engine,
    states: AttachedStates,
    run: Callable[..., Any],
    kwargs: Mapping[str, Any],
) -> None:
    """Read states of the prompts, once a prompt, where the method reads them.

    The branches run once more, uncached and without state interventions.

    Args:
        engine: The method on this model; its call is under way.
        states: Its state interventions.
        run: Calls the decoder for some columns of a group of branches.
        kwargs: What the model passes to its decoder, of the original rows.
    """
    session, attached = engine.session, engine.attached
    assert session is not None and engine.call is not None
    if session.prepared is not None:
        return
    if not states.reads_prompts:
        session.prepared = prepare(attached, {})
        return
    names, prompt = states.prompt_names, session.ids.shape[1]
    state, embeds, _ = start(
        attached,
        session,
        prompt_alone(kwargs, prompt),
        None,
        branches=[branch for branch in attached.every_branch if branch.name in names],
        optimizations=frozenset(),
        compiled=False,
        works=engine.prompt_works,
        ids=engine.call.ids,
    )
    (group,), plan = state.plan.groups, state.plan
    layer_states = attached.adapter.layer_states
    recorder = PromptRecorder(plan.layout, plan.rows, states, layer_states)
    uncached = {**kwargs, CACHE: None, "use_cache": False}
    record = AttentionRecord(recorder=recorder)
    run(state, group, 0, plan.layout.length, embeds, uncached, record)
    expand, seen = plan.rows // session.ids.shape[0], {}
    for index, name in enumerate(plan.branches):
        rows = slice(index * plan.rows, (index + 1) * plan.rows, expand)
        seen[name] = recorder.shown(rows)
    session.prepared = prepare(attached, seen)


def keep_prompts(
    engine: Engine,
    states: AttachedStates,
    state: BranchState,
    embeds: Float[Tensor, "rows tokens hidden"],
) -> None:
    """Keep what state interventions need of new prompts, for the whole answer."""
    session = engine.session
    assert session is not None and session.prepared is not None
    expand = state.plan.rows // session.ids.shape[0]
    state.answer_states = AnswerStates.of(
        states, session.prepared, embeds, state.plan.layout, expand=expand
    )


def site_call(
    engine: Engine,
    state: BranchState,
    group: GroupPlan,
    start: int,
    stop: int,
    record: AttentionRecord,
) -> SiteCall | None:
    """What the hooks at the sites do in one call of the decoder; None where it is nothing.

    Args:
        engine: The method on this model.
        state: Of the batch.
        group: The branches of the call; none in the call for what all of them share.
        start: The first column of the call.
        stop: The column behind its last one.
        record: What the layers leave behind.
    """
    attached, answer = engine.attached, state.answer_states
    states = attached.states
    if record.recorder is not None or states is None:
        return record.recorder
    table = engine.site_tables.get(group.branches)
    if not table or answer is None:
        return None
    mask = state.token_mask
    kinds = TokenKinds.of(group.layout, lambda: mask.joined()[group.rows, :stop], start, stop)
    # what is remembered of a part of the prompt would not be that of the whole
    memory = state.memory if stop >= group.layout.length else {}
    return StateCall(
        states=states,
        table=table,
        branches=group.branches,
        kinds=kinds,
        answer=answer.of_branches(group.rows),
        attention=record.head_attention,
        read_out=functools.partial(attached.adapter.logits, attached.model),
        layer_state={branch: {} for branch in group.branches},
        memory=lambda branch, layer: memory.setdefault((layer, branch), {}),
    )
