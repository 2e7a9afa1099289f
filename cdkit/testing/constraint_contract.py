"""What a constraint promises; see `cdkit.testing`."""

from typing import Any, get_args

import torch
from torch import Tensor

from cdkit.interfaces.constraint import Constraint, OnEmpty
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import check_value, normal, pure

OWN_ROW = "reduce over the vocabulary (dim=-1, keepdim=True), never over the rows of the batch"

VOCABULARY = 200
"""More tokens than a constraint of a fixed number keeps."""


def check_constraint(constraint: Any) -> None:
    """Check the promises of a constraint.

    Args:
        constraint: An instance of a subclass of `cdkit.Constraint`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(constraint)
    require(
        isinstance(constraint, Constraint),
        constraint,
        "it subclasses Constraint",
        todo="write class Name(cdkit.Constraint)",
    )
    choices = get_args(OnEmpty)
    require(
        constraint.on_empty in choices,
        constraint,
        "on_empty is 'raise' or 'original'",
        todo="take the field from cdkit.Constraint, and give it one of these",
    )
    require(
        bool(constraint.description.strip()),
        constraint,
        "its description says what it is",
        todo="describe in words, with its parameters, what it keeps",
    )
    for seed in range(4):
        logits = 3 * normal(seed, 3, VOCABULARY)
        allowed: Tensor = pure(constraint, constraint.allowed, logits)
        mask = allowed.dtype == torch.bool and allowed.shape == logits.shape
        require(
            mask,
            constraint,
            "it gives a mask of the logits' shape",
            allowed.shape,
            todo="return a bool tensor, True for tokens that stay",
        )
        left = bool(allowed.any(dim=-1).all())
        require(
            left,
            constraint,
            "a token is left in every row",
            allowed,
            todo="allow the token with the largest logit at least",
        )
        for rows in (torch.tensor([2, 0, 1]), *torch.arange(3)[:, None]):
            promise = "rows of the batch are independent"
            given = constraint.allowed(logits[rows])
            require_same(given, allowed[rows], constraint, promise, todo=OWN_ROW)
        beside = constraint.allowed(torch.cat((40 * logits[:1], logits)))[1:]
        promise = "a mate with large logits changes nothing"
        require_same(beside, allowed, constraint, promise, todo=OWN_ROW)
        promise = "a constant added to the logits changes nothing"
        require_same(
            constraint.allowed(logits + 2.5),
            allowed,
            constraint,
            promise,
            todo="compare logits with one another (their maximum, say), not with a number",
        )
        slack: Tensor = pure(constraint, constraint.slack, logits)
        agree = slack.shape == logits.shape and bool(((slack >= 0) == allowed).all())
        require(
            agree,
            constraint,
            "slack is 0 or more on the allowed tokens alone",
            slack,
            todo="return how far a logit is above the edge: below 0 for tokens that are ruled out",
        )
        if constraint.is_identity:
            require(
                bool(allowed.all()),
                constraint,
                "an identity allows every token",
                allowed,
                todo="return all True where is_identity is True",
            )
