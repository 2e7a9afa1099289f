"""Power: the smallest difference of two runs that so many images could show.

A test that finds nothing says little while nobody knows what it could have found. From the data of
a comparison this tells the true difference that the sign-flip test by image would find at a given
level four times in five.
"""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from cdkit.errors import CdkitError
from cdkit.evals.statistics.significance import DRAWS

POWER = 0.8


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

    None where nothing can be told: `images` are fewer than k, or `draws` swappings allow no p so
    small (not below 1 / (1 + draws)), so that no difference whatever is found; it would be above
    `most`, the largest difference that the metric can take; or the error is 0 and the step unknown.
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
    """Of a difference from its bootstrap by image.

    Resampling n images spreads by sqrt((n - 1) / n) too little, which is put right; what is left of
    rounding where all draws are alike is 0. One image has no spread that could be known: 0.
    """
    if images < 2:
        return 0.0
    spread = float(np.std(draws))
    if spread <= 1e-12 * max(1.0, float(np.max(np.abs(draws)))):
        return 0.0
    return spread * math.sqrt(images / (images - 1))
