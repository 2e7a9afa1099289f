"""A branch without a distortion must leave the model's logits as they are.

It runs as a second row of the batch and through cdkit's attention function, so it shows whether a
model mixes up the rows, or computes attention in a way that the function does not know.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdkit.interfaces.combiner import LogitCombiner, State
from cdkit.interfaces.distortion import (
    AttentionDistortion,
    DistortionStrategy,
    Modified,
    PixelDistortion,
    Prompt,
    PromptDistortion,
)
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.probing.promises import precision, require_close
from cdkit.probing.stock_generate import Inputs, generate_tokens

Attach = Callable[..., AbstractContextManager[Any]]
"""`cdkit.attach`, or what takes the same arguments. It is passed in, because attaching a method
may begin with the checks of this folder."""

BRANCH = "distorted"
ONE_BATCH = frozenset({"one_forward", "fast_kernels"})
"""Optimizations under which both branches run through the whole prompt, in one batch: then a model
may mix up the rows."""


@dataclass(frozen=True)
class Difference(LogitCombiner):
    """`l + alpha (l - l~)`, with no token ruled out."""

    stateful: ClassVar[bool] = False
    switch: ClassVar[str] = "alpha"
    alpha: float = 1.0

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return self.alpha != 0

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: State
    ) -> tuple[Tensor, State]:
        moved = sum((original - other for other in others.values()), torch.zeros_like(original))
        return original + self.alpha * moved, state


@dataclass(frozen=True)
class Unchanged(AttentionDistortion):
    """Distorts nothing, but makes cdkit compute the attention."""

    modifies: ClassVar[frozenset[Modified]] = frozenset()

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return segment


@dataclass(frozen=True)
class SamePrompt(PromptDistortion):
    """Distorts nothing, but makes the branch run from its own prompt."""

    modifies: ClassVar[frozenset[Modified]] = frozenset()
    needs_text: ClassVar[bool] = False

    def distort(self, prompt: Prompt) -> Prompt:
        return prompt


@dataclass(frozen=True)
class SamePixels(PixelDistortion):
    """Distorts nothing, but makes the branch encode its own image."""

    modifies: ClassVar[frozenset[Modified]] = frozenset()
    elementwise: ClassVar[bool] = True

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels


def contrasted(distortion: DistortionStrategy) -> Method:
    """The method that contrasts the original with one branch that has this distortion."""
    name = type(distortion).__name__
    return Method(name, combiner=Difference(), branches=(Branch(BRANCH, (distortion,)),))


def check_identical_branch(
    adapter: ModelAdapter,
    model: Any,
    prompt: Inputs,
    stock: Any,
    *,
    attach: Attach,
    optimize: bool | Collection[str],
    same: DistortionStrategy,
) -> None:
    """Require the stock model's logits from a method whose one branch distorts nothing.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        prompt: Prompts that it was given.
        stock: The output of `generate_tokens` for them.
        attach: `cdkit.attach`.
        optimize: What `attach` takes under that name.
        same: What distorts nothing in the branch: `Unchanged` where cdkit computes the attention;
            `SamePrompt` or `SamePixels` where the branch is a row of the batch and nothing more.

    Raises:
        AssertionError: Where logits differ. A row is compared for as long as it has chosen the
            stock model's tokens: in half precision two tokens may lie so close that rounding
            chooses.
    """
    with attach(model, contrasted(same), optimize=optimize):
        forced = generate_tokens(model, prompt, steps=len(stock.logits))
    # generate returns float32 logits, whatever the model computes in
    within = max(precision(stock.logits[0].dtype), precision(model.dtype))
    promise = "an identical branch gives the stock model's logits"
    alike = torch.ones_like(stock.sequences[:, 0], dtype=torch.bool)
    for step, (found, wanted) in enumerate(zip(forced.logits, stock.logits, strict=True)):
        if bool(alike.any()):
            require_close(found[alike], wanted[alike], adapter, promise, within=within)
        column = step - len(stock.logits)
        alike = alike & (forced.sequences[:, column] == stock.sequences[:, column])
