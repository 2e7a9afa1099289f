"""Finished runs with made-up answers to the micro-world's files: a stand-in for reading folders."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdkit.evals.microworld.world import WORLD
from cdkit.evals.runner.finished import FinishedPart, FinishedRun
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Answer, Sample

EVERYTHING = " and ".join(f"a {name}" for name in WORLD.categories)
"""A caption that hallucinates in every image."""

MANIFEST: Mapping[str, Any] = {
    "name": "stand-in",
    "settings": {"temperature": 1.0, "top_k": None, "top_p": None, "num_beams": 5},
    "model": {
        "name": "micro",
        "files": {"model.safetensors": "ab" * 32},
        "dtype": "float32",
        "prompt": "USER: <image>\nis it so ? ASSISTANT:",
    },
    "versions": {"torch": "2.13.0", "cdkit": "0.1.0"},
    "pieces": [{"batch_size": 8, "processes": 1, "devices": ["here: cpu"]}],
    "wall_seconds": 20.5,
}


def finished(
    folder: Path,
    method: str,
    benchmarks: Mapping[str, Benchmark],
    skill: float,
    *,
    seeds: Sequence[int | None] = (None,),
    mode: str = "greedy",
    failed: Collection[str] = (),
    scored: bool = True,
    **manifest: object,
) -> FinishedRun:
    """A run that is right with chance `skill`; the same seed meets the same luck in every run.

    `failed` samples have an error in place of an answer; without `scored` there is no yes score.
    """
    parts = {}
    for name, benchmark in benchmarks.items():
        asked = [sample for sample in benchmark.samples() if sample.id not in failed]
        answers = {seed: said(asked, skill, seed or 0, scored) for seed in seeds}
        lost = {s.id: "the image is truncated" for s in benchmark.samples() if s.id in failed}
        parts[name] = FinishedPart(name, benchmark, folder, answers, lost)
    return FinishedRun(folder, "micro", method, mode, parts, {**MANIFEST, **manifest}, 12.5, 250)


def said(samples: Sequence[Sample], skill: float, seed: int, scored: bool) -> dict[str, Answer]:
    found = {}
    for sample in samples:
        luck = np.random.default_rng([seed, *sample.id.encode()]).random()
        right = luck < skill
        yes = (sample.target == "yes") == right
        caption = "a picture" if right else EVERYTHING
        text = ("Yes." if yes else "No.") if sample.target else caption
        score = (skill - luck) * (1 if sample.target == "yes" else -1)
        found[sample.id] = Answer(text, yes_score=score if scored else None, tokens=2)
    return found


def without_part(run: FinishedRun, part: str) -> FinishedRun:
    parts = {name: value for name, value in run.parts.items() if name != part}
    return dataclasses.replace(run, parts=parts)
