"""Tiny random models of LLaVA's kin, and prompts for them as their processors write them."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForImageTextToText

from .tiny import SMALL_TEXT

FIXED = ("llava", "vipllava", "deepseek_vl", "janus")
ANY_SHAPE = ("llava_next", "llava_onevision")
TILES = ("internvl", "aya_vision", "ovis2")
ANY_SIZE = ("pixtral", "mistral3")
KIN = FIXED + ANY_SHAPE + TILES + ANY_SIZE
"""Model types, but "pixtral": LLaVA with a Pixtral tower."""
PAD, BOS, IMAGE, VIDEO, BREAK, START, END, TAG, VOCAB = 0, 1, 80, 81, 82, 83, 84, 90, 100

Prompt = tuple[int | tuple[int, int], ...]
"""Text tokens, and images by their height and width in tiles (of 8 pixels)."""
ONE: Prompt = (BOS, 10, 11, (1, 2), 20, 21, 22, 23)
TWO: Prompt = (BOS, 12, (2, 2), 24, 25, 26, 27, 28, 29)
PAIR: Prompt = (BOS, 12, (2, 1), 30, (1, 2), 24, 25, 26)


def _text(name: str) -> dict[str, Any]:
    decoder = {
        "llava_next": "mistral",
        "mistral3": "mistral",
        "pixtral": "mistral",
        "llava_onevision": "qwen2",
        "internvl": "qwen2",
        "ovis2": "qwen2",
        "aya_vision": "cohere2",
    }
    text: dict[str, Any] = {
        "model_type": decoder.get(name, "llama"),
        **SMALL_TEXT,
        "initializer_range": 0.3,
    }
    if text["model_type"] == "mistral":
        text |= {"sliding_window": None, "head_dim": 8}
    if name == "aya_vision":  # Cohere2's fourth layer attends to everything, without RoPE
        text |= {"sliding_window": 128, "head_dim": 8, "num_hidden_layers": 4}
    return text


def _config(name: str) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 2,
        "initializer_range": 0.3,
    }
    grids = {"image_grid_pinpoints": [[8, 16], [16, 8], [16, 16]], "vision_feature_layer": -1}
    pixtral = vision | {"model_type": "pixtral", "image_size": 16, "head_dim": 8}
    how: dict[str, Any]
    tower: dict[str, Any]
    if name in ("llava", "pixtral"):
        towers = {"llava": vision | {"model_type": "clip_vision_model"}, "pixtral": pixtral}
        select = "full" if name == "pixtral" else "default"
        how = {"vision_config": towers[name], "vision_feature_select_strategy": select}
        return how | {"image_token_index": IMAGE, "vision_feature_layer": -1}
    if name == "mistral3":
        how = {"spatial_merge_size": 2, "vision_feature_layer": -1, "image_token_index": IMAGE}
        return how | {"vision_config": pixtral}
    if name == "vipllava":
        tower = vision | {"model_type": "clip_vision_model"}
        layers = [-1, -2]
        return {"vision_config": tower, "image_token_index": IMAGE, "vision_feature_layer": layers}
    if name == "deepseek_vl":
        tower = vision | {"model_type": "siglip_vision_model"}
        return {"vision_config": tower, "image_token_id": IMAGE}
    if name == "janus":
        tower = vision | {"model_type": "janus_vision_model", "num_image_tokens": 16, "depth": 2}
        drawing = {
            "embed_dim": 4,
            "num_embeddings": 20,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "num_patches": 4,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        }
        tower |= {"projection_dim": 32, "mlp_ratio": 2}
        return {"vision_config": tower, "vq_config": drawing, "image_token_id": IMAGE}
    if name == "llava_next":
        tower = vision | {"model_type": "clip_vision_model"}
        how = {"image_token_index": IMAGE, "vision_feature_select_strategy": "default"}
        return grids | how | {"vision_config": tower}
    if name == "llava_onevision":
        tower = vision | {"model_type": "siglip_vision_model"}
        how = {"image_token_index": IMAGE, "vision_feature_select_strategy": "full"}
        return grids | how | {"vision_config": tower, "video_token_index": VIDEO}
    if name == "internvl":
        size = {"image_size": [8, 8], "patch_size": [2, 2]}
        tower = vision | size | {"model_type": "internvl_vision"}
        return {"vision_config": tower, "image_token_id": IMAGE, "downsample_ratio": 0.5}
    if name == "aya_vision":
        tower = vision | {"model_type": "siglip_vision_model"}
        how = {"image_token_index": IMAGE, "downsample_factor": 2, "vision_feature_layer": -1}
        return how | {"vision_config": tower}
    tower = vision | {"model_type": "ovis2_vision", "vocab_size": 40, "hidden_stride": 2}
    marks = {
        "image_token_id": IMAGE,
        "visual_indicator_token_ids": [START, TAG, TAG + 1, BREAK, END],
    }
    return marks | {"vision_config": tower, "vocab_size": VOCAB, "hidden_size": 32}


@functools.cache
def tiny(name: str) -> Any:
    """A random model in float64; its answers never end."""
    model_type = "llava" if name == "pixtral" else name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, text_config=_text(name), **_config(name))
        auto: Any = AutoModelForImageTextToText
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for value in model.parameters():  # newlines, class tokens, norms: nothing is constant
                if value.ndim == 1 or bool((value == value.flatten()[0]).all()):
                    value.add_(torch.randn_like(value) * 0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.double()


def written(name: str, height: int, width: int) -> list[int]:
    """The tokens of an image of `height` x `width` tiles."""
    tiles = height * width
    if name in FIXED:
        return [IMAGE] * 16
    if name in ANY_SHAPE:  # the small picture, and 4 tokens a tile's row, with an end a row
        return [IMAGE] * (16 + 16 * tiles + 4 * height)
    if name == "internvl":
        return [START, *[IMAGE] * 4 * (tiles + 1), END]
    if name == "aya_vision":
        tagged = [token for tile in range(tiles + 1) for token in (TAG + tile, *[IMAGE] * 4)]
        return [START, *tagged, END]
    if name == "ovis2":
        rows = [[*[IMAGE] * 4, TAG + 1] * (width - 1) + [IMAGE] * 4 for _ in range(height)]
        cells = [token for row in rows for token in (*row, BREAK)][:-1]
        return [START, *[IMAGE] * 4, TAG, *cells, END]
    side = 2 if name == "mistral3" else 4  # tokens a tile's side
    lines = [token for _ in range(height * side) for token in (*[IMAGE] * width * side, BREAK)]
    return [*lines[:-1], END]


def pictures(name: str, height: int, width: int) -> Tensor:
    """Random pixels: (frames, 3, height, width)."""
    random = torch.Generator().manual_seed(10 * height + width)
    if name in ANY_SIZE:
        return torch.randn(1, 3, 8 * height, 8 * width, generator=random, dtype=torch.float64)
    frames = 1 if name in FIXED else height * width + 1
    return torch.randn(frames, 3, 8, 8, generator=random, dtype=torch.float64)


def inputs(name: str, *prompts: Prompt) -> dict[str, Tensor]:
    """The arguments of `generate`, as the family's processor lays them out; padded on the left."""
    texts = [
        [
            t
            for part in prompt
            for t in (written(name, *part) if isinstance(part, tuple) else [part])
        ]
        for prompt in prompts
    ]
    longest = max(len(text) for text in texts)
    sizes = [part for prompt in prompts for part in prompt if isinstance(part, tuple)]
    images = [pictures(name, *size) for size in sizes]
    given = {
        "input_ids": torch.tensor([[PAD] * (longest - len(t)) + t for t in texts]),
        "attention_mask": torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts]),
        "pixel_values": _laid_out(name, images),
    }
    if name in ANY_SHAPE + ANY_SIZE:
        given["image_sizes"] = torch.tensor([(8 * height, 8 * width) for height, width in sizes])
    return given


def _laid_out(name: str, images: Sequence[Tensor]) -> Tensor:
    if name in FIXED + TILES:
        return torch.cat(list(images))
    if name in ANY_SHAPE:
        most = max(len(image) for image in images)
        return torch.stack([pad(i, (0, 0, 0, 0, 0, 0, 0, most - len(i))) for i in images])
    height, width = (max(image.shape[axis] for image in images) for axis in (2, 3))
    return torch.cat([pad(i, (0, width - i.shape[3], 0, height - i.shape[2])) for i in images])


class Words:
    """A tokenizer that knows one instruction."""

    bos_token_id = BOS
    padding_side = "left"

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [40 + len(word) for word in text.split()]}
