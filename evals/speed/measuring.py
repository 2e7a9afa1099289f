"""All variants in turn, round after round, and what each of them took."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from cdkit.errors import CdkitError
from cdkit.evals.speed.bench_runners import BenchRunner
from cdkit.evals.speed.clock import Stopwatch, Times
from cdkit.evals.speed.memory import peak_bytes
from cdkit.evals.speed.shapes import weight_bytes
from cdkit.evals.speed.variants import VariantName


@dataclass(frozen=True)
class Measurements:
    """What one variant took.

    Args:
        times: The times of each round.
        attach: Seconds to attach the method in each round, which are not part of an answer.
        memory: Peak memory in bytes.
    """

    times: tuple[Times, ...]
    attach: tuple[float, ...]
    memory: int


def measure(
    runners: Mapping[VariantName, BenchRunner],
    model: Any,
    *,
    new_tokens: int,
    rounds: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[VariantName, Measurements]:
    """Greedy answers of `new_tokens` tokens.

    In a round every variant answers once, each round starting with another one, so that a machine
    that grows slower or faster does so for all. A round before them warms up and is not counted;
    memory is measured in one more answer that is not timed.
    """
    gc.collect()
    gc.freeze()  # objects that exist already need not be scanned before each answer
    try:
        times, attach = _rounds(runners, model.device, new_tokens, rounds, advance)
        memory = {}
        for name, runner in runners.items():
            memory[name] = _peak(runner, model, new_tokens)
            advance()
    finally:
        gc.unfreeze()
    return {n: Measurements(tuple(times[n]), tuple(attach[n]), memory[n]) for n in runners}


def steps_of(rounds: int) -> int:
    """How often `measure` advances for each variant."""
    return rounds + 2


def _rounds(
    runners: Mapping[VariantName, BenchRunner],
    device: torch.device,
    new_tokens: int,
    rounds: int,
    advance: Callable[[], None],
) -> tuple[dict[VariantName, list[Times]], dict[VariantName, list[float]]]:
    names = list(runners)
    times: dict[VariantName, list[Times]] = {name: [] for name in names}
    attach: dict[VariantName, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds, taken = _timed(name, runners[name], new_tokens, device)
            if turn > 0:
                times[name].append(taken)
                attach[name].append(seconds)
            advance()
    return times, attach


def _timed(
    name: VariantName, runner: BenchRunner, new_tokens: int, device: torch.device
) -> tuple[float, Times]:
    gc.collect()  # what earlier answers left is not this one's to clear away
    watch = Stopwatch(device)
    start = perf_counter()
    with runner.ready():
        attach = perf_counter() - start
        watch.start()
        made = runner.answer(new_tokens, watch.token)
        taken = watch.stop()
    if made.shape[1] != new_tokens or watch.tokens != new_tokens:
        raise CdkitError(f"{name}: {made.shape[1]} of {new_tokens} tokens were answered")
    return attach, taken


def _peak(runner: BenchRunner, model: Any, new_tokens: int) -> int:
    gc.collect()
    with runner.ready():
        return peak_bytes(
            lambda: runner.answer(new_tokens, lambda: None), model, weight_bytes(model)
        )
