"""The embedded world: images, annotations and benchmark files drawn from a seed, and its model."""

from cdkit.evals.microworld.files import BenchmarkFiles, write_benchmarks
from cdkit.evals.microworld.world import CONFIRMATION_WORLD, WORLD, Hearsay, World

__all__ = [
    "CONFIRMATION_WORLD",
    "WORLD",
    "BenchmarkFiles",
    "Hearsay",
    "World",
    "write_benchmarks",
]
