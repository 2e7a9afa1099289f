"""The prompts of one `generate` call, or of one plain call, before they are expanded to rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.functional.noise import generator, purpose_of, stream
from cdkit.interfaces.distortion import PixelDistortion
from cdkit.methods.method import Branch


@dataclass(eq=False)
class Session:
    """What is noted once, before the first forward call."""

    ids: Int[Tensor, "samples tokens"]
    real: Tensor
    """The prompts' mask: (samples, tokens), False on padding."""
    image_index: Int[Tensor, "samples tokens"]
    pixels: Sequence[Float[Tensor, "_ channels _ _"]] | None
    """Each image of the prompts, in their order."""
    seed: int
    given_ids: tuple[str, ...] | None
    plain: bool = False
    """Whether the model itself was called, not `generate`."""
    shows_logits: bool = False
    """Whether `generate` hands logits or scores out, not tokens alone."""
    features: dict[str, Float[Tensor, "tokens hidden"]] = field(default_factory=dict)
    """Branch -> features of all image tokens, where it has its own."""
    levels: dict[str, Sequence[Float[Tensor, "tokens hidden"]]] = field(default_factory=dict)
    """Branch, the original one too -> what deeper layers add to the image tokens."""
    looked: dict[str, list[Tensor]] = field(default_factory=dict)
    """Branch -> each sample's features, made from where the original branch looks."""

    def __post_init__(self) -> None:
        samples = self.ids.shape[0]
        if self.given_ids is not None and len(self.given_ids) != samples:
            raise CdkitError(
                f"sample_ids has {len(self.given_ids)} names for {samples} prompts; give one each"
            )
        if self.pixels is not None and len(self.pixels) != sum(self.images):
            raise CdkitError(
                f"the prompts have {sum(self.images)} images but {len(self.pixels)} were passed"
            )

    @cached_property
    def images(self) -> list[int]:
        """How many images each sample has."""
        counts: list[int] = (self.image_index.amax(dim=1) + 1).tolist()
        return counts

    @cached_property
    def tokens(self) -> list[int]:
        """How many image tokens each sample has."""
        counts: list[int] = (self.image_index >= 0).sum(dim=1).tolist()
        return counts

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        """The given ids; without them a digest of each sample's pixels and prompt."""
        if self.given_ids is not None:
            return self.given_ids
        names, first = [], 0
        for row, count in enumerate(self.images):
            digest = hashlib.blake2b(digest_size=16)
            digest.update(str(self.ids[row][self.real[row]].tolist()).encode())
            if self.pixels is not None:
                for image in self.pixels[first : first + count]:
                    own = image.detach().to("cpu", torch.float32)
                    digest.update(own.contiguous().numpy().tobytes())
            first += count
            names.append(digest.hexdigest())
        return tuple(names)

    def rng_keys(self, expand: int) -> Int[Tensor, " rows"]:
        """A random key for each row; the rows of one sample share it."""
        keys = [stream(self.seed, name) for name in self.sample_ids]
        return torch.tensor(keys).repeat_interleave(expand)

    def look(
        self,
        branch: Branch,
        features: Sequence[Float[Tensor, "_ hidden"]],
        attention: Float[Tensor, "samples layers image"],
    ) -> None:
        """Make the branch's features of each sample, given where its last prompt row looks."""
        made = []
        for name, own, seen in zip(self.sample_ids, features, attention, strict=True):
            seen = seen[:, : own.shape[0]]
            for distortion in branch.feature:
                random = generator(self.seed, name, purpose_of(distortion))
                own = distortion.distort(own, seen, generator=random)
            made.append(own)
        self.looked[branch.name] = made

    def distorted_pixels(
        self, branch: Branch, pixels: Sequence[Float[Tensor, "_ channels _ _"]]
    ) -> list[Float[Tensor, "_ channels _ _"]]:
        """The branch's images: each sample's noise comes from (seed, sample id) alone."""
        new: list[Tensor] = []
        for name, count in zip(self.sample_ids, self.images, strict=True):
            own = [image.to("cpu") for image in pixels[len(new) : len(new) + count]]
            for distortion in branch.pixel:
                random = generator(self.seed, name, purpose_of(distortion))
                own = _distorted(distortion, own, random)
            new += own
        return [image.to(pixel) for image, pixel in zip(new, pixels, strict=True)]


def _distorted(
    distortion: PixelDistortion, images: Sequence[Tensor], random: torch.Generator
) -> list[Tensor]:
    """All images of a sample at once where their sizes allow it, else one after the other."""
    frames = [image.shape[0] for image in images]
    if len({image.shape[1:] for image in images}) == 1:
        return list(
            torch.split(distortion.distort(torch.cat(list(images)), generator=random), frames)
        )
    return [distortion.distort(image, generator=random) for image in images]
