"""Logits as they are before the plausibility constraint: what yes scores are taken from."""

import torch
from jaxtyping import Float
from torch import Tensor


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
