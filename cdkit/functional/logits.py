"""Combine the original and the distorted branches' next-token logits."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.errors import CdkitError, check_finite


def contrast(
    original: Float[Tensor, "*rows vocab"],
    distorted: Sequence[Float[Tensor, "*rows vocab"]],
    *,
    alphas: Sequence[float],
    beta: float = 0.0,
) -> Float[Tensor, "*rows vocab"]:
    """Contrast the original branch with distorted ones: `l + sum_k alpha_k (l - l~_k)`.

    With one distorted branch this is `(1 + alpha) l - alpha l~`: VCD's equation 3, and
    classifier-free guidance with scale `1 + alpha`.

    Args:
        original: Next-token logits `l` of the original branch.
        distorted: Next-token logits `l~_k` of each distorted branch.
        alphas: The weight of each distorted branch, in the same order.
        beta: Weight of the plausibility constraint, in [0, 1]; 0 switches it off.

    Returns:
        The contrasted logits; -inf on tokens that are not `plausible` by the original logits.

    Raises:
        CdkitError: If there are not as many alphas as distorted branches, or beta is outside
            [0, 1].
    """
    if len(distorted) != len(alphas):
        raise CdkitError(f"{len(alphas)} alphas for {len(distorted)} distorted branches")
    combined = original
    for logits, alpha in zip(distorted, alphas, strict=True):
        combined = combined + alpha * (original - logits)
    if beta == 0:
        return combined
    return combined.masked_fill(~plausible(original, beta), -math.inf)


def check_beta(beta: float | int) -> None:
    """Check the weight of the plausibility constraint.

    Args:
        beta: The weight; 0 means no constraint.

    Raises:
        CdkitError: If it is not a number in [0, 1].
    """
    check_finite("beta", beta, low=0)
    if beta > 1:
        raise CdkitError(f"beta must be in [0, 1] (0: no constraint), got {beta}")


def plausible(original: Float[Tensor, "*rows vocab"], beta: float) -> Bool[Tensor, "*rows vocab"]:
    """The adaptive plausibility constraint: `p_v >= beta * max(p)` on the original branch.

    Li et al. 2023 (contrastive decoding), equation 2. The softmax normaliser cancels, so the test
    is made on logits.

    Args:
        original: Next-token logits of the original branch.
        beta: The least probability of a token that stays, as a share of the largest one; in (0, 1].

    Returns:
        True where a token stays a candidate.

    Raises:
        CdkitError: If beta is not in (0, 1].
    """
    if not 0 < beta <= 1:
        raise CdkitError(f"beta must be in (0, 1], got {beta}")
    return original >= original.amax(dim=-1, keepdim=True) + math.log(beta)


def scale_difference(
    original: Float[Tensor, "rows vocab"],
    other: Float[Tensor, "rows vocab"],
    factor: Float[Tensor, " rows"],
) -> Float[Tensor, "rows vocab"]:
    """Move logits towards the original ones: `l + s (l~ - l)`.

    A contrast with the result by alpha is a contrast with `l~` by `s alpha`. So the engine applies
    a schedule's factor without knowing the combiner's parameters.

    Args:
        original: Next-token logits `l` of the original branch.
        other: Next-token logits `l~` of another branch or of an inner layer.
        factor: The factor `s` of each row; 1 leaves `other` as it is, 0 returns `original`.

    Returns:
        The moved logits.
    """
    return original + factor[:, None] * (other - original)


def add_or_contrast(
    original: Float[Tensor, "rows vocab"],
    other: Float[Tensor, "rows vocab"],
    *,
    agrees: Bool[Tensor, " rows"],
    gain: float,
    alpha: float,
) -> Float[Tensor, "rows vocab"]:
    """What another branch adds to the logits: `gain l~` where it agrees, else `alpha (l - l~)`.

    Args:
        original: Next-token logits `l` of the original branch.
        other: Next-token logits `l~` of the other branch.
        agrees: Whether the two agree, for each row.
        gain: The weight of a branch that agrees.
        alpha: The strength of the contrast with one that does not.

    Returns:
        What is added to the original logits.
    """
    return torch.where(agrees[:, None], gain * other, alpha * (original - other))


def implausible_everywhere(scores: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"]:
    """Find rows in which no token is left.

    Args:
        scores: Logits or scores of the next token; -inf on tokens that are ruled out.

    Returns:
        True for a row whose scores are all -inf.
    """
    return torch.isneginf(scores).all(dim=-1)
