"""Made-up prompts of one length: text, an image, more text, as LLaVA-1.5 has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.processors import positions

BEFORE = 35
"""Tokens of LLaVA-1.5's system message, with what stands between it and the image."""
SHARE = 0.7
"""The share of a shorter text that stands before the image."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch without padding: no row is like another."""

    ids: Int[Tensor, "rows tokens"]
    pixels: Float[Tensor, "rows channels height width"]

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(f"prompt {row}" for row in range(self.ids.shape[0]))

    def inputs(self) -> Mapping[str, Tensor]:
        """The arguments of `generate`."""
        return {
            "input_ids": self.ids,
            "attention_mask": torch.ones_like(self.ids),
            "pixel_values": self.pixels,
        }


def make_prompts(
    model: Any, *, batch: int, text_tokens: int, new_tokens: int, seed: int
) -> Prompts:
    """Random words and random pixels. Raises where prompt and answer are too long for the model."""
    config, device = model.config, model.device
    text, vision = config.text_config, config.vision_config
    images = int(config.image_seq_length)
    whole, most = text_tokens + images + new_tokens, positions(config)
    if most is not None and whole > most:
        raise CdkitError(
            f"{text_tokens} text, {images} image and {new_tokens} new tokens are {whole}, but the "
            f"model has positions for {most}: use fewer --text-tokens or --new-tokens"
        )
    before = min(BEFORE, int(SHARE * text_tokens))
    random = torch.Generator().manual_seed(seed)
    special = {text.pad_token_id, text.bos_token_id, config.image_token_id}
    words = torch.tensor([i for i in range(3, text.vocab_size) if i not in special])
    drawn = words[torch.randint(len(words), (batch, text_tokens), generator=random)]
    drawn[:, 0] = text.bos_token_id
    image = torch.full((batch, images), config.image_token_id)
    ids = torch.cat((drawn[:, :before], image, drawn[:, before:]), dim=1)
    size = (batch, vision.num_channels, vision.image_size, vision.image_size)
    pixels = torch.rand(size, generator=random) * 4 - 2  # as normalised by a processor
    return Prompts(ids.to(device), pixels.to(device, model.dtype))
