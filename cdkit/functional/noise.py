"""Random numbers that belong to a sample, never to a batch, a chunk or a device.

Input noise is drawn from a `torch.Generator` made here for (seed, sample id, purpose). Noise inside
the attention belongs to single cells (row, image token, ...): it is a hash of the cell's own
coordinates, so that a cell gets the same number whichever rows are computed with it.
"""

import functools
import hashlib
import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

# splitmix64's constants (Steele, Lea and Flood 2014), as signed 64-bit integers
_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def stream(seed: int, sample_id: str, purpose: str = "") -> int:
    """Derive a random key from a seed, a sample and a purpose.

    Args:
        seed: The seed of the run.
        sample_id: The name of the sample.
        purpose: What the random numbers are for; other purposes get other keys.

    Returns:
        A signed 64-bit integer, equal for equal arguments on every machine.
    """
    digest = hashlib.blake2b(f"{seed}\0{sample_id}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def generator(seed: int, sample_id: str, purpose: str) -> torch.Generator:
    """Make the random generator of one sample.

    Args:
        seed: The seed of the run.
        sample_id: The name of the sample.
        purpose: What the random numbers are for.

    Returns:
        A generator on the CPU, so that the noise is the same whatever device the model is on.
    """
    return torch.Generator().manual_seed(stream(seed, sample_id, purpose))


@runtime_checkable
class Draws(Protocol):
    """What has a random generator of its own."""

    @property
    def draw(self) -> int:
        """Tells it apart from others of its class; see `DistortionStrategy.draw`."""
        ...


def purpose_of(part: Draws) -> str:
    """Name what the generator of a distortion is for.

    Two distortions of one class draw the same numbers for a sample, so that their results differ
    by their parameters alone. A `draw` that is not 0 gives one of them other numbers.

    Args:
        part: The distortion.

    Returns:
        The name of its class, followed by its `draw` where that is not 0.
    """
    return type(part).__name__ + (f" {part.draw}" if part.draw else "")


def cell_uniform(
    rng_keys: Int[Tensor, "*#cells"], *coordinates: Int[Tensor, "*#cells"] | int
) -> Float[Tensor, "*cells"]:
    """Draw a uniform random number for each cell, as a hash of the cell's coordinates.

    A cell gets the same number whichever other cells are computed with it.

    Args:
        rng_keys: A random key for each row, such as `ImageColumns.rng_keys`.
        *coordinates: Numbers that tell the cells of a row apart: layer, head, token, dimension.
            Keys and coordinates are broadcast against each other.

    Returns:
        Float64 numbers in (0, 1), on the device of the keys, in the broadcast shape.
    """
    state = _mix(rng_keys)
    for coordinate in coordinates:
        if not isinstance(coordinate, Tensor):
            # filled in on the device: a copy of Python's number would wait for it
            coordinate = torch.full((), coordinate, device=rng_keys.device)
        state = _mix(state ^ _mix(coordinate.to(rng_keys.device) + 1))
    return (_shift(state, 11).double() + 0.5) / 2**53


def cell_normal(
    rng_keys: Int[Tensor, "*#cells"], *coordinates: Int[Tensor, "*#cells"] | int
) -> Float[Tensor, "*cells"]:
    """Draw a standard normal random number for each cell, as `cell_uniform` does a uniform one.

    Args:
        rng_keys: A random key for each row, such as `ImageColumns.rng_keys`.
        *coordinates: Numbers that tell the cells of a row apart: layer, head, token, dimension.

    Returns:
        Float64 numbers of mean 0 and variance 1, on the device of the keys, in the broadcast shape.
    """
    normal: Tensor = torch.special.ndtri(cell_uniform(rng_keys, *coordinates))
    return normal


@functools.cache
def diffusion_signal_kept(step: int, *, beta_max: float = 5e-3) -> float:
    """How much of a signal is left after `step` of 1000 forward diffusion steps.

    VCD's sigmoid schedule: `beta_t = sigmoid(linspace(-6, 6)) * (beta_max - 1e-5) + 1e-5`
    (DAMO-NLP-SG/VCD, vcd_utils/vcd_add_noise.py).

    Args:
        step: The last diffusion step that is applied, from 0 to 999.
        beta_max: The upper limit of `beta_t`, the variance of the noise that one step adds.

    Returns:
        The share of the signal's variance that is kept, in (0, 1).
    """
    beta = torch.linspace(-6, 6, DIFFUSION_STEPS, dtype=torch.float64).sigmoid()
    return float((1 - (beta * (beta_max - 1e-5) + 1e-5)[: step + 1]).prod())


DIFFUSION_STEPS = 1000
"""How many steps the diffusion schedule has."""


def diffuse(clean: Tensor, noise: Tensor, *, kept: float) -> Tensor:
    """Mix a signal with noise: `sqrt(kept) * clean + sqrt(1 - kept) * noise`.

    Args:
        clean: The signal, such as pixels or values; any shape.
        noise: Noise of the same shape.
        kept: The share of the signal's variance that is kept, in [0, 1]; see
            `diffusion_signal_kept`.

    Returns:
        The noised signal, in the same shape.
    """
    return math.sqrt(kept) * clean + math.sqrt(1 - kept) * noise


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift: torch's own carries the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
