"""Directions in the hidden states, from the states of truthful and of hallucinated captions."""

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError

States = Float[Tensor, "pairs layers hidden"]
"""One state of each caption in each layer."""
Directions = Float[Tensor, "layers rank hidden"]


def shifted_component(truthful: States, hallucinated: States, rank: int) -> Directions:
    """The mean difference of the states plus its first principal components, as VTI takes it.

    The differences of all layers stand beside each other in one long row a pair, so that a
    component (of length 1 over all layers) has one sign in all of them: that in which the pair
    with the largest share in it counts positive.

    Args:
        truthful: The states of truthful captions.
        hallucinated: Those of the hallucinated captions, in the same order.
        rank: How many components are added to the mean; 1 as published.

    Returns:
        One direction a layer, from hallucinated to truthful, of any length.

    Raises:
        CdkitError: If `rank` is not in 1 .. pairs - 1: so many components centred data have.
    """
    pairs, layers, hidden = truthful.shape
    check_rank(rank, pairs, layers * hidden, centred=True)
    rows = (truthful - hallucinated).double().reshape(pairs, layers * hidden)
    mean = rows.mean(0)
    shares, _, components = torch.linalg.svd(rows - mean, full_matrices=False)
    largest = shares.abs().argmax(0, keepdim=True)
    signs = shares.gather(0, largest).sign().squeeze(0)
    found = mean + (signs[:rank, None] * components[:rank]).sum(0)
    directions: Tensor = found.reshape(layers, 1, hidden)
    return directions


def difference_subspace(truthful: States, hallucinated: States, rank: int) -> Directions:
    """The first right singular vectors of the differences of each layer, as Nullu takes them.

    The differences are not centred: the first direction is much like their mean.

    Args:
        truthful: The states of truthful captions.
        hallucinated: Those of the hallucinated captions, in the same order.
        rank: How many directions.

    Returns:
        Directions of length 1, orthogonal to each other.

    Raises:
        CdkitError: If `rank` is not in 1 .. min(pairs, hidden).
    """
    pairs, _, hidden = truthful.shape
    check_rank(rank, pairs, hidden, centred=False)
    rows = (truthful - hallucinated).double().transpose(0, 1)
    directions: Tensor = torch.linalg.svd(rows, full_matrices=False).Vh[:, :rank]
    return directions


def check_rank(rank: int, pairs: int, numbers: int, *, centred: bool) -> None:
    """Check that the differences of pairs have as many directions.

    Args:
        rank: How many directions.
        pairs: How many pairs.
        numbers: How many numbers a difference has.
        centred: Whether their mean is taken off first: that takes one direction away.

    Raises:
        CdkitError: If `rank` is not in 1 .. min(pairs, numbers), or pairs - 1 where centred.
    """
    most = min(pairs - centred, numbers)
    if not 1 <= rank <= most:
        centre = ", less their mean," if centred else ""
        todo = f"a rank in 1 .. {most}, or more pairs" if most > 0 else "more pairs"
        raise CdkitError(
            f"the rank is {rank}, but the differences of {pairs} pairs{centre} have {most} "
            f"directions: give {todo}"
        )


def shuffled_states(truthful: States, hallucinated: States, *, seed: int) -> tuple[States, States]:
    """Undo what makes the pairs pairs, and which caption of one is true: a control.

    Each truthful caption gets the hallucinated caption of another pair (a random cycle), and in
    half of the pairs, drawn, the two change places. The first alone leaves the mean difference as
    it is, and the second alone the singular vectors.

    Args:
        truthful: The states of truthful captions, of two pairs or more.
        hallucinated: Those of the hallucinated captions, in the same order.
        seed: The seed of both draws.

    Returns:
        (truthful, hallucinated), mixed.

    Raises:
        CdkitError: If there is one pair alone.
    """
    pairs = len(truthful)
    if pairs < 2:
        raise CdkitError("one pair cannot be shuffled: give two pairs or more")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(pairs, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    swapped = torch.randperm(pairs, generator=generator) < pairs // 2
    other = hallucinated[partner]
    chosen = swapped[:, None, None].to(truthful.device)
    return torch.where(chosen, other, truthful), torch.where(chosen, truthful, other)


def random_directions(like: Directions, *, seed: int) -> Directions:
    """Random directions with the lengths and angles of given ones: a control.

    Args:
        like: The given directions.
        seed: The seed; each layer draws on.

    Returns:
        Those directions turned by a random rotation, another one in each layer.
    """
    layers, rank, hidden = like.shape
    drawn = torch.randn(
        layers,
        hidden,
        rank,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    basis = torch.linalg.qr(drawn).Q.to(like.device)  # orthonormal columns
    triangle = torch.linalg.qr(like.double().transpose(1, 2)).R  # like = (Q R)^T
    signs = triangle.diagonal(dim1=1, dim2=2).sign()  # LAPACK leaves them open
    turned: Tensor = (basis @ (signs[:, :, None] * triangle)).transpose(1, 2)
    return turned
