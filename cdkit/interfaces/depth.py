"""Which decoder layers a part acts in, as shares of the depth: one default fits every model."""

import math

from cdkit.errors import CdkitError

Depth = tuple[float, float]
"""(first, last): the layers `l` of `count` with `first * count <= l < last * count`. The authors'
layers 8 to 15 of 32 are (0.25, 0.5), which are 10 to 19 of 40."""
EVERY_LAYER: Depth = (0.0, 1.0)


def check_depth(name: str, depth: Depth) -> None:
    """Raise unless 0 <= first < last <= 1."""
    if not isinstance(depth, tuple) or len(depth) != 2:
        raise CdkitError(f"{name} must be two shares of the depth, got {depth!r}")
    first, last = depth
    if not 0 <= first < last <= 1:
        raise CdkitError(
            f"{name} must be two shares of the depth, 0 <= first < last <= 1, got {list(depth)}"
        )


def layers_within(depth: Depth, count: int) -> range:
    """The layers of a decoder with `count` layers: at least one."""
    first, last = (round(share * count, 6) for share in depth)  # 0.3 * 10 is not quite 3
    start = min(math.ceil(first), count - 1)
    return range(start, max(math.ceil(last), start + 1))
