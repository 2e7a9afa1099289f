"""Logits as they are before the plausibility constraint: what yes scores are taken from."""

from dataclasses import fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.combiner import LogitCombiner


def unconstrained(combiner: LogitCombiner) -> LogitCombiner:
    """The combiner without its plausibility constraint, where that is a field `beta`: 0 is off."""
    if "beta" not in {f.name for f in fields(combiner)}:  # type: ignore[arg-type]
        return combiner
    try:
        return replace(combiner, beta=0.0)  # type: ignore[type-var]
    except CdkitError:
        return combiner  # its beta means something else


def continued(
    combined: Float[Tensor, "rows vocab"], original: Float[Tensor, "rows vocab"]
) -> Float[Tensor, "rows vocab"]:
    """Logits without the holes of a cut that cannot be switched off.

    A token that was removed keeps its distance to the row's most probable kept token as it is in
    the original logits. So yes and no are ranked by the method where it keeps both, and as without
    it where it keeps one of them or none.
    """
    kept = combined.isfinite()
    top = original.masked_fill(~kept, -torch.inf).argmax(dim=-1, keepdim=True)
    shift = combined.gather(-1, top) - original.gather(-1, top)
    return torch.where(kept, combined, original + shift)
