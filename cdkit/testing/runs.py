"""The contract suite of model adapters: methods at work on the model, in every decode mode."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdkit.attachment import attach
from cdkit.interfaces.combiner import LogitCombiner, State
from cdkit.interfaces.distortion import (
    DISTORTIONS,
    AttentionDistortion,
    DistortionStrategy,
    Modified,
    PixelDistortion,
    Prompt,
    PromptDistortion,
)
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.methods.method import ORIGINAL, Branch, Method
from cdkit.testing.prompts import Inputs
from cdkit.testing.tools import precision, require, require_close

STEPS, BRANCH = 3, "distorted"
MODES: Mapping[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam search": {"num_beams": 2},
}

TOGETHER = frozenset({"one_forward", "fast_kernels"})
"""Both branches through the whole prompt, in one batch: the rows that a model may mix up."""


@dataclass(frozen=True)
class Difference(LogitCombiner):
    """`l + alpha (l - l~)` on all tokens."""

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
class Mirrored(PixelDistortion):
    """The last axis of the pixels turned round."""

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels.flip(-1)


@dataclass(frozen=True)
class WithoutImage(PromptDistortion):
    """The prompt without its image tokens."""

    needs_text: ClassVar[bool] = False

    def distort(self, prompt: Prompt) -> Prompt:
        return prompt.without_image()


@dataclass(frozen=True)
class Instructed(PromptDistortion):
    """The prompt with its first words once more."""

    needs_text: ClassVar[bool] = True

    def distort(self, prompt: Prompt) -> Prompt:
        return prompt.insert("no yes no", at=prompt.system_slot)


@dataclass(frozen=True)
class Faint(AttentionDistortion):
    """Image logits halved."""

    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits"})

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return replace(segment, logits=segment.logits / 2)


@dataclass(frozen=True)
class Same(AttentionDistortion):
    """Nothing is distorted."""

    modifies: ClassVar[frozenset[Modified]] = frozenset()

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return segment


def contrasted(distortion: DistortionStrategy) -> Method:
    name = type(distortion).__name__
    return Method(name, combiner=Difference(), branches=(Branch(BRANCH, (distortion,)),))


def distortions(*, text: bool) -> Iterator[DistortionStrategy]:
    """One of each kind; of a kind that is not named here the first that is registered."""
    own: list[DistortionStrategy] = [Mirrored(), WithoutImage(), Faint()]
    yield from own
    if text:
        yield Instructed()
    for kind in DistortionStrategy.__subclasses__():
        if not any(isinstance(known, kind) for known in own):
            yield from [cls() for cls in DISTORTIONS.values() if issubclass(cls, kind)][:1]


def generated(model: Any, inputs: Inputs, *, steps: int = STEPS, **asked: Any) -> Any:
    """Exactly so many tokens, by the model's own `generate`; its random numbers are its own."""
    how = {"do_sample": False, "num_beams": 1} | asked
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.generate(
            **inputs,
            **how,
            min_new_tokens=steps,
            max_new_tokens=steps,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
        )


def check_runs(
    adapter: ModelAdapter, model: Any, one: Inputs, other: Inputs, *, both: Inputs, processor: Any
) -> None:
    """`both` is the left-padded batch of `one` and `other`."""
    stock = torch.stack(generated(model, both).logits)
    for prompt in (one, other, both):
        check_stock(adapter, model, prompt, processor)
    for distortion in distortions(text=processor is not None):
        for mode in MODES:
            method = contrasted(distortion)
            _check_mode(adapter, model, (one, other), both, method, mode, processor)
    again = torch.stack(generated(model, both).logits)
    require(again.equal(stock), adapter, "leaving restores the stock model, to the bit")


def check_stock(adapter: ModelAdapter, model: Any, prompt: Inputs, processor: Any) -> None:
    """A method that does nothing is the stock model, whether it is skipped or forced."""
    stock = generated(model, prompt)
    with attach(model, Method("nothing", combiner=Difference(alpha=0.0)), processor=processor):
        untouched = generated(model, prompt)
    equal = torch.stack(untouched.logits).equal(torch.stack(stock.logits))
    require(equal, adapter, "with nothing to do the logits are the stock model's, to the bit")
    check_identical(adapter, model, prompt, stock, optimize=TOGETHER)


def check_identical(
    adapter: ModelAdapter,
    model: Any,
    prompt: Inputs,
    stock: Any,
    *,
    optimize: bool | Collection[str],
) -> None:
    """A second branch, alike and through the attention function, changes nothing.

    `stock` is the output of a plain `generate`; `optimize` goes to `cdkit.attach`. A row counts as
    long as its tokens are the stock model's: in half precision two may lie so close that rounding
    chooses.
    """
    with attach(model, contrasted(Same()), optimize=optimize):
        forced = generated(model, prompt, steps=len(stock.logits))
    # generate hands out float32, whatever the model computes in
    within = max(precision(stock.logits[0].dtype), precision(model.dtype))
    promise = "an identical branch gives the stock model's logits"
    alike = torch.ones_like(stock.sequences[:, 0], dtype=torch.bool)
    for step, (own, wanted) in enumerate(zip(forced.logits, stock.logits, strict=True)):
        if bool(alike.any()):
            require_close(own[alike], wanted[alike], adapter, promise, within=within)
        column = step - len(stock.logits)
        alike = alike & (forced.sequences[:, column] == stock.sequences[:, column])


def _check_mode(
    adapter: ModelAdapter,
    model: Any,
    alone: tuple[Inputs, Inputs],
    both: Inputs,
    method: Method,
    mode: str,
    processor: Any,
) -> None:
    where = f"{method.name} under {mode}"
    outputs = []
    for prompt in (*alone, both):
        with attach(model, method, processor=processor, trace=("logits",)) as run:
            outputs.append(generated(model, prompt, **MODES[mode]))
        require(len(run.trace.steps) == STEPS, adapter, f"{where}: each step is the method's")
        for number, step in enumerate(run.trace.steps):
            original, distorted = step.logits[ORIGINAL], step.logits[BRANCH]
            finite = bool(original.isfinite().all() and distorted.isfinite().all())
            require(finite, adapter, f"{where}: logits are finite", f"step {number}")
            differs = bool((original != distorted).any(dim=-1).all())
            promise = f"{where}: the distortion reaches the model at every step"
            require(differs, adapter, promise, f"step {number}")
    batch = outputs.pop()
    promise = f"{where}: an answer is the same alone and in a left-padded batch"
    for row, own in enumerate(outputs):
        if mode == "beam search":  # the rows of its logits are beams, in an order of their own
            new = [out.sequences[:, -STEPS:] for out in (own, batch)]
            require(new[0][0].equal(new[1][row]), adapter, promise, (new[0][0], new[1][row]))
            scores = own.sequences_scores, batch.sequences_scores[row : row + 1]
            require_close(*scores, adapter, promise)
            continue
        steps = 1 if mode == "sampling" else STEPS  # the draws of a batch are others
        for own_logits, logits in zip(own.logits[:steps], batch.logits[:steps], strict=True):
            require_close(logits[row : row + 1], own_logits, adapter, promise)
