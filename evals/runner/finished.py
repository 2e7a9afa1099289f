"""A run as it is read back from its folder: what was asked, and every answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdkit.interfaces.benchmark import Answer, Benchmark


@dataclass(frozen=True, eq=False)
class FinishedPart:
    """One benchmark of a run, such as one negative sampling of POPE."""

    name: str
    benchmark: Benchmark
    images: Path
    answers: Mapping[int | None, Mapping[str, Answer]]
    """Seed (None: greedy or beams) -> sample id -> answer. Samples that failed are not in it."""
    errors: Mapping[str, str]
    """Sample id -> why it has no answer."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One method of one model on one or more benchmarks, in one decode mode."""

    folder: Path
    method: str
    """The preset's name with its overrides, as tables call it."""
    mode: str
    """"greedy", "sample" or "beam"."""
    parts: Mapping[str, FinishedPart]
    manifest: Mapping[str, object]
    seconds: float
    """Spent in the model, over all processes and resumed pieces."""
    tokens: int
    """Generated in that time."""
