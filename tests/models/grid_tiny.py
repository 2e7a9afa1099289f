"""Tiny random models whose images are grids of patches, and prompts for them."""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from .tiny import SMALL_TEXT

HYBRID = ("qwen3_5", "qwen3_5_moe")
"""Two of three layers have attention, the first keeps a recurrent state."""
GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", *HYBRID)
PAD, BOS, IMAGE, VIDEO, START, END, FILM, FILM_END = 0, 1, 90, 91, 92, 93, 94, 95
TIME = 50
"""A timestamp of what begins a video; later ones follow it."""
MERGE, PATCH, FRAMES = 2, 2, 2
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 16,
}  # fmt: skip
"""Of a decoder with gated delta nets."""

Prompt = tuple[int | tuple[int, ...], ...]
"""Text tokens, images by height and width in tokens, and videos by time, height and width."""


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
        **({"video_start_token_id": FILM, "video_end_token_id": FILM_END} if head == {} else {}),
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
    rows = [ids_of(name, prompt) for prompt in prompts]
    length = max(map(len, rows))
    gaps = [length - len(row) for row in rows]
    ids = torch.tensor([[PAD] * gap + row for gap, row in zip(gaps, rows, strict=True)])
    given = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps]),
        "mm_token_type_ids": torch.tensor(
            [[0] * gap + kinds_of(name, row) for gap, row in zip(gaps, rows, strict=True)]
        ).int(),
    }
    images = [(prompt, i) for prompt in prompts for i in range(len(_images(prompt)))]
    if images:
        pixels = torch.cat([patches(prompt, i) for prompt, i in images])
        grids = [(1, *_images(prompt)[i]) for prompt, i in images]
        given |= {"pixel_values": pixels.to(dtype_of(name)), "image_grid_thw": _grids(grids)}
    films = [(prompt, i) for prompt in prompts for i in range(len(_videos(prompt)))]
    if films:
        frames = torch.cat([moving(prompt, i) for prompt, i in films])
        grids = [(*_videos(prompt)[i],) for prompt, i in films]
        given |= {
            "pixel_values_videos": frames.to(dtype_of(name)),
            "video_grid_thw": _grids(grids),
        }
        if name == "qwen2_5_vl":  # of some the time of a patch is no whole number of positions
            given["second_per_grid_ts"] = torch.tensor([0.9 * t for t, _, _ in grids])
    return given


def _grids(grids: list[tuple[int, ...]]) -> Tensor:
    return torch.tensor([(t, MERGE * h, MERGE * w) for t, h, w in grids])


def _images(prompt: Prompt) -> list[tuple[int, ...]]:
    return [part for part in prompt if isinstance(part, tuple) and len(part) == 2]


def _videos(prompt: Prompt) -> list[tuple[int, ...]]:
    return [part for part in prompt if isinstance(part, tuple) and len(part) == 3]


def ids_of(name: str, prompt: Prompt) -> list[int]:
    """The tokens of a prompt, as the family writes them."""
    ids = list[int]()
    for part in prompt:
        if not isinstance(part, tuple):
            ids.append(part)
        elif len(part) == 2:
            ids += [START, *[IMAGE] * math.prod(part), END]
        elif name in ("qwen2_vl", "qwen2_5_vl"):
            ids += [START, *[VIDEO] * math.prod(part), END]
        elif name == "glm4v":
            frame = [START, *[IMAGE] * math.prod(part[1:]), END]
            ids += [FILM, *(x for t in range(part[0]) for x in (*frame, TIME + t)), FILM_END]
        else:
            frame = [START, *[VIDEO] * math.prod(part[1:]), END]
            ids += [x for t in range(part[0]) for x in (TIME + t, *frame)]
    return ids


def kinds_of(name: str, ids: list[int]) -> list[int]:
    """For each token 0 for text, 1 for an image, 2 for a video."""
    kinds, inside = list[int](), False
    for token in ids:
        inside = (inside or token == FILM) and token != FILM_END
        kinds.append(2 if token == VIDEO or (inside and token == IMAGE) else int(token == IMAGE))
    return kinds


def moving(prompt: Prompt, video: int) -> Tensor:
    """Of a video: all frames differ. A patch is (channels, frames, y, x)."""
    random = torch.Generator().manual_seed(7 + sum(x for x in prompt if isinstance(x, int)) + video)
    count = math.prod(_videos(prompt)[video]) * MERGE**2
    size = count, 3 * FRAMES * PATCH**2
    return torch.randn(size, generator=random, dtype=torch.float64)


def patches(prompt: Prompt, image: int) -> Tensor:
    """Of a picture: each patch has it in all its frames. A patch is (channels, frames, y, x)."""
    height, width = _images(prompt)[image]
    random = torch.Generator().manual_seed(sum(ids_of("qwen2_vl", prompt)) + image)
    shape = (height * width * MERGE**2, 3, 1, PATCH, PATCH)
    still = torch.randn(shape, generator=random, dtype=torch.float64)
    return still.expand(-1, -1, FRAMES, -1, -1).flatten(1)


ONE: Prompt = (BOS, 10, 11, (2, 3), 20, 21, 22, 23)
TWO: Prompt = (BOS, 10, (4, 2), 12, 13, (1, 3), 24, 25, 26, 27, 28, 29)
"""Two images of other sizes, and a longer question."""


FILM_ONE: Prompt = (BOS, 10, (3, 2, 1), 20, 21, 22, 23)
FILM_TWO: Prompt = (BOS, 10, 11, (2, 1, 3), 12, (5, 2, 2), 24, 25, 26, 27, 28, 29)
"""Two videos of other sizes, one longer than high and wide, and a longer question."""
MIXED: Prompt = (BOS, 10, (2, 3), 13, (4, 1, 2), 14, (2, 2), 24, 25, 26, 27)
"""A video between two images."""


class Words:
    """A tokenizer for distortions that write text: a word is a token."""

    bos_token_id = BOS

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [30 + sum(map(ord, word)) % 50 for word in text.split()]}
