"""What a state intervention that remembers promises, over one answer; see `cdkit.testing`."""

import torch
from torch import Tensor

from cdkit.interfaces.state_intervention import StateIntervention
from cdkit.probing.promises import require, require_same
from cdkit.testing.example_states import ExampleCall, Memory
from cdkit.testing.values import NEW_TENSORS, ROWS_FIRST, ROWS_FIRST_TODO

PROMPT, GENERATED = tuple(range(7)), ((7,), (8,))
"""The tokens of an example: those of the prompt, and each call with a generated one."""


def check_state_memory(part: StateIntervention, call: ExampleCall) -> None:
    """Check what an intervention keeps in `StateSegment.memory`.

    Args:
        part: The intervention; messages name it.
        call: An example with all tokens of an answer. Here they come in a call for the prompt, then
            one for each generated token, as the engine makes them.

    Raises:
        AssertionError: Where a promise is broken.
    """
    memory = _empty(call)
    _ran(part, call.tokens(PROMPT), memory)
    kept = any(memory.values())
    if not part.remembers:
        todo = "set remembers = True in the class, or use layer_state within a call"
        require(not kept, part, "it writes into memory only with remembers = True", todo=todo)
        return
    todo = "write into states.memory, or leave remembers False"
    require(kept, part, "a part with remembers = True keeps something", todo=todo)
    later = [call.tokens(tokens) for tokens in GENERATED]
    whole = [_ran(part, one, memory) for one in later]
    for rows in ([2, 0, 1], [0, 0, 1], [1]):
        memory, chosen = _empty(call), torch.tensor(rows)
        _ran(part, call.tokens(PROMPT), memory)
        moved = {layer: {k: x[chosen] for k, x in own.items()} for layer, own in memory.items()}
        for one, wanted in zip(later, whole, strict=True):
            for new, own in zip(_ran(part, one.rows(rows), moved), wanted, strict=True):
                promise = "a memory that is reordered or repeated with its rows serves them"
                todo = "keep one entry a row, computed from that row alone"
                require_same(new, own[chosen], part, promise, todo=todo)


def _empty(call: ExampleCall) -> Memory:
    return {segment.layer: {} for segment in call.segments}


def _ran(part: StateIntervention, call: ExampleCall, memory: Memory) -> list[Tensor]:
    """The new states of a call, whose memory is checked."""
    before = {layer: {k: (x, x.clone()) for k, x in own.items()} for layer, own in memory.items()}
    new = call.changed(part, memory)
    for layer, remembered in memory.items():
        same = all(x.equal(copy) for x, copy in before[layer].values())
        require(same, part, "nothing is written into a remembered tensor", todo=NEW_TENSORS)
        todo = "use self as the key: states.memory[self] = ..."
        require(set(remembered) <= {part}, part, "it writes into memory under itself", todo=todo)
        rows = len(call.segments[0].states)
        for x in remembered.values():
            fits = isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows
            require(fits, part, ROWS_FIRST, getattr(x, "shape", type(x)), todo=ROWS_FIRST_TODO)
    return new
