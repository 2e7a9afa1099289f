"""Phi-4 multimodal: crops of a picture, which the decoder itself encodes in its forward."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
)

from cdkit import ADAPTERS, CdkitError, TokenGrid
from cdkit.models.layouts.padded_images import PaddedTilesOfSizesAdapter
from cdkit.models.layouts.standard import flat

# transformers has it among its causal models alone
AutoModelForImageTextToText.register(Phi4MultimodalConfig, Phi4MultimodalForCausalLM, exist_ok=True)


@ADAPTERS.register("phi4_multimodal")
class Phi4Multimodal(PaddedTilesOfSizesAdapter):
    """Phi4MultimodalForCausalLM: one run of tokens a picture: its crops, a mark, the whole picture.

    The stock decoder gets token ids and pixels, and encodes the pixels in its forward. With a
    method, cdkit encodes the images once a prompt and hands the decoder embeddings, with which it
    does the same. Its frequencies change after `original_max_position_embeddings` tokens (longrope;
    4096 in the published checkpoint), where stock `generate` loses the prompt: with a method,
    prompt and answer must fit before. Sounds are refused.

    In transformers 5.24 its image encoder attends causally by sdpa where no crop of a batch has
    padding, so the answer about a picture without padding may change beside another one, with cdkit
    or without. `attn_implementation={"vision_config": "eager"}` in `load_model` prevents that.

    The weights for pictures are a LoRA adapter beside the checkpoint, in its folder `vision-lora`:
    the stock class does not load it. Load it before a method is attached
    (`model.load_adapter(..., adapter_name="vision", adapter_kwargs={"subfolder": "vision-lora"})`,
    which needs the package peft). `microsoft/Phi-4-multimodal-instruct` has the weights of
    this class in its revision `refs/pr/70`.
    """

    example: ClassVar[str] = "microsoft/Phi-4-multimodal-instruct"
    decoder_encodes: ClassVar[bool] = True
    decoder_path: ClassVar[str] = "model"
    encoder_path: ClassVar[str] = "model.embed_tokens_extend.image_embed"
    encoder_method: ClassVar[str] = "forward"
    pixel_argument: ClassVar[str] = "image_pixel_values"
    required: ClassVar[tuple[str, ...]] = ("image_sizes", "image_attention_mask")
    image_token: ClassVar[str] = "vision_config.image_token_id"
    placeholder: ClassVar[str] = "<|image|>\n"
    fallback: ClassVar[str] = "<|user|>{images}{question}<|end|><|assistant|>"

    def tiles(self, model: Any, given: Mapping[str, Any]) -> list[int]:
        side = model.config.vision_config.crop_size
        return [
            1 + (height // side) * (width // side)  # the whole picture, and its crops
            for height, width in given["image_sizes"].view(-1, 2).tolist()
        ]

    def encoder_kwargs(self, model: Any, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The encoder puts features into embeddings, here those of the image tokens alone."""
        for name in ("audio_input_features", "audio_embed_sizes", "audio_attention_mask"):
            if given.get(name) is not None:
                raise CdkitError(
                    f"{name} came with the prompts, and cdkit's methods read no sounds of Phi-4 "
                    "multimodal: pass images and text alone, or generate without cdkit.attach"
                )
        if given.get(self.pixel_argument) is None:
            return None
        ids = given["input_ids"]
        ids = ids[ids == model.config.vision_config.image_token_id][None]
        images = {name: given.get(name) for name in (self.pixel_argument, *self.required)}
        return {"input_ids": ids, "inputs_embeds": self.embed(model, ids), **images}

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        return flat(output)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """The whole picture, small; and its crops as one picture, without the padding around it.

        A token is 2 x 2 patches. A row ends with a token that has no place.
        """
        vision = model.config.vision_config
        patches = vision.image_size // vision.patch_size
        side, crop = patches // 2, vision.crop_size
        if patches % 2:  # each crop ends with a row of tokens about half as much as the others
            return [self.no_places] * len(tokens)
        found = list[tuple[TokenGrid, ...] | str]()
        for count, size, mask in zip(
            tokens,
            given["image_sizes"].view(-1, 2).tolist(),
            given["image_attention_mask"],
            strict=True,
        ):
            rows, columns = (length // crop for length in size)
            seen = rearrange(
                mask[1 : 1 + rows * columns, ::2, ::2], "(a b) y x -> (a y) (b x)", a=rows
            )
            height, width = int(seen[:, 0].sum()), int(seen[0].sum())
            first = height * (width + 1) + 1
            if not height * width or count != first + side * (side + 1):
                found.append(self.no_places)
                continue
            found.append(
                (
                    TokenGrid(
                        first + _without_ends(side, side),
                        torch.tensor([[0]]),
                        name="whole picture",
                    ),
                    TokenGrid(
                        _without_ends(height, width),
                        1 + torch.arange(rows * columns).view(rows, columns),
                        (0.0, 0.0, height / (rows * side), width / (columns * side)),
                        "its crops",
                    ),
                )
            )
        return found


def _without_ends(height: int, width: int) -> Int[Tensor, "{height} {width}"]:
    """The numbers of tokens in rows that end with one more."""
    return torch.arange(height * (width + 1)).view(height, width + 1)[:, :-1]
