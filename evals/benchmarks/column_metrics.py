"""The two commonest metrics of a tally: a share of two columns' sums, and a column's sum."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from cdkit.interfaces.tally import OfSums, share

Sums = Mapping[str, Float[np.ndarray, " resamples"]]


def share_of(part: str, whole: str) -> OfSums:
    """The metric that divides the sum of a column by that of another; 0 over nothing.

    Args:
        part: The column of the numerator.
        whole: The column of the denominator.
    """

    def of(sums: Sums) -> Float[np.ndarray, " resamples"]:
        return share(sums[part], sums[whole])

    return of


def sum_of(column: str) -> OfSums:
    """The metric that is the sum of a column, such as a count of answers.

    Args:
        column: The column.
    """

    def of(sums: Sums) -> Float[np.ndarray, " resamples"]:
        return sums[column]

    return of
