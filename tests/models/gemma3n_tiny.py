"""A tiny random Gemma 3n, whose image encoder stands in for one of the package timm."""

import functools
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3n import modeling_gemma3n

from .tiny import END, IMAGE, START, THETA, Family, Inputs, around, laid_out, made, pixels, text

TOKENS, SOUND = 16, 95
"""TOKENS of an image; ids from END on are embedded as images are, from SOUND on as sounds."""


class Tower(nn.Module):
    """A feature for each square of two by two pixels: (images, channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.squares = nn.Conv2d(3, 16, 2, stride=2)

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.squares(pixel_values).tanh())


def config() -> dict[str, Any]:
    """Three states of a token; the last two layers use the keys of two others."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        "full_attention": {"rope_type": "default", "rope_theta": THETA},
    }
    of_text = text(
        "gemma3n_text", num_hidden_layers=5, layer_types=[*kinds, *kinds[:2]],
        num_kv_shared_layers=2, sliding_window=64, rope_parameters=rope, altup_num_inputs=3,
        laurel_rank=4, hidden_size_per_layer_input=6, vocab_size_per_layer_input=IMAGE,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0, 0.0], final_logit_softcapping=20.0,
    )  # fmt: skip
    sound = {
        "hidden_size": 16, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1,
        "input_feat_size": 8, "sscp_conv_channel_size": [4, 4], "vocab_size": 5,
        "vocab_offset": SOUND,
    }  # fmt: skip
    return {
        "text_config": of_text, "audio_config": sound, "vision_soft_tokens_per_image": TOKENS,
        "vision_config": {"hidden_size": 16, "vocab_size": 2, "vocab_offset": END},
        "image_token_id": IMAGE, "audio_token_id": 97, "boi_token_id": START, "eoi_token_id": END,
    }  # fmt: skip


def _picture(row: int) -> tuple[list[int], Inputs]:
    """One picture, or two with nothing but their marks between."""
    image = [START, *[IMAGE] * TOKENS, END]
    return around(row, *image * (1 + row)), {"pixel_values": pixels(row, 1 + row, 3, 8, 8)}


FAMILY = Family("gemma3n", config, _picture)


@functools.cache
def model_of() -> Any:
    auto: Any = vars(modeling_gemma3n)["AutoModel"]
    others = auto.from_config

    def from_config(config: Any, **kwargs: Any) -> nn.Module:
        if config.model_type == "gemma3n_vision":
            return Tower()
        own: nn.Module = others(config, **kwargs)
        return own

    with mock.patch.object(auto, "from_config", from_config):
        return made(FAMILY)


def given(*rows: int) -> Inputs:
    return laid_out(FAMILY, *rows)


@torch.no_grad()
def stock_embeds(ids: Tensor) -> Tensor:
    """What the stock model's decoder is given of these tokens without an image."""
    seen: list[Tensor] = []
    model = model_of()
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(input_ids=ids)
    hook.remove()
    return seen[0]
