"""Hidden states under the plain algorithm: what is done in a call of one branch."""

import functools
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from cdkit.branches.layout import Layout
from cdkit.generation.prompts import Session
from cdkit.generation.reference_cache import BranchRows
from cdkit.methods.attached import AttachedMethod
from cdkit.states.answer_states import AnswerStates
from cdkit.states.state_call import NotedAttention, StateCall
from cdkit.states.token_kinds import TokenKinds


def answer_states(
    attached: AttachedMethod,
    session: Session,
    embeds: Float[Tensor, "rows tokens hidden"],
    layout: Layout,
) -> AnswerStates | None:
    """What state interventions keep of a branch's prompts; None where there is none, and in the
    branches that only show their states."""
    states = attached.states
    if states is None or session.prepared is None:
        return None
    expand = len(embeds) // len(session.ids)
    return AnswerStates.of(states, session.prepared, embeds, layout, expand=expand)


def site_call(
    attached: AttachedMethod,
    name: str,
    branch: BranchRows,
    start: int,
    attention: Mapping[str, NotedAttention],
) -> StateCall | None:
    """What state interventions do in a call of one branch; None where it is nothing.

    Args:
        attached: The method on its model.
        name: The branch's name.
        branch: Its rows, those of this call included.
        start: The first column of the call.
        attention: What its layers note of their attention to the image.
    """
    states = attached.states
    if states is None or branch.answer_states is None:
        return None
    whole = branch.columns >= branch.layout.length
    return StateCall(
        states=states,
        table=states.table((name,)),
        branches=(name,),
        kinds=TokenKinds.of(branch.layout, lambda: branch.token_mask, start, branch.columns),
        answer=branch.answer_states,
        attention=attention,
        read_out=functools.partial(attached.adapter.logits, attached.model),
        layer_state={name: {}},
        memory=lambda _, layer: branch.memory[layer] if whole else {},
    )
