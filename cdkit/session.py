"""The prompts of one `generate` call, or of one plain call, before they are expanded to rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.method import Branch
from cdkit.noise import generator, purpose_of, stream


@dataclass(eq=False)
class Session:
    """What is noted once, before the first forward call."""

    ids: Int[Tensor, "samples tokens"]
    real: Tensor
    """The prompts' mask: (samples, tokens), False on padding."""
    image_index: Int[Tensor, "samples tokens"]
    pixels: Float[Tensor, "images ..."] | None
    seed: int
    given_ids: tuple[str, ...] | None
    features: dict[str, Sequence[Tensor]] = field(default_factory=dict)
    """Branch -> features of its distorted images, image by image."""
    looked: dict[str, list[Tensor]] = field(default_factory=dict)
    """Branch -> each sample's features, made from where the original branch looks."""

    def __post_init__(self) -> None:
        samples = self.ids.shape[0]
        if self.given_ids is not None and len(self.given_ids) != samples:
            raise CdkitError(
                f"sample_ids has {len(self.given_ids)} names for {samples} prompts; give one each"
            )

    @cached_property
    def images(self) -> list[int]:
        """How many images each sample has."""
        return [int(count) for count in self.image_index.amax(dim=1) + 1]

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
                own = self.pixels[first : first + count].detach().to("cpu", torch.float32)
                digest.update(own.contiguous().numpy().tobytes())
            first += count
            names.append(digest.hexdigest())
        return tuple(names)

    def streams(self, expand: int) -> Int[Tensor, " rows"]:
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

    def distorted_pixels(self, branch: Branch, pixels: Tensor) -> Tensor:
        """The branch's images: each sample's noise comes from (seed, sample id) alone."""
        if pixels.shape[0] != sum(self.images):
            raise CdkitError(
                f"the prompts have {sum(self.images)} images but {pixels.shape[0]} were passed"
            )
        new, first = [], 0
        for name, count in zip(self.sample_ids, self.images, strict=True):
            own = pixels[first : first + count].to("cpu")
            first += count
            for distortion in branch.pixel:
                random = generator(self.seed, name, purpose_of(distortion))
                own = distortion.distort(own, generator=random)
            new.append(own)
        return torch.cat(new).to(pixels)
