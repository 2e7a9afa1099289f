"""Molmo 2: crops of a picture, whose features are added to the embeddings of the image tokens."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ADAPTERS, CdkitError, SeesAhead, TokenGrid
from cdkit.models.layouts.standard import StandardAdapter


@ADAPTERS.register("molmo2")
class Molmo2(StandardAdapter):
    """Molmo2ForConditionalGeneration: the whole picture at low resolution, then its crops.

    Each part stands between a start and an end mark, with a mark after each row. All image tokens
    of a prompt, and these marks, attend to each other both ways, across pictures. As an image sees
    the mark that closes it, branches share nothing of a prompt.
    """

    example: ClassVar[str] = "allenai/Molmo2-8B"
    causal_prefix: ClassVar[bool] = False
    sees_ahead: ClassVar[SeesAhead] = "across images"
    reads_ids: ClassVar[bool] = True
    required: ClassVar[tuple[str, ...]] = (
        "image_token_pooling",
        "image_grids",
        "image_num_crops",
        "mm_token_type_ids",
    )
    no_places: ClassVar[str] = (
        "image_token_pooling, which says what each token reads, has no grid of patches for it"
    )
    placeholder: ClassVar[str] = "<|image|>"
    fallback: ClassVar[str] = (
        "<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n"
    )

    def check_images(self, model: Any) -> None:
        pass  # each picture begins with a mark

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        config = model.config
        first = (ids == config.low_res_image_start_token_id).cumsum(dim=-1)
        # without a start mark of its own, the low resolution has that of the crops
        either = ((ids == config.image_start_token_id).cumsum(dim=-1) + 1) // 2
        number = torch.where(first[:, -1:] > 0, first, either) - 1
        index: Tensor = number.masked_fill(ids != config.image_token_id, -1)
        return index

    def token_types(
        self, model: Any, ids: Int[Tensor, "rows columns"]
    ) -> Int[Tensor, "rows columns"]:
        """1 from each start mark to its end mark, as the processor has it."""
        config = model.config
        marks = [config.image_start_token_id, config.low_res_image_start_token_id]
        starts = torch.isin(ids, ids.new_tensor(marks))
        ends: Tensor = ids == config.image_end_token_id
        opened = starts.long().cumsum(dim=-1) - ends.long().cumsum(dim=-1) > 0
        inside: Tensor = opened | ends
        return inside.long()

    def placed_features(
        self, model: Any, features: Float[Tensor, "tokens hidden"]
    ) -> Float[Tensor, "tokens hidden"]:
        embeddings = model.get_input_embeddings()
        token = torch.tensor(model.config.image_token_id, device=features.device)
        added: Tensor = embeddings(token)
        return features + added.to(features)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        pixels, crops = given["pixel_values"], given["image_num_crops"].tolist()
        if len(crops) != len(tokens) or sum(crops) != len(pixels):
            raise CdkitError(
                f"the prompts have {len(tokens)} images, but image_num_crops has {len(crops)} with "
                f"{sum(crops)} crops, and pixel_values {len(pixels)}; pass what one call of the "
                "processor returns"
            )
        vision = model.config.vision_config
        height, side = vision.image_size[0] // vision.patch_size, vision.patch_size
        pictures = rearrange(pixels, "n (h w) (y x c) -> n c (h y) (w x)", h=height, y=side, x=side)
        return list(pictures.split(crops))

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        side = model.config.vision_config.patch_size
        crops = torch.cat(list(images))
        return rearrange(crops, "n c (h y) (w x) -> n (h w) (y x c)", y=side, x=side)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """The whole picture, small; and its crops as one picture, without what they have twice.

        `image_token_pooling` has the patches of each token, and so says where it stands.
        """
        vision = model.config.vision_config
        sides = [length // vision.patch_size for length in vision.image_size]
        found = list[tuple[TokenGrid, ...] | str]()
        read = given["image_token_pooling"].cpu().split(list(tokens))
        before = 0
        for patches, (rows, columns, *fine), crops in zip(
            read, given["image_grids"].tolist(), given["image_num_crops"].tolist(), strict=True
        ):
            own, small = patches.where(patches < 0, patches - before), rows * columns
            before += crops * math.prod(sides)
            grids = (
                _grid(own[:small], (rows, columns), 0, sides, vision.patch_size, "whole picture"),
                _grid(
                    own[small:], (fine[0], fine[1]), small, sides, vision.patch_size, "its crops"
                ),
            )
            placed = tuple(grid for grid in grids if grid is not None)
            found.append(placed if len(placed) == len(grids) else self.no_places)
        return found


def _grid(
    read: Int[Tensor, "tokens slots"],
    shape: tuple[int, int],
    first: int,
    sides: Sequence[int],
    pixels: int,
    name: str,
) -> TokenGrid | None:
    """The grid of tokens that read patches of crops which overlap.

    Args:
        read: The patches of each token, -1 where a token at an edge has fewer.
        shape: Rows of tokens, and tokens in a row.
        first: The number of the first token.
        sides: How many patches high and wide a crop is.
        pixels: How many pixels high and wide a patch is.
        name: Of the grid.

    Returns:
        The grid; None where the patches that are read are not one picture.
    """
    side = math.isqrt(read.shape[1])
    if math.prod(shape) != len(read) or side**2 != read.shape[1]:
        return None
    laid = rearrange(read, "(h w) (y x) -> (h y) (w x)", h=shape[0], y=side)
    there = laid >= 0
    height, width = (int(there.any(dim=axis).sum()) for axis in (1, 0))
    if not height * width or int(there.sum()) != height * width:
        return None
    top, left = (int(there.any(dim=axis).int().argmax()) for axis in (1, 0))
    inside = laid[top : top + height, left : left + width]
    crop, place = inside // math.prod(sides), inside % math.prod(sides)
    heights, widths = (_lengths(line) for line in (crop[:, 0], crop[0]))
    frames, parts = [], []
    for block, at in zip(
        (part for band in torch.split(crop, heights) for part in torch.split(band, widths, dim=1)),
        (part for band in torch.split(place, heights) for part in torch.split(band, widths, dim=1)),
        strict=True,
    ):
        y, x = divmod(int(at[0, 0]), sides[1])
        own = (y + torch.arange(len(at)))[:, None] * sides[1] + x + torch.arange(at.shape[1])
        if not at.equal(own.to(at)) or int(block.min()) != int(block.max()):
            return None
        frames.append(int(block[0, 0]))
        parts.append([pixels * edge for edge in (y, x, y + at.shape[0], x + at.shape[1])])
    return TokenGrid(
        first + torch.arange(len(read)).view(shape),
        torch.tensor(frames).view(len(heights), len(widths)),
        (
            -top / height,
            -left / width,
            (shape[0] * side - top) / height,
            (shape[1] * side - left) / width,
        ),
        name,
        torch.tensor(parts).view(len(heights), len(widths), 4),
    )


def _lengths(numbers: Int[Tensor, " n"]) -> list[int]:
    """How many numbers that follow each other are equal."""
    lengths: list[int] = torch.unique_consecutive(numbers, return_counts=True)[1].tolist()
    return lengths
