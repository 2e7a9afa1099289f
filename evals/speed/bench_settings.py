"""What is asked of a bench, as plain data, and the names of what it can measure."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_checks import (
    LARGEST_SEED,
    MOST_THREADS,
    WHY_THREADS,
    check_integer,
)
from cdkit.evals.runner.chosen_model import AUTO, ChosenModel, check_dtype
from cdkit.evals.runner.modes import PLAIN
from cdkit.execution.optimizations import ALL, WHAT
from cdkit.registry import unknown

TWO_PASS, TEXTBOOK, CDKIT = "two-pass", "textbook", "cdkit"
DEFAULT = (PLAIN, TWO_PASS, TEXTBOOK, CDKIT)
ONLY, WITHOUT = f"{CDKIT}:only-", f"{CDKIT}:without-"
NONE = f"{CDKIT}:none"
EACH = (NONE, *(f"{ONLY}{name}" for name in WHAT), *(f"{WITHOUT}{name}" for name in WHAT))
"""cdkit with each optimisation alone, and with all but that one."""
VARIANTS = (*DEFAULT, *EACH)
METHODS = ("cmac", "vcd", "icd")
MICRO, HALF, SEVEN, DEEP = SHAPES = ("micro", "0.5b", "7b", "deep")


def optimizations(variant: str) -> frozenset[str] | bool | None:
    """Those that a variant of cdkit has on; None for a variant without cdkit.

    True is what users have, all of them; False is the plain algorithm.
    """
    if variant == TWO_PASS:
        return False
    if variant == CDKIT:
        return True
    if variant == NONE:
        return frozenset()
    if variant.startswith(ONLY):
        return frozenset({variant.removeprefix(ONLY)})
    if variant.startswith(WITHOUT):
        return frozenset(ALL - {variant.removeprefix(WITHOUT)})
    return None


@dataclass(frozen=True)
class BenchSettings:
    """One bench: a model of one shape, answers of one length, at each batch size and text length.

    `image_tokens` None is 576, or what the shape is fixed to; `dtype` "auto" is float32 for "micro"
    and "deep", bfloat16 for the others; `device` "auto" is the accelerator there is, else the CPU;
    `threads` None is torch's own choice.
    """

    shape: str = MICRO
    methods: tuple[str, ...] = METHODS
    variants: tuple[str, ...] = DEFAULT
    batches: tuple[int, ...] = (1,)
    text_tokens: tuple[int, ...] = (50,)
    new_tokens: int = 64
    image_tokens: int | None = None
    dtype: str = AUTO
    device: str = AUTO
    rounds: int = 5
    threads: int | None = None
    seed: int = 0
    profile: bool = False
    """Whether one more answer of each variant runs under torch's profiler."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise CdkitError(unknown("--shape", self.shape, SHAPES))
        for variant in self.variants:
            if variant not in VARIANTS:
                raise CdkitError(unknown("--variant", variant, VARIANTS))
        check_dtype("--dtype", self.dtype)
        for option, values in (("--batch", self.batches), ("--text-tokens", self.text_tokens)):
            if not values or len(set(values)) < len(values):
                raise CdkitError(f"{option} is given twice with the same value: {list(values)}")
        _at_least(1, "--batch", self.batches)
        # the beginning of the prompt stands before the image, its question behind
        _at_least(2, "--text-tokens", self.text_tokens)
        # the time per token is taken from the second token on
        _at_least(2, "--new-tokens", (self.new_tokens,))
        _at_least(1, "--rounds", (self.rounds,))
        _at_least(0, "--seed", (self.seed,))
        check_integer("--seed", self.seed, low=0, high=LARGEST_SEED, why="63 bits")
        if self.threads is not None:
            _at_least(1, "--threads", (self.threads,))
            check_integer("--threads", self.threads, low=1, high=MOST_THREADS, why=WHY_THREADS)
        if self.image_tokens is not None:
            side = math.isqrt(max(self.image_tokens, 0))
            if self.image_tokens < 1 or side**2 != self.image_tokens:
                raise CdkitError(
                    f"--image-tokens is {self.image_tokens}: an image is a square of tokens, such "
                    "as 576 (24 x 24) or 144"
                )
        if PLAIN in self.methods:
            raise CdkitError(
                f"--method {PLAIN} always runs, since every ratio is to it: leave it out"
            )
        if len(set(self.methods)) < len(self.methods):
            raise CdkitError(f"--method is given twice with the same value: {list(self.methods)}")

    @property
    def chosen(self) -> ChosenModel:
        """The model of the shape."""
        return ChosenModel(self.shape, self.dtype)

    @property
    def measured(self) -> tuple[str, ...]:
        """The variants of each method; plain is no method's and runs anyway."""
        return tuple(name for name in dict.fromkeys(self.variants) if name != PLAIN)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _at_least(low: int, option: str, values: Sequence[int]) -> None:
    for value in values:
        if value < low:
            raise CdkitError(f"{option} is {value}: give {low} or more")
