"""Which decoder layers a part acts in, as shares of the depth: one default fits every model."""

import math

from cdkit.errors import CdkitError

Depth = tuple[float, float]
"""(first, last): the layers `l` of `count` with `first * count <= l < last * count`. For example
(0.25, 0.5) is layers 8 to 15 of 32, or 10 to 19 of 40. What acts inside the attention counts the
layers that have one: all, but in hybrid decoders."""
EVERY_LAYER: Depth = (0.0, 1.0)
"""The depth of a part that acts in every layer."""


def check_depth(name: str, depth: Depth) -> None:
    """Check a range of layers.

    Args:
        name: The parameter's name, for the message.
        depth: (first, last), as shares of the depth.

    Raises:
        CdkitError: Unless 0 <= first < last <= 1.
    """
    if not isinstance(depth, tuple) or len(depth) != 2:
        raise CdkitError(f"{name} must be two shares of the depth, got {depth!r}")
    first, last = depth
    if not 0 <= first < last <= 1:
        raise CdkitError(
            f"{name} must be two shares of the depth, 0 <= first < last <= 1, got {list(depth)}"
        )


def layers_within(depth: Depth, count: int) -> range:
    """Find the layers of a range in one decoder.

    Args:
        depth: (first, last), as shares of the depth.
        count: How many layers the decoder has.

    Returns:
        The indices of the layers: at least one.
    """
    first, last = (round(share * count, 6) for share in depth)  # 0.3 * 10 is not quite 3
    start = min(math.ceil(first), count - 1)
    return range(start, max(math.ceil(last), start + 1))
