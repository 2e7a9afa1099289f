"""What a further token takes, in calls: of operators by Python, and of kernels on a GPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from cdkit.evals.speed.bench_runners import BenchRunner
from cdkit.evals.speed.profiling import profiled
from cdkit.evals.speed.variants import VariantName

FURTHER = 8
"""Over so many tokens after the first the calls of one are averaged, if the answer has them."""


@dataclass(frozen=True)
class TokenCalls:
    """Of one token after the first, all rows of the batch together. No time is in it, so any
    machine gives the same numbers for the same versions and device type."""

    operators: float
    """PyTorch operators that Python calls, without those that operators call."""
    kernels: float | None = None
    """What these start on a GPU: kernels, copies and fills. None without CUDA."""


def count_calls(
    runners: Mapping[VariantName, BenchRunner],
    device: torch.device,
    *,
    new_tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[VariantName, TokenCalls]:
    """Two short answers of each, none of which is timed for anything else."""
    found = {}
    for name, runner in runners.items():
        found[name] = counted(runner, device, further=min(FURTHER, new_tokens - 1))
        advance()
    return found


def counted(runner: BenchRunner, device: torch.device, *, further: int) -> TokenCalls:
    """The calls that `further` tokens after the first add to an answer, for each of them."""
    with runner.ready():
        short, long = (
            profiled(partial(runner.answer, tokens, lambda: None), device, tokens=tokens)
            for tokens in (1, 1 + further)
        )
    operators = (long.calls - short.calls) / further
    if short.kernels is None or long.kernels is None:
        return TokenCalls(operators)
    return TokenCalls(operators, (long.kernels - short.kernels) / further)
