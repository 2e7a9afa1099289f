"""The optimisations of the engine: each is exact, and `optimize` of `cdkit.attach` chooses them."""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

from cdkit.errors import CdkitError

Optimization = Literal[
    "skip_identity", "one_forward", "shared_prefix", "fast_kernels", "shared_cache", "row_kernel"
]

WHAT: Mapping[Optimization, str] = {
    "skip_identity": "what cannot change a token is not run: a branch, or a method without effect",
    "one_forward": "the rows of all branches go through the model in one batch",
    "shared_prefix": "what branches have in common at the start of the prompt is run once",
    "fast_kernels": "attention is materialised only for text rows that a method looks at",
    "shared_cache": "keys and values of the shared prefix are kept once for all branches",
    "row_kernel": "on CUDA one kernel computes a generated token's changed attention",
}
"""Optimisation -> what it saves."""
ALL: frozenset[Optimization] = frozenset(get_args(Optimization))
"""All optimisations."""


def chosen(optimize: bool | Collection[str]) -> frozenset[Optimization]:
    """Find the optimisations that `optimize` of `cdkit.attach` chooses.

    Args:
        optimize: True for all, False for none, or names.

    Returns:
        The optimisations.

    Raises:
        CdkitError: If a name is unknown.
    """
    if isinstance(optimize, bool):
        return ALL if optimize else frozenset()
    names = [optimize] if isinstance(optimize, str) else list(optimize)
    if unknown := [name for name in names if name not in ALL]:
        raise CdkitError(
            f"optimize is True, False or some of {', '.join(WHAT)}; got {unknown[0]!r}"
        )
    return frozenset(name for name in WHAT if name in names)
