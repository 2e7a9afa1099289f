"""The runners of a bench by name: plain decoding, and each method in each variant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.speed.bench_runners import BenchRunner, GenerateRunner
from cdkit.evals.speed.bench_settings import EAGER, TWO_PASS, optimizations
from cdkit.evals.speed.prompts import Prompts
from cdkit.evals.speed.two_pass import two_pass
from cdkit.methods.method import Method


@dataclass(frozen=True)
class VariantName:
    """One row of a bench."""

    variant: str
    method: str = ""
    """Empty for plain decoding."""

    def __str__(self) -> str:
        return f"{self.method}, {self.variant}" if self.method else self.variant


PLAIN_NAME = VariantName(PLAIN)


def runners(
    model: Any,
    processor: Any,
    methods: Mapping[str, Method],
    prompts: Prompts,
    variants: tuple[str, ...],
) -> dict[VariantName, BenchRunner]:
    """Plain decoding first, then method by method."""
    made: dict[VariantName, BenchRunner] = {PLAIN_NAME: GenerateRunner(model, prompts)}
    for name, method in methods.items():
        for variant in variants:
            made[VariantName(variant, name)] = runner(model, processor, method, prompts, variant)
    return made


def runner(
    model: Any, processor: Any, method: Method, prompts: Prompts, variant: str
) -> BenchRunner:
    """One method in one variant. Raises CdkitError where the method cannot be benched."""
    if variant in (TWO_PASS, EAGER):
        materialised = variant == EAGER
        return two_pass(model, method, prompts, processor=processor, materialised=materialised)
    optimize = optimizations(variant)
    if optimize is None:
        raise CdkitError(f"no variant of a method is called {variant!r}")
    return GenerateRunner(model, prompts, method, processor, optimize)
