"""The candidates of each step, from the logits of a trace."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.explanation.explained import (
    BY_COMBINER,
    BY_CONSTRAINT,
    COMBINED,
    PLAIN,
    Candidate,
    ExplainedStep,
)
from cdkit.generation.trace import Step
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method

MANY = 4
"""Beside more columns than these, inner layers that are read out propose no candidates."""

Columns = Mapping[str, Float[Tensor, " vocab"]]


def explained_steps(
    method: Method,
    steps: Sequence[Step],
    tokens: Sequence[int],
    *,
    row: int,
    plain: Sequence[Float[Tensor, " vocab"]] | None,
    top: int,
    word: Callable[[int], str],
) -> tuple[tuple[str, ...], tuple[ExplainedStep, ...]]:
    """Each step's candidates.

    Args:
        method: Whose constraint may have removed tokens.
        steps: The traced steps of its answer, at least one for each token.
        tokens: The answer.
        row: The answer's row in the trace.
        plain: The logits of the model without a method, given the same words before each token;
            None where it did not run.
        top: How many of the most probable tokens of each column are candidates.
        word: The text of a token.

    Returns:
        The columns, and the steps.
    """
    each = [_columns(step, row) for step in steps[: len(tokens)]]
    # what changes the original branch alone has no other logits after the combiner
    alone = all(len(own) == 2 and own[COMBINED].equal(own[ORIGINAL]) for own in each)
    is_plain = method.is_identity and alone
    found = []
    for number, (token, own) in enumerate(zip(tokens, each, strict=True)):
        original, combined = own[ORIGINAL], own[COMBINED]
        shown: Columns = own
        if alone:
            shown = {PLAIN if is_plain else ORIGINAL: original}
        if plain is not None and not is_plain:
            shown = {PLAIN: plain[number], **shown}
        scale = steps[number].alpha_scale
        found.append(
            _explained(
                token,
                shown,
                original,
                _removed(method, original, combined),
                proposing=_proposing(method, shown),
                top=top,
                word=word,
                alpha_scale=None if scale is None else float(scale[row]),
            )
        )
    return tuple(found[0].favourites) if found else (), tuple(found)


def _columns(step: Step, row: int) -> dict[str, Float[Tensor, " vocab"]]:
    assert step.combined is not None
    return {name: own[row] for name, own in step.logits.items()} | {COMBINED: step.combined[row]}


def _proposing(method: Method, columns: Iterable[str]) -> frozenset[str]:
    """The columns whose most probable tokens are candidates."""
    names = list(columns)
    if len(names) <= MANY:
        return frozenset(names)
    branches = {branch.name for branch in method.branches}
    return frozenset(branches | {PLAIN, ORIGINAL, COMBINED}) & frozenset(names)


def _explained(
    token: int,
    logits: Columns,
    original: Float[Tensor, " vocab"],
    removed: Mapping[str, Bool[Tensor, " vocab"]],
    *,
    proposing: frozenset[str],
    top: int,
    word: Callable[[int], str],
    alpha_scale: float | None,
) -> ExplainedStep:
    shares = {name: own.double().softmax(dim=-1).cpu() for name, own in logits.items()}
    gone = {who: own.cpu() for who, own in removed.items() if bool(own.any())}
    favourites = {name: int(own.argmax()) for name, own in shares.items()}
    picked = {token, *favourites.values()}
    for name in proposing:
        best = shares[name].topk(min(top, len(shares[name])))
        picked.update(best.indices[best.values > 0].tolist())
    backwards = list(shares.values())[::-1]
    ranked = sorted(picked, key=lambda i: [-float(own[i]) for own in backwards])
    every = torch.stack(list(gone.values())).any(dim=0) if gone else None
    before = original.double().softmax(dim=-1).cpu()
    return ExplainedStep(
        token,
        word(token),
        tuple(
            Candidate(
                i,
                word(i),
                {name: float(own[i]) for name, own in shares.items()},
                next((who for who, own in gone.items() if bool(own[i])), ""),
            )
            for i in ranked
        ),
        favourites,
        {who: int(own.sum()) for who, own in gone.items()},
        0.0 if every is None else float(before[every].sum()),
        alpha_scale,
    )


def _removed(
    method: Method, original: Float[Tensor, " vocab"], combined: Float[Tensor, " vocab"]
) -> dict[str, Bool[Tensor, " vocab"]]:
    """Who ruled which tokens out: the constraint first, else the combiner."""
    ruled_out = combined.isneginf() & ~original.isneginf()
    constraint = method.constraint
    if constraint is None or constraint.is_identity:
        return {BY_COMBINER: ruled_out}
    by_constraint = ruled_out & ~constraint.allowed(original[None])[0]
    return {BY_CONSTRAINT: by_constraint, BY_COMBINER: ruled_out & ~by_constraint}
