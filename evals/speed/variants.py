"""The runners of a bench by name: plain decoding, and each method in each variant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.speed.bench_runners import BenchRunner, GenerateRunner
from cdkit.evals.speed.bench_settings import CDKIT, TEXTBOOK, optimizations
from cdkit.evals.speed.prompts import Prompts
from cdkit.evals.speed.textbook import TextbookRunner, has_textbook
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of


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
    """Plain decoding first, then method by method; the textbook loop of those that have one."""
    made: dict[VariantName, BenchRunner] = {PLAIN_NAME: GenerateRunner(model, prompts)}
    for name, method in methods.items():
        for variant in variants_of(method, variants):
            made[VariantName(variant, name)] = runner(model, processor, method, prompts, variant)
    return made


def variants_of(method: Method, variants: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the variants that the method has."""
    return tuple(name for name in variants if name != TEXTBOOK or has_textbook(method))


def check_has_variant(method: Method, variants: tuple[str, ...]) -> None:
    """Raise where nothing of a method would be measured beside the others."""
    if variants and not variants_of(method, variants):
        raise CdkitError(
            f"--variant {TEXTBOOK} is a loop for methods that put noise on the image and do "
            f"nothing else, such as vcd; {method.name} is none: leave out --method {method.name}, "
            f"or add a --variant that every method has, such as {CDKIT}"
        )


def runner(
    model: Any, processor: Any, method: Method, prompts: Prompts, variant: str
) -> BenchRunner:
    """One method in one variant. Raises CdkitError where the method cannot be benched."""
    check_benchable(method)
    if variant == TEXTBOOK and has_textbook(method):
        return TextbookRunner(model, prompts, method)
    optimize = optimizations(variant)
    if optimize is None:
        raise CdkitError(f"no variant of {method.name} is called {variant!r}")
    return GenerateRunner(model, prompts, method, processor, optimize)


def check_benchable(method: Method) -> None:
    """Raise for a method that adds nothing to a pass, or whose rounding errors have no known
    bound."""
    extra: list[object] = [*method.schedules]
    extra += [part for part in (method.loop, method.readout) if part is not None]
    extra += [part for branch in method.branches for part in branch.feature]
    if extra:
        raise CdkitError(
            f"{method.name} cannot be benched: {kind_of(extra[0])} has no place in a bench, which "
            "decodes greedily and first checks that all variants agree within rounding; it knows "
            "how far that may go for distortions of pixels, prompt and attention, interventions "
            "and a calibrator; use a method of these, such as cmac, vcd or icd"
        )
    if not method.combiner.fixed_weights:
        raise CdkitError(
            f"{method.name} cannot be benched: {kind_of(method.combiner)} weighs a branch by what "
            "its logits are, so how far rounding may go is not known; use a method of fixed "
            "weights, such as cmac, vcd or icd"
        )
    if not method.live_branches and method.calibrator is None and not method.interventions:
        raise CdkitError(
            f"{method.name} cannot be benched: it has no distorted branch, no calibrator and no "
            "intervention, so a pass costs what plain decoding costs; use a method with one of "
            "them, such as cmac, vcd or icd"
        )
