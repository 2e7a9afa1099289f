"""Random numbers that belong to a sample, never to a batch, a chunk or a device.

Input noise is drawn from a `torch.Generator` made here for (seed, sample id, purpose). Noise inside
the attention belongs to single cells (row, image token, ...): it is a hash of the cell's own
coordinates, so that a cell gets the same number whichever rows are computed with it.
"""

import functools
import hashlib
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

# splitmix64's constants (Steele, Lea and Flood 2014), as signed 64-bit integers
_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def stream(seed: int, sample_id: str, purpose: str = "") -> int:
    """A signed 64-bit key, equal for equal arguments on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{sample_id}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def generator(seed: int, sample_id: str, purpose: str) -> torch.Generator:
    """A CPU generator for one sample: the same noise on every device."""
    return torch.Generator().manual_seed(stream(seed, sample_id, purpose))


def purpose_of(part: object) -> str:
    """What a distortion's generator is for: its class, and its `draw` where that is not 0.

    Two distortions of one class draw the same numbers for a sample, so that only their parameters
    tell them apart; a field `draw` gives one of them others.
    """
    draw = getattr(part, "draw", 0)
    return type(part).__name__ + (f" {draw}" if draw else "")


def cell_uniform(
    rng_keys: Int[Tensor, "*#cells"], *coordinates: Int[Tensor, "*#cells"] | int
) -> Float[Tensor, "*cells"]:
    """Uniform float64 numbers in (0, 1), one for each broadcast tuple (stream, coordinates)."""
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
    """Standard normal float64 numbers, one for each broadcast tuple (stream, coordinates)."""
    normal: Tensor = torch.special.ndtri(cell_uniform(rng_keys, *coordinates))
    return normal


@functools.cache
def diffusion_signal_kept(step: int, *, beta_max: float = 5e-3) -> float:
    """Share of the signal's variance left after `step` of 1000 forward diffusion steps.

    VCD's sigmoid schedule: `beta_t = sigmoid(linspace(-6, 6)) * (beta_max - 1e-5) + 1e-5`
    (DAMO-NLP-SG/VCD, vcd_utils/vcd_add_noise.py).
    """
    beta = torch.linspace(-6, 6, DIFFUSION_STEPS, dtype=torch.float64).sigmoid()
    return float((1 - (beta * (beta_max - 1e-5) + 1e-5)[: step + 1]).prod())


DIFFUSION_STEPS = 1000


def diffuse(clean: Tensor, noise: Tensor, *, kept: float) -> Tensor:
    """`sqrt(kept) * clean + sqrt(1 - kept) * noise`."""
    return math.sqrt(kept) * clean + math.sqrt(1 - kept) * noise


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift: torch's own carries the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
