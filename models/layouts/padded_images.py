"""Families that pad `pixel_values`, so that images of unequal sizes fit into one tensor.

The padding is taken off before pixels are distorted. Otherwise the noise drawn for an image would
depend on the sizes of the other images in the batch.
"""

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.llava_next import modeling_llava_next

from cdkit import CdkitError, TokenGrid, frame_grid
from cdkit.models.layouts.standard import StandardAdapter, visual_runs

llava_next: Any = modeling_llava_next  # its functions have no types


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

    def tile_side(self, model: Any) -> int:
        """How many tokens high and wide the features of a tile are."""
        vision = model.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side

    def shrunk(self, model: Any, height: int, width: int) -> tuple[int, int]:
        """The size of the tiles' grid of tokens after the family has interpolated it, if it does.

        Args:
            model: The model.
            height: Rows of tokens before.
            width: Tokens in a row before.
        """
        return height, width

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """The whole picture, small; and its tiles as one picture, without the padding around it."""
        grids = getattr(model.config, "image_grid_pinpoints", None)
        if grids is None:
            return [self.no_places] * len(tokens)  # its tiles are laid out by another rule
        side, size = self.tile_side(model), model.config.vision_config.image_size
        found = list[tuple[TokenGrid, ...] | str]()
        for count, own, tiles in zip(
            tokens, given["image_sizes"], self.tiles(model, given), strict=True
        ):
            whole = frame_grid(side, side, first=0, name="whole picture" if tiles > 1 else "")
            if tiles == 1:
                found.append((whole,) if 0 <= count - side**2 <= 1 else self.no_places)
                continue
            shape = llava_next.get_anyres_image_grid_shape(own, grids, size)
            cut = _without_padding(side, shape, own, count, functools.partial(self.shrunk, model))
            found.append(self.no_places if cut is None else (whole, cut))
        return found


def _without_padding(
    side: int,
    shape: tuple[int, int],
    size: Any,
    count: int,
    shrunk: Callable[[int, int], tuple[int, int]],
) -> TokenGrid | None:
    """The grid of a picture's tiles; its rows end with a token that has no place.

    Args:
        side: How many tokens high and wide a tile is.
        shape: How many tiles are below and beside each other.
        size: Height and width of the picture in the file.
        count: How many image tokens the image has, the small whole picture with it.
        shrunk: Height and width of the grid -> those after the family has interpolated it.

    Returns:
        The grid; None where the tokens are not as many as it has cells.
    """
    rows, columns = shape
    cells = torch.arange(rows * side * columns * side).view(1, rows * side, columns * side)
    left = llava_next.unpad_image(cells, [int(length) for length in size])[0]
    height, width = left.shape
    top, first = divmod(int(left[0, 0]), columns * side)
    box = (
        top / (rows * side),
        first / (columns * side),
        (top + height) / (rows * side),
        (first + width) / (columns * side),
    )
    height, width = shrunk(height, width)
    if count - side**2 != height * (width + 1):
        return None
    tokens = side**2 + torch.arange(height * (width + 1)).view(height, width + 1)[:, :-1]
    frames = 1 + torch.arange(rows * columns).view(rows, columns)
    return TokenGrid(tokens, frames, box, "its tiles")


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


def grids_of_sizes(
    given: Mapping[str, Any], tokens: Sequence[int], side: int, why: str
) -> list[tuple[TokenGrid, ...] | str]:
    """The grids of images of any size, each a token for so many pixels, row by row.

    Args:
        given: The arguments of `generate`; without `image_sizes` an image fills its entry.
        tokens: How many image tokens each image has.
        side: Height and width of a token in pixels.
        why: What stands for the grid of an image whose tokens are not as many.
    """
    found = list[tuple[TokenGrid, ...] | str]()
    for count, image in zip(tokens, pixels_by_size(given), strict=True):
        height, width = image.shape[-2] // side, image.shape[-1] // side
        fits = height * width == count
        found.append((frame_grid(height, width, first=0),) if fits else why)
    return found


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
