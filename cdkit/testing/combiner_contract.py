"""What a combiner of logits promises; see `cdkit.testing`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.combiner import LogitCombiner
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import ROWS_FIRST, ROWS_FIRST_TODO, check_value, normal, pure

INDEPENDENT = "rows of the batch are independent"
OWN_ROW = "reduce over the vocabulary (dim=-1, keepdim=True), never over the rows of the batch"


def check_combiner(combiner: Any, names: Sequence[str] = ("distorted",)) -> None:
    """Check the promises of a combiner.

    Args:
        combiner: An instance of a subclass of `cdkit.LogitCombiner`.
        names: Of the branches, or layers, whose logits it is given beside the original ones.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(combiner)
    require(
        isinstance(combiner, LogitCombiner),
        combiner,
        "it subclasses LogitCombiner",
        todo="write class Name(cdkit.LogitCombiner)",
    )
    steps = [
        (normal(step, 3, 11), {name: normal(9 + step + i, 3, 11) for i, name in enumerate(names)})
        for step in range(4)
    ]
    whole = _decoded(combiner, steps)
    for step, combined in enumerate(whole):
        require(
            combined.shape == (3, 11) and combined.is_floating_point(),
            combiner,
            "the result has the shape of the logits",
            combined.shape,
            todo="return (rows, vocab), in the logits' dtype",
        )
        bad = combined.isnan() | (combined == math.inf)
        require(
            not bad.any(),
            combiner,
            "combined logits are finite, or -inf",
            (step, combined),
            todo="rule a token out by -inf alone; take log_softmax, not the log of softmax",
        )
        alive = (~combined.isneginf()).any(dim=-1)
        require(
            bool(alive.all()),
            combiner,
            "a token is left in every row",
            (step, combined),
            todo="keep the best token of the original logits at least",
        )
    order = torch.tensor([2, 0, 1])
    reordered = [(x[order], {k: v[order] for k, v in others.items()}) for x, others in steps]
    for mixed, combined in zip(_decoded(combiner, reordered), whole, strict=True):
        require_same(mixed, combined[order], combiner, INDEPENDENT, todo=OWN_ROW)
    for row in range(3):
        one = slice(row, row + 1)
        alone = [(x[one], {k: v[one] for k, v in others.items()}) for x, others in steps]
        for single, combined in zip(_decoded(combiner, alone), whole, strict=True):
            require_same(single, combined[one], combiner, INDEPENDENT, todo=OWN_ROW)
    loud = [
        (torch.cat((40 * x[:1], x)), {k: torch.cat((-40 * v[:1], v)) for k, v in others.items()})
        for x, others in steps
    ]
    for beside, combined in zip(_decoded(combiner, loud), whole, strict=True):
        promise = "a mate with large logits changes nothing"
        require_same(beside[1:], combined, combiner, promise, todo=OWN_ROW)
    _check_beams(combiner, steps)
    original, others = steps[0]
    for name in names:
        if not combiner.uses(name):
            without, _ = combiner.combine(
                original, others | {name: others[name] + normal(3, 3, 11)}, step=0, state={}
            )
            require_same(
                without,
                whole[0],
                combiner,
                f"logits that it does not read ({name}) are unread",
                todo="let uses return True for each name that combine reads",
            )
    if not combiner.stateful:
        for step, (logits, rest) in enumerate(steps):
            later, state = combiner.combine(logits, rest, step=step + 7, state={})
            require_same(
                later,
                whole[step],
                combiner,
                "with stateful = False no step and no state counts",
                todo="set stateful = True, or read neither step nor state",
            )
            require(
                not state,
                combiner,
                "with stateful = False it keeps no state",
                state,
                todo="return {}, or set stateful = True",
            )
    if combiner.contrastive:
        equal, _ = combiner.combine(original, dict.fromkeys(names, original), step=0, state={})
        require_same(
            equal,
            original.masked_fill(equal.isneginf(), -math.inf),
            combiner,
            "with contrastive = True logits equal to the original ones change nothing",
            todo="set contrastive = False, or add differences to the original logits alone",
        )
    for name in names:
        weighs, used = combiner.weight(name) != 0, combiner.uses(name)
        require(
            weighs == used,
            combiner,
            "weight is 0 for the branches that it does not use",
            name,
            todo="let weight be 0 for each name that combine does not read",
        )
    if combiner.switch:
        fields = {field.name for field in dataclasses.fields(combiner)}
        require(
            combiner.switch in fields,
            combiner,
            "switch names a parameter",
            combiner.switch,
            todo="set it to the name of the field that switches it off",
        )
    if combiner.is_identity:
        untouched, _ = combiner.combine(original, {}, step=0, state={})
        require(
            torch.equal(untouched, original),
            combiner,
            "an identity returns the original",
            todo="return the original logits as they are where is_identity is True",
        )


def _check_beams(
    combiner: LogitCombiner, steps: Sequence[tuple[Tensor, Mapping[str, Tensor]]]
) -> None:
    """Check that the state follows its rows, as the engine moves them with the beams."""
    first, second = steps[:2]
    _, state = combiner.combine(*first, step=0, state={})
    wanted, _ = combiner.combine(*second, step=1, state=state)
    beams = torch.tensor([2, 0, 0])
    moved, _ = combiner.combine(
        second[0][beams],
        {name: value[beams] for name, value in second[1].items()},
        step=1,
        state={name: value[beams] for name, value in state.items()},
    )
    promise = "state follows its rows where beams are reordered"
    todo = "keep in a row of the state what belongs to that row alone"
    require_same(moved, wanted[beams], combiner, promise, todo=todo)


def _decoded(
    combiner: LogitCombiner, steps: Sequence[tuple[Tensor, Mapping[str, Tensor]]]
) -> list[Tensor]:
    """The combined logits of steps that follow each other."""
    state: Mapping[str, Tensor] = {}
    combined = []
    for step, (original, others) in enumerate(steps):
        result, state = pure(combiner, combiner.combine, original, others, step=step, state=state)
        rows = {tuple(value.shape[:1]) for value in state.values()}
        require(rows <= {original.shape[:1]}, combiner, ROWS_FIRST, rows, todo=ROWS_FIRST_TODO)
        combined.append(result)
    return combined
