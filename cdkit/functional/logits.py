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
    """`l + sum_k alpha_k (l - l~_k)`, and -inf where the original branch finds a token implausible.

    One distorted branch with weight alpha is `(1 + alpha) l - alpha l~` (VCD's equation 3, and
    classifier-free guidance with scale `1 + alpha`). `beta` 0 switches the constraint off.
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
    """Raise unless the weight of the plausibility constraint is in [0, 1]."""
    check_finite("beta", beta, low=0)
    if beta > 1:
        raise CdkitError(f"beta must be in [0, 1] (0: no constraint), got {beta}")


def plausible(original: Float[Tensor, "*rows vocab"], beta: float) -> Bool[Tensor, "*rows vocab"]:
    """The adaptive plausibility constraint: `p_v >= beta * max(p)` on the original branch.

    Li et al. 2023 (contrastive decoding), equation 2. The softmax normaliser cancels, so the test
    is made on logits.
    """
    if not 0 < beta <= 1:
        raise CdkitError(f"beta must be in (0, 1], got {beta}")
    return original >= original.amax(dim=-1, keepdim=True) + math.log(beta)


def scale_difference(
    original: Float[Tensor, "rows vocab"],
    other: Float[Tensor, "rows vocab"],
    factor: Float[Tensor, " rows"],
) -> Float[Tensor, "rows vocab"]:
    """`l + s (l~ - l)`: contrast with it by alpha is contrast with `l~` by `s alpha`."""
    return original + factor[:, None] * (other - original)


def implausible_everywhere(scores: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"]:
    """Rows in which no token is left."""
    return torch.isneginf(scores).all(dim=-1)
