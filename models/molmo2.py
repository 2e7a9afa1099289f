"""Molmo 2: crops of a picture, whose features are added to the embeddings of the image tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ADAPTERS, CdkitError, SeesAhead
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
        "its crops overlap, and what its processor returns does not say where each one was cut"
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
        token = torch.tensor(model.config.image_token_id, device=embeddings.weight.device)
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
