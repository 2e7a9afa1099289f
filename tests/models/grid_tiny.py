"""Tiny random models whose images are grids of patches, and prompts for them."""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from .tiny import SMALL_TEXT

HYBRID = ("qwen3_5", "qwen3_5_moe")
"""Two of three layers have attention, the first keeps a recurrent state."""
GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", *HYBRID)
PAD, BOS, IMAGE, VIDEO, START, END = 0, 1, 90, 91, 92, 93
MERGE, PATCH, FRAMES = 2, 2, 2
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 16,
}  # fmt: skip
"""Of a decoder with gated delta nets."""

Prompt = tuple[int | tuple[int, int], ...]
"""Text tokens, and images by height and width in tokens."""


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name.endswith("moe") else torch.float64  # its experts refuse float64


@functools.cache
def tiny(name: str) -> Any:
    """A random model with attention that prefers; its answers never end."""
    section, head = ([1, 1, 0], {}) if name == "glm4v" else ([2, 1, 1], {"head_dim": 8})
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 50.0, "mrope_section": section}
    if name == "glm4v":
        rope["partial_rotary_factor"] = 0.5
    text: dict[str, Any] = {
        **SMALL_TEXT,
        "rope_parameters": rope,
        **(head if name.startswith("qwen3") else {}),
    }
    if name.endswith("moe"):
        text |= {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    if name in HYBRID:
        rope["partial_rotary_factor"] = 1.0
        text |= LINEAR
    marks = "image" if name == "glm4v" else "vision"
    config = AutoConfig.for_model(
        name,
        text_config=text,
        vision_config=_vision(name),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **{f"{marks}_start_token_id": START, f"{marks}_end_token_id": END},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto: Any = AutoModelForImageTextToText
        model: Any = auto.from_config(config).eval()
        _randomise(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(dtype_of(name))


def _vision(name: str) -> dict[str, Any]:
    shared = {
        "depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
    }  # fmt: skip
    own: dict[str, Any] = {
        "qwen2_vl": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "window_size": 8,
            "fullatt_block_indexes": [1],
        },
        "glm4v": {
            "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "image_size": 8,
        },
    }  # fmt: skip
    deep = {
        "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    if name in HYBRID:
        del deep["deepstack_visual_indexes"]
    settings: dict[str, Any] = shared | own.get(name, deep)
    return settings


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.add_(torch.randn_like(weight) * 0.1)
            continue
        gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")) else 1.0
        width = 1 if "embed" in name and "patch" not in name else weight[0].numel()
        weight.normal_(std=gain / width**0.5)


def inputs(name: str, *prompts: Prompt) -> dict[str, Tensor]:
    """The arguments of `generate`, left-padded. A prompt is the same in every batch."""
    rows = [_ids(prompt) for prompt in prompts]
    length = max(map(len, rows))
    gaps = [length - len(row) for row in rows]
    ids = torch.tensor([[PAD] * gap + row for gap, row in zip(gaps, rows, strict=True)])
    grids = [(1, MERGE * h, MERGE * w) for prompt in prompts for h, w in _images(prompt)]
    pixels = [patches(prompt, i) for prompt in prompts for i in range(len(_images(prompt)))]
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps]),
        "pixel_values": torch.cat(pixels).to(dtype_of(name)),
        "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


def _images(prompt: Prompt) -> list[tuple[int, int]]:
    return [part for part in prompt if isinstance(part, tuple)]


def _ids(prompt: Prompt) -> list[int]:
    parts = [
        [START, *[IMAGE] * (part[0] * part[1]), END] if isinstance(part, tuple) else [part]
        for part in prompt
    ]
    return [token for part in parts for token in part]


def patches(prompt: Prompt, image: int) -> Tensor:
    """Of a picture: each patch has it in all its frames. A patch is (channels, frames, y, x)."""
    height, width = _images(prompt)[image]
    random = torch.Generator().manual_seed(sum(_ids(prompt)) + image)
    shape = (height * width * MERGE**2, 3, 1, PATCH, PATCH)
    still = torch.randn(shape, generator=random, dtype=torch.float64)
    return still.expand(-1, -1, FRAMES, -1, -1).flatten(1)


ONE: Prompt = (BOS, 10, 11, (2, 3), 20, 21, 22, 23)
TWO: Prompt = (BOS, 10, (4, 2), 12, 13, (1, 3), 24, 25, 26, 27, 28, 29)
"""Two images of other sizes, and a longer question."""


class Words:
    """A tokenizer for distortions that write text: a word is a token."""

    bos_token_id = BOS

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [30 + sum(map(ord, word)) % 50 for word in text.split()]}
