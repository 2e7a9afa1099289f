"""Figures of yes/no questions that no shift towards yes or towards no can change."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

FOLDS = 5


def rank_shares(scores: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Where each score stands among all: the share of those below, and half of those equal.

    Ranks hold all that AUC and thresholds need, without a scale. A test that swaps answers of two
    runs needs both on one scale: a method that doubles its scores ranks no better or worse, yet
    among the other run's scores its answers would all be at the ends, and the swapped AUCs would
    spread.

    Args:
        scores: The yes scores of a run.

    Returns:
        The ranks, in (0, 1).
    """
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    return ((np.cumsum(count) - count / 2) / len(scores))[place]


def image_auc(
    scores: Float[np.ndarray, " samples"],
    labels: Float[np.ndarray, " samples"],
    images: Int[np.ndarray, " samples"],
) -> Callable[[Float[np.ndarray, "resamples images"]], Float[np.ndarray, " resamples"]]:
    """The AUC as a function of image weights.

    It is the weighted share of (yes, no) pairs of questions where the yes question scores higher;
    ties count half, and a pair weighs the product of its images' weights. The pairs won are summed
    once into a table of images by images, so that any number of weightings costs one matrix
    product.

    Args:
        scores: The yes scores.
        labels: The right answers: 1 (yes) or 0 (no).
        images: The number of each sample's image, from 0.

    Returns:
        A function from image weights to the AUC of each row of weights; one half for a row without
        a pair.
    """
    count = int(images.max()) + 1
    yes = labels > 0
    yes_scores, yes_images = scores[yes], images[yes]
    won = np.zeros((count, count))
    for image in np.unique(images[~yes]):
        lower = np.sort(scores[~yes & (images == image)])
        below = np.searchsorted(lower, yes_scores, "left")
        up_to = np.searchsorted(lower, yes_scores, "right")
        won[:, image] = np.bincount(yes_images, weights=(below + up_to) / 2, minlength=count)
    positives = np.bincount(yes_images, minlength=count).astype(np.float64)
    negatives = np.bincount(images[~yes], minlength=count).astype(np.float64)

    def weighed(
        weights: Float[np.ndarray, "resamples images"],
    ) -> Float[np.ndarray, " resamples"]:
        pairs = (weights @ positives) * (weights @ negatives)
        wins = np.einsum("ri,ri->r", weights @ won, weights)
        return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1), 0.5)

    return weighed


def matched_right(
    scores: Float[np.ndarray, " samples"],
    labels: Float[np.ndarray, " samples"],
    images: Int[np.ndarray, " samples"],
) -> Float[np.ndarray, " samples"]:
    """Which answers are right if the answer is yes where the score reaches a threshold t.

    t makes yes as frequent as it is true, and is never chosen on the images it is used for.

    Image number i belongs to fold i modulo `FOLDS`. A fold's t is chosen on the OTHER folds: of the
    scores observed there, and of "above them all", it is the one for which the number of samples at
    or above it comes nearest to the number of yes labels (of two equally near, the higher). Tied
    scores stay together. With one image there is nothing to choose on, and all answers are no.

    Args:
        scores: The yes scores.
        labels: The right answers: 1 (yes) or 0 (no).
        images: The number of each sample's image, from 0.

    Returns:
        1 for each right answer, 0 for others.
    """
    says_yes = np.zeros(len(scores), dtype=np.bool_)
    fold = images % FOLDS
    for held in np.unique(fold):
        other = fold != held
        found, counts = np.unique(scores[other], return_counts=True)
        thresholds = np.concatenate([[np.nan], found[::-1]])  # no score reaches nan: above them all
        reached = np.concatenate([[0], np.cumsum(counts[::-1])])
        best = np.argmin(np.abs(reached - labels[other].sum()))  # the first of equals: the higher
        says_yes[~other] = scores[~other] >= thresholds[best]
    return np.where(says_yes == (labels > 0), 1.0, 0.0)


def threshold_curve(
    scores: Float[np.ndarray, " samples"], labels: Float[np.ndarray, " samples"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Yes ratio and accuracy of "yes where the score reaches t", for every t there is.

    From no yes at all to all yes; tied scores change together.

    Args:
        scores: The yes scores.
        labels: The right answers: 1 (yes) or 0 (no).

    Returns:
        (yes ratio, accuracy) at each threshold, fractions of one.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, is_yes = scores[order], labels[order] > 0
    right = np.concatenate([[0], np.cumsum(np.where(is_yes, 1, -1))]) + (~is_yes).sum()
    ends = np.concatenate([[True], ranked[1:] != ranked[:-1], [True]])
    count = len(scores)
    return np.flatnonzero(ends) / count, right[ends] / count
