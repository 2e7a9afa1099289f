"""Power: the smallest difference of two runs that so many images could show.

A test that finds nothing says little unless it is known what it could have found. From the data of
a comparison this computes the true difference that the sign-flip test by image finds at a given
level with 80 % power.
"""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.statistics.significance import DRAWS

POWER = 0.8
"""The chance with which a difference counts as detectable."""


def detectable(
    error: float,
    images: int,
    *,
    level: float,
    step: float = 0.0,
    most: float = math.inf,
    power: float = POWER,
    draws: int = DRAWS,
) -> float | None:
    """The smallest true difference that a two-sided test at `level` finds with chance `power`.

    The difference D found is about normal around the true d with standard error `error`, which is
    itself estimated from the n images; so the test rejects about where |D| > t(1 - level/2) error
    with n - 1 degrees of freedom, and D passes that bound on d's side with chance `power` where
    d = (t(1 - level/2) + t(power)) error.

    With few differing images the sign-flip test is stricter than that bound: if only k images
    differ, p is at least 2 / 2^k, however they differ. So no difference is found unless at least
    k = ceil(log2(2 / level)) images change in one direction, and where the smallest change that one
    image can make to the metric is known (`step`), k steps are the least. This is what
    remains where the error is 0, as between two runs with the same answers.

    Args:
        error: The standard error of the difference, in the metric's unit.
        images: The number of images.
        level: The level of the test, in (0, 1).
        step: How much one answer changes the metric; 0 if that is not known.
        most: The largest difference that the metric can take.
        power: The chance of detection, in [0.5, 1).
        draws: Draws of the test, which gives no p below 1 / (1 + draws).

    Returns:
        The difference in the metric's unit. None if no difference can be detected (too few images
        or draws for the level), if it would be above `most`, or if the error is 0 and the step is
        not known.

    Raises:
        CdkitError: `level` or `power` is out of range.
        ValueError: `error` or `step` is negative.
    """
    if not 0 < level < 1 or not 0.5 <= power < 1:
        raise CdkitError(f"{level=} and {power=}: a level lies in (0, 1), a power in [0.5, 1)")
    if error < 0 or step < 0:
        raise ValueError(f"neither an error nor a step is negative: {error}, {step}")
    needed = math.ceil(math.log2(2 / level) - 1e-9)
    if images < needed or level < 1 / (1 + draws):
        return None
    freedom = max(1, images - 1)
    found = (_student(1 - level / 2, freedom) + _student(power, freedom)) * error
    least = max(found, needed * step)
    return least if 0 < least <= most * (1 + 1e-9) else None  # all but for rounding is all


def _student(share: float, freedom: int) -> float:
    """The quantile of Student's t by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5).

    Two terms: within one percent from 5 degrees of freedom on, for levels down to .01.
    """
    z = NormalDist().inv_cdf(share)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def standard_error(draws: Float[np.ndarray, " resamples"], images: int) -> float:
    """The standard error of a difference from its bootstrap by image.

    Resampling n images spreads by sqrt((n - 1) / n) too little, which is corrected. Draws that
    differ only by rounding give 0.

    Args:
        draws: The difference in each resample of images, in the metric's unit.
        images: The number of images.

    Returns:
        The standard error in the metric's unit; 0 for fewer than two images.
    """
    if images < 2:
        return 0.0
    spread = float(np.std(draws))
    if spread <= 1e-12 * max(1.0, float(np.max(np.abs(draws)))):
        return 0.0
    return spread * math.sqrt(images / (images - 1))
