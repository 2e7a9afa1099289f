"""Families that pad `pixel_values`, so that images of unequal sizes fit into one tensor.

The padding is taken off before pixels are distorted. Otherwise the noise drawn for an image would
depend on the sizes of the other images in the batch.
"""

import abc
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from cdkit import CdkitError
from cdkit.models.layouts.standard import StandardAdapter, visual_runs


class PaddedTilesOfSizesAdapter(StandardAdapter, abc.ABC):
    """Each image has an entry of `pixel_values`, with as many tiles as the largest image has.

    The tokens of an image are one run. How many tiles it has follows from its size.
    """

    required: ClassVar[tuple[str, ...]] = ("image_sizes",)
    image_token: ClassVar[str] = "image_token_id"
    """Where the config has the id of the image token, a dotted name."""

    @abc.abstractmethod
    def tiles(self, model: Any, given: Mapping[str, Any]) -> list[int]:
        """How many tiles each image has."""

    def check_images(self, model: Any) -> None:
        pass  # images can be told apart by the text between them

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return visual_runs(self, model, ids, ids == attrgetter(self.image_token)(model.config))

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        pixels: Tensor = given[self.pixel_argument]
        if pixels.ndim != 5 or len(pixels) != len(tokens):
            raise CdkitError(
                f"the prompts have {len(tokens)} images, each a run of image tokens, but "
                f"{self.pixel_argument} has shape {tuple(pixels.shape)} in place of (images, "
                "tiles, 3, height, width); put text, as a line break, between the images of a "
                "prompt"
            )
        tiles = self.tiles(model, given)
        return [entry[:count] for entry, count in zip(pixels, tiles, strict=True)]

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        pairs = zip(given[self.pixel_argument], images, strict=True)
        return torch.stack([torch.cat((image, entry[len(image) :])) for entry, image in pairs])


def pixels_by_size(given: Mapping[str, Any]) -> list[Tensor]:
    """Cut images out of the upper left corner of their entry.

    Args:
        given: The arguments of the encoder; without `image_sizes` an image fills its entry.

    Returns:
        Each image as one frame.

    Raises:
        CdkitError: Where there are not as many sizes as images.
    """
    sizes = given.get("image_sizes")
    pixels: Tensor = given["pixel_values"]
    if sizes is None:
        return [entry[None] for entry in pixels]
    if len(sizes) != len(pixels):
        raise CdkitError(f"image_sizes has {len(sizes)} sizes for {len(pixels)} images; give each")
    return [
        entry[None, :, : int(height), : int(width)]
        for entry, (height, width) in zip(pixels, sizes, strict=True)
    ]


def joined_by_size(images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """The inverse of `pixels_by_size`."""
    return torch.stack(
        [
            entry.masked_scatter(_corner(entry, image), image)
            for entry, image in zip(given["pixel_values"], images, strict=True)
        ]
    )


def _corner(entry: Tensor, image: Tensor) -> Bool[Tensor, "channels height width"]:
    """Which pixels of `entry` are those of the image."""
    below, beside = entry.shape[-2] - image.shape[-2], entry.shape[-1] - image.shape[-1]
    return pad(torch.ones_like(image[0], dtype=torch.bool), (0, beside, 0, below))


def rows_of_images(
    ids: Int[Tensor, "rows tokens"], is_image: Bool[Tensor, "rows tokens"]
) -> Int[Tensor, "rows tokens"]:
    """Number images that are written row by row, with a break after each row and an end at last.

    The config does not say which token ends an image: it is the one after the last run.

    Returns:
        For each token the number of its image in the row, from 0; -1 for text.
    """
    after_image = pad(is_image, (1, 0))[:, :-1] & ~is_image
    columns = torch.arange(ids.shape[1], device=ids.device)
    last = columns.where(after_image, 0).amax(dim=1, keepdim=True)
    ends = after_image & (ids == ids.gather(1, last))
    return (ends.long().cumsum(dim=-1)).masked_fill(~is_image, -1)
