"""What a distorted branch, or an intervention, may change, and how a plug-in says so.

Every part of a method is a frozen dataclass: its fields are its hyper-parameters, checked in
`__post_init__`. It holds no state between calls, writes to none of its arguments, and takes all
its randomness from what it is passed.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.depth import EVERY_LAYER, Depth
from cdkit.interfaces.part import Part
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.registry import Registry

Modified = Literal["pixels", "features", "prompt", "logits", "text_logits", "values"]
"""What a strategy changes: the pixels; the features that the encoder makes of them; the prompt; the
attention logits, or the values, of the cells between text rows and the image before them; the
logits of those rows on the text."""


class DistortionStrategy(Part, abc.ABC):
    """Makes a distorted branch from the original one. Subclass one of the three kinds below."""

    modifies: ClassVar[frozenset[Modified]]
    """All that it changes; the contract suite holds it to that."""
    renamed: ClassVar[Mapping[str, str]] = {"touches": "modifies"}


class PixelDistortion(DistortionStrategy):
    """Distorts the image before it is encoded."""

    modifies = frozenset({"pixels"})
    needs_colours: ClassVar[bool] = False
    """Whether it works on colours in [0, 1]. Then it has fields `mean` and `std`, which `attach`
    fills with the processor's where they are None."""

    @abc.abstractmethod
    def distort(
        self, pixels: Float[Tensor, "*shape"], *, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        """Distort the pixels of one sample, as its processor normalised them, on the CPU.

        Images of one size come together, below each other; images of unequal sizes one after the
        other. So an image's result must not depend on the pixels of another one. All randomness is
        drawn from `generator`: it belongs to (seed, sample).
        """


@dataclass(frozen=True)
class Prompt:
    """One sample's prompt as token ids, without padding, each image token in its place."""

    ids: tuple[int, ...]
    is_image: tuple[bool, ...]
    system_slot: int
    """Where the adapter puts an instruction that comes before everything else."""
    question_slot: int
    """Where the text after the last image starts."""
    encode: Callable[[str], tuple[int, ...]]
    """Text to token ids, without special tokens; needs a processor."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.is_image):
            raise CdkitError(f"{len(self.ids)} ids but {len(self.is_image)} image flags")

    def insert(self, text: str, *, at: int) -> "Prompt":
        """The prompt with `text` before the token `at`."""
        new = self.encode(text)
        return replace(
            self,
            ids=self.ids[:at] + new + self.ids[at:],
            is_image=self.is_image[:at] + (False,) * len(new) + self.is_image[at:],
            system_slot=self.system_slot + len(new) * (at < self.system_slot),
            question_slot=self.question_slot + len(new) * (at < self.question_slot),
        )

    def without_image(self) -> "Prompt":
        """The prompt with every image token taken out."""
        kept = tuple(i for i, image in zip(self.ids, self.is_image, strict=True) if not image)
        return replace(
            self,
            ids=kept,
            is_image=(False,) * len(kept),
            system_slot=self.system_slot - sum(self.is_image[: self.system_slot]),
            question_slot=self.question_slot - sum(self.is_image[: self.question_slot]),
        )


class FeatureDistortion(DistortionStrategy):
    """Distorts the image features that the decoder is given, by what the original branch looked at.

    The engine runs the original branch over the prompt once more to know that.
    """

    modifies = frozenset({"features"})

    @abc.abstractmethod
    def distort(
        self,
        features: Float[Tensor, "tokens hidden"],
        attention: Float[Tensor, "layers tokens"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "tokens hidden"]:
        """Distort the features of all image tokens of one sample.

        `attention` holds the weights of the prompt's last row on them in each layer, after the
        softmax over the whole row, averaged over heads, in float32 or better. All randomness is
        drawn from `generator`, on the CPU: it belongs to (seed, sample).
        """


class PromptDistortion(DistortionStrategy):
    """Distorts the prompt: another instruction, no image."""

    modifies = frozenset({"prompt"})
    needs_text: ClassVar[bool]
    """Whether it calls `Prompt.encode`: then `attach` asks for a processor."""
    removes_image: ClassVar[bool] = False
    """Whether it takes the image out, so that nothing else can be done to the image there."""

    @abc.abstractmethod
    def distort(self, prompt: Prompt) -> Prompt:
        """The branch's prompt. Image tokens may be taken out all together, never added or moved."""


class AttentionDistortion(DistortionStrategy):
    """Distorts the cross-modal attention."""

    keeps_prefix: ClassVar[bool] = True
    """Whether states up to the last token of the first image are those of the original branch: then
    the engine computes them once."""
    layers: Depth = EVERY_LAYER
    """Where it acts; a field of those that do not act in every decoder layer."""
    renamed: ClassVar[Mapping[str, str]] = {"whole_prompt": "needs_whole_prompt"}

    @property
    @abc.abstractmethod
    def needs_whole_prompt(self) -> bool:
        """Whether a cell depends on the prompt's other rows (a threshold over all of them).

        Then the engine refuses what would split the prompt after the image: `prefill_chunk_size`,
        a given cache, `use_cache=False`.
        """

    @abc.abstractmethod
    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        """The segment with new `logits` or with `replaced` cells and their `replacement`."""


DISTORTIONS = Registry[DistortionStrategy](
    DistortionStrategy,
    what="distortion strategy",
    folder="cdkit.strategies.distortions",
    group="cdkit.strategies",
)
