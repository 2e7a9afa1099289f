"""The decode modes of a run and the name of the plain method; imports nothing of cdkit."""

from dataclasses import dataclass

GREEDY, SAMPLE, BEAM = DECODE = ("greedy", "sample", "beam")
PLAIN = "plain"
"""The method that every difference is taken to."""


@dataclass(frozen=True)
class Decode:
    """Greedy or beam search (no seed), or sampling under one seed."""

    mode: str = GREEDY
    seed: int | None = None
