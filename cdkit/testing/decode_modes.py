"""Methods at work on a model in every decode mode, alone and in a padded batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cdkit.attachment import attach
from cdkit.interfaces.distortion import (
    DISTORTIONS,
    AttentionDistortion,
    DistortionStrategy,
    FeatureDistortion,
    Modified,
    PixelDistortion,
    Prompt,
    PromptDistortion,
)
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method
from cdkit.probing.identical_branch import (
    BRANCH,
    ONE_BATCH,
    Difference,
    Unchanged,
    check_identical_branch,
    contrasted,
)
from cdkit.probing.promises import require, require_close
from cdkit.probing.stock_generate import Inputs, generate_tokens

STEPS = 3
MODES: Mapping[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam search": {"num_beams": 2},
}


@dataclass(frozen=True)
class Mirrored(PixelDistortion):
    """The picture mirrored left to right."""

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels.flip(-1)


@dataclass(frozen=True)
class WithoutImage(PromptDistortion):
    """The prompt without its image tokens."""

    needs_text: ClassVar[bool] = False
    removes_image: ClassVar[bool] = True

    def distort(self, prompt: Prompt) -> Prompt:
        return prompt.without_image()


@dataclass(frozen=True)
class Dimmed(PixelDistortion):
    """The image with half its contrast, wherever its pixels stand."""

    elementwise: ClassVar[bool] = True

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return pixels / 2


@dataclass(frozen=True)
class Instructed(PromptDistortion):
    """The prompt with some words before everything else."""

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
class Halved(FeatureDistortion):
    """The features of the image halved, of however few tokens."""

    def distort(self, features: Tensor, attention: Tensor, *, generator: torch.Generator) -> Tensor:
        return features / 2


def distortions(*, text: bool, ordered: bool = True) -> Iterator[DistortionStrategy]:
    """One distortion of each kind.

    Of a kind that has none in this file the first one that is registered.

    Args:
        text: Whether a processor is there that can encode text.
        ordered: Whether it is known where pixels stand.
    """
    of_pixels = Mirrored() if ordered else Dimmed()
    simple: list[DistortionStrategy] = [of_pixels, WithoutImage(), Faint(), Halved()]
    yield from simple
    if text:
        yield Instructed()
    for kind in DistortionStrategy.__subclasses__():
        if not any(isinstance(known, kind) for known in simple):
            yield from [cls() for cls in DISTORTIONS.values() if issubclass(cls, kind)][:1]


def check_decode_modes(
    adapter: ModelAdapter,
    model: Any,
    one: Inputs,
    other: Inputs,
    *,
    both: Inputs,
    processor: Any,
    ordered: bool,
) -> None:
    """Require that methods run as they should in every decode mode.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        one: A prompt.
        other: Another prompt.
        both: The left-padded batch of the two.
        processor: The model's processor; without it no distortion writes text.
        ordered: Whether the adapter knows where pixels stand.

    Raises:
        AssertionError: Where a promise is broken.
    """
    stock = torch.stack(generate_tokens(model, both, steps=STEPS).logits)
    for prompt in (one, other, both):
        check_stock(adapter, model, prompt, processor)
    for distortion in distortions(text=processor is not None, ordered=ordered):
        if isinstance(distortion, FeatureDistortion) and adapter.features_in_layers:
            continue  # refused when it is attached
        for mode in MODES:
            if "num_beams" in MODES[mode] and _are_mixed_up(adapter, model, both):
                continue  # refused
            method = contrasted(distortion)
            _check_mode(adapter, model, (one, other), both, method, mode, processor)
    again = torch.stack(generate_tokens(model, both, steps=STEPS).logits)
    require(
        again.equal(stock),
        adapter,
        "leaving restores the stock model, to the bit",
        todo="set no attribute of the model, its modules or its config",
    )


def _are_mixed_up(adapter: ModelAdapter, model: Any, prompts: Inputs) -> bool:
    """Whether `generate` would repeat each of a prompt's images for its beams: a decoder that
    encodes them itself gets them like that."""
    several = int(adapter.image_index(model, prompts["input_ids"]).max()) > 0
    return several and adapter.decoder_encodes


def check_stock(adapter: ModelAdapter, model: Any, prompt: Inputs, processor: Any) -> None:
    """Require the stock model's logits from a method that does nothing, skipped or forced."""
    stock = generate_tokens(model, prompt, steps=STEPS)
    with attach(model, Method("nothing", combiner=Difference(alpha=0.0)), processor=processor):
        untouched = generate_tokens(model, prompt, steps=STEPS)
    equal = torch.stack(untouched.logits).equal(torch.stack(stock.logits))
    require(
        equal,
        adapter,
        "with nothing to do the logits are the stock model's, to the bit",
        todo="check features, split_pixels and image_index: they decide the decoder's inputs",
    )
    check_identical_branch(
        adapter, model, prompt, stock, attach=attach, optimize=ONE_BATCH, same=Unchanged()
    )


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
            outputs.append(generate_tokens(model, prompt, steps=STEPS, **MODES[mode]))
        require(
            len(run.trace.steps) == STEPS,
            adapter,
            f"{where}: each step is the method's",
            todo="let lm_module be the module whose forward returns the logits that generate reads",
        )
        for number, step in enumerate(run.trace.steps):
            original, distorted = step.logits[ORIGINAL], step.logits[BRANCH]
            finite = bool(original.isfinite().all() and distorted.isfinite().all())
            require(
                finite,
                adapter,
                f"{where}: logits are finite",
                f"step {number}",
                todo="check what the adapter's encoder and features give, and try float32",
            )
            differs = bool((original != distorted).any(dim=-1).all())
            promise = f"{where}: the distortion reaches the model at every step"
            require(
                differs,
                adapter,
                promise,
                f"step {number}",
                todo="check decoder, layers and attention: they must be the modules that run",
            )
    batch = outputs.pop()
    promise = f"{where}: an answer is the same alone and in a left-padded batch"
    for row, single in enumerate(outputs):
        if mode == "beam search":  # the rows of its logits are beams, whose order says nothing
            new = [out.sequences[:, -STEPS:] for out in (single, batch)]
            require(
                new[0][0].equal(new[1][row]),
                adapter,
                promise,
                (new[0][0], new[1][row]),
                todo="find each row's images by that row alone",
            )
            scores = single.sequences_scores, batch.sequences_scores[row : row + 1]
            require_close(*scores, adapter, promise)
            continue
        steps = 1 if mode == "sampling" else STEPS  # a batch draws other random numbers
        for wanted, logits in zip(single.logits[:steps], batch.logits[:steps], strict=True):
            require_close(logits[row : row + 1], wanted, adapter, promise)
