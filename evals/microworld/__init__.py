"""The embedded world: images, annotations and benchmark files drawn from a seed, and its model."""

from cdkit.evals.microworld.world import CONFIRMATION_WORLD, WORLD, LabelNoise, World
from cdkit.evals.microworld.world_files import BenchmarkFiles, write_benchmarks

__all__ = [
    "CONFIRMATION_WORLD",
    "WORLD",
    "BenchmarkFiles",
    "LabelNoise",
    "World",
    "write_benchmarks",
]
