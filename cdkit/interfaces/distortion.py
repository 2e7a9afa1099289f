"""What a distorted branch may change, and the interfaces of the plug-ins that change it.

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
from cdkit.interfaces.cell_change import CellChange
from cdkit.interfaces.depth import EVERY_LAYER, Depth
from cdkit.interfaces.part import Part
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.registry import Registry

Modified = Literal["pixels", "features", "prompt", "logits", "text_logits", "values"]
"""What a strategy changes.

`pixels`: the pixels of the image. `features`: the features that the image encoder makes of them.
`prompt`: the tokens of the prompt. `logits`: the attention logits of the cells between text rows
and the image before them. `values`: the values that those cells weigh. `text_logits`: the attention
logits of those rows on text.
"""


class DistortionStrategy(Part, abc.ABC):
    """Makes a distorted branch from the original one. Subclass one of the four kinds below."""

    modifies: ClassVar[frozenset[Modified]]
    """Everything that it changes. The contract suite checks that it changes nothing else."""
    draw: int = 0
    """Which random numbers its generator gives: distortions of one class with different numbers
    draw independently. A distortion of pixels or features where this can be chosen has it as a
    field."""
    renamed: ClassVar[Mapping[str, str]] = {"touches": "modifies"}


class PixelDistortion(DistortionStrategy):
    """Distorts the image before it is encoded."""

    modifies = frozenset({"pixels"})
    elementwise: ClassVar[bool] = False
    """Whether each number of an image is changed by itself, by noise of its own at most. Then it
    does not matter where a number stands, so `distort` may be given the numbers of an image in any
    order and shape: the distortion also runs where the order of the pixels is not known, and where
    an image comes in several tensors."""
    needs_colours: ClassVar[bool] = False
    """Whether it works on colours in [0, 1]. Then it has the fields `mean` and `std`, one number
    for each channel. Where they are None, `attach` fills in those of the processor."""

    @abc.abstractmethod
    def distort(
        self, pixels: Float[Tensor, "*shape"], *, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        """Distort the pixels of one sample.

        Args:
            pixels: Pixels as the processor normalised them, on the CPU: (frames, channels, height,
                width), or in any shape where this is `elementwise`. They are all images of the
                sample where these have one size, else one image: so an image's result must not
                depend on the pixels of another one.
            generator: The source of all randomness, on the CPU; it belongs to (seed, sample).

        Returns:
            New pixels in the same shape and unit.
        """


@dataclass(frozen=True)
class Prompt:
    """One sample's prompt as token ids, without padding, each image token in its place."""

    ids: tuple[int, ...]
    """The token ids, those of image tokens included."""
    is_image: tuple[bool, ...]
    """For each token whether it is an image token."""
    system_slot: int
    """The index before which an instruction stands that comes before all other text."""
    question_slot: int
    """The index at which the text after the last image starts."""
    encode: Callable[[str], tuple[int, ...]]
    """Turns text into token ids, without special tokens. Calling it needs a processor."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.is_image):
            raise CdkitError(f"{len(self.ids)} ids but {len(self.is_image)} image flags")

    def insert(self, text: str, *, at: int) -> "Prompt":
        """Insert text into the prompt.

        Args:
            text: The text.
            at: The index of the token before which it is inserted.

        Returns:
            The new prompt; its slots move with the tokens.
        """
        new = self.encode(text)
        return replace(
            self,
            ids=self.ids[:at] + new + self.ids[at:],
            is_image=self.is_image[:at] + (False,) * len(new) + self.is_image[at:],
            system_slot=self.system_slot + len(new) * (at < self.system_slot),
            question_slot=self.question_slot + len(new) * (at < self.question_slot),
        )

    def without_image(self) -> "Prompt":
        """Take every image token out.

        Returns:
            The new prompt; its slots move with the tokens.
        """
        kept = tuple(i for i, image in zip(self.ids, self.is_image, strict=True) if not image)
        return replace(
            self,
            ids=kept,
            is_image=(False,) * len(kept),
            system_slot=self.system_slot - sum(self.is_image[: self.system_slot]),
            question_slot=self.question_slot - sum(self.is_image[: self.question_slot]),
        )


class FeatureDistortion(DistortionStrategy):
    """Distorts the image features that the decoder gets, by what the original branch attends to.

    To measure this attention, the engine runs the original branch over the prompt once more.
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

        Args:
            features: The features of the sample's image tokens, in their order.
            attention: For each layer the attention weights of the prompt's last token on these
                image tokens: after the softmax over all tokens before it, averaged over heads, in
                float32 or better.
            generator: The source of all randomness, on the CPU; it belongs to (seed, sample).

        Returns:
            New features in the same shape.
        """


class PromptDistortion(DistortionStrategy):
    """Distorts the prompt: another instruction, or no image."""

    modifies = frozenset({"prompt"})
    needs_text: ClassVar[bool]
    """Whether it calls `Prompt.encode`. Then `attach` requires a processor."""
    removes_image: ClassVar[bool] = False
    """Whether it takes the image out. Then no other distortion of the branch can act on the image.
    """

    @abc.abstractmethod
    def distort(self, prompt: Prompt) -> Prompt:
        """Rewrite the prompt of one sample.

        Args:
            prompt: The original prompt, or the one that the branch's distortion before this one
                made.

        Returns:
            The branch's prompt. All image tokens may be taken out together; none may be added or
            moved.
        """


class AttentionDistortion(DistortionStrategy):
    """Distorts the cross-modal attention."""

    keeps_prefix: ClassVar[bool] = True
    """Whether hidden states up to the last token of the first image are those of the original
    branch. Then the engine computes them once for both."""
    layers: Depth = EVERY_LAYER
    """The layers in which it acts. A distortion that does not act in every decoder layer has this
    as a field."""
    remembers: ClassVar[bool] = False
    """Whether it keeps something in `CrossModalSegment.memory` from call to call. Then what splits
    the prompt, steps without a cache, and decode loops, which take tokens back, are refused."""
    renamed: ClassVar[Mapping[str, str]] = {"whole_prompt": "needs_whole_prompt"}

    @property
    @abc.abstractmethod
    def needs_whole_prompt(self) -> bool:
        """Whether a cell depends on the prompt's other rows, such as by a threshold over all rows.

        Then the engine refuses arguments that split the prompt after the image:
        `prefill_chunk_size`, a given cache, `use_cache=False`.
        """

    @abc.abstractmethod
    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        """Distort the cross-modal attention of one layer; a pure function.

        Args:
            segment: The layer's text rows times image columns. A row of the batch must not depend
                on another one. Randomness comes from `segment.image.rng_keys` alone.

        Returns:
            `dataclasses.replace(segment, ...)` with new `logits` (before the softmax, in float32
            or better), new `text_logits`, `replaced` cells and their `replacement` values, or
            `pruned` image tokens.
        """

    def cell_change(self) -> CellChange | None:
        """Say what `distort` does, where it does no more than to change the cells of a selector.

        A kernel may then take the place of `distort` in generated rows. The contract suite compares
        both.

        Returns:
            The change; None, the default, where it cannot be said so.
        """
        return None


DISTORTIONS = Registry[DistortionStrategy](
    DistortionStrategy,
    what="distortion strategy",
    folder="cdkit.strategies.distortions",
    group="cdkit.strategies",
)
