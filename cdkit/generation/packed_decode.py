"""A further token of every branch, beside each other in one row a sample."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cdkit.attention.context import AttentionRecord
from cdkit.attention.step_rows import StepContext, StepSegment
from cdkit.branches.state import BranchState
from cdkit.generation.engine import Engine
from cdkit.interfaces.cache_names import CACHE


def stays_packed(state: BranchState, new: int, *, gives_layers: bool) -> bool:
    """Whether the `new` columns that the state has just got can be a packed step.

    At the first step this waits for the device once, where queries of generated tokens might move.
    """
    packed, group = state.packed, state.plan.groups[0]
    if packed is None or new != 1 or gives_layers:
        return False
    if packed.done > 0:
        return True
    stop = state.seen[0] + 1
    _, offsets = state.next_columns(group, stop - 1, stop)
    one_device = len({layer.keys.device for layer in packed.layers}) == 1
    return offsets.query is None and offsets.key is None and one_device


def packed_step(engine: Engine, forward: Any, state: BranchState, kwargs: Mapping[str, Any]) -> Any:
    """Call the decoder's forward with one token of each branch.

    Args:
        engine: The method on this model; its call is under way.
        forward: The decoder's forward without the method.
        state: Of the batch; its columns include the new one.
        kwargs: What the model passes to its decoder, of the original rows.

    Returns:
        The decoder's output; its last hidden state has the rows of all branches below each other.
    """
    steps, plan, call = state.packed, state.plan, engine.call
    assert steps is not None and call is not None
    (group,), branches = plan.groups, len(plan.branches)
    if not steps.segments:
        for name, (rows, image) in group.images.items():
            place = group.branches.index(name)
            layout = plan.layout.select(rows)
            steps.segments[name] = StepSegment.of(place, layout, image, steps)
    steps.advance()
    record = call.record = AttentionRecord()
    engine.current.context = StepContext(
        layers=group.layers,
        branches=group.branches,
        steps=steps,
        segments=steps.segments,
        record=record,
        answer_cache=state.answer_cache,
        layer_state={name: {} for name in group.branches},
    )
    engine.current.handed_down = frozenset(kwargs)
    engine.current.gives_weights = False
    embeds: Tensor = kwargs["inputs_embeds"]
    try:
        output = forward(
            **{
                **kwargs,
                "inputs_embeds": embeds.expand(-1, branches, -1),
                "attention_mask": steps.no_mask,
                "position_ids": _positions(state),
                CACHE: state.caches[0],
            }
        )
    finally:
        engine.current.context = None
    state.seen[0] += 1
    output.last_hidden_state = _rows(output.last_hidden_state)
    return output


def _positions(state: BranchState) -> Tensor:
    """Of the step's tokens, in the decoder's order of axes."""
    positions, branches = state.positions.last(), len(state.plan.branches)
    ahead = state.positions.ahead()
    beside = positions.expand(-1, branches, *positions.shape[2:])
    if ahead is not None:
        of_samples = ahead[:, 0].view(branches, -1, *ahead.shape[2:]).transpose(0, 1)
        beside = beside + of_samples
    return beside if beside.ndim == 2 else beside.movedim(-1, 0)


def _rows(
    states: Float[Tensor, "samples branches hidden"],
) -> Float[Tensor, "all_rows 1 hidden"]:
    """The branches' rows below each other."""
    return states.transpose(0, 1).reshape(-1, 1, states.shape[-1])
