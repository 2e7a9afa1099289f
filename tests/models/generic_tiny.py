"""Tiny random models of families that no file in models/ knows, two prompts for each, and how they
answer."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import cdkit
from cdkit.interfaces.model_adapter import ADAPTERS

from .modes import generated
from .tiny import (
    END,
    EOS,
    IMAGE,
    START,
    THETA,
    VIDEO,
    VOCAB,
    Family,
    Inputs,
    Words,
    around,
    laid_out,
    made,
    pixels,
    text,
    vision,
)


@functools.cache
def tiny(name: str) -> Any:
    """The model, made once."""
    return made(UNKNOWN[name])


def inputs(name: str, *rows: int) -> Inputs:
    """The arguments of `generate` for these prompts."""
    return laid_out(UNKNOWN[name], *rows)


def _pictures(tokens: int, side: int, row: int, *, frames: int = 1) -> tuple[list[int], Inputs]:
    """Square pictures of `tokens` tokens each, between marks."""
    image = [START, *[IMAGE] * tokens * frames, END]
    return around(row, *image), {"pixel_values": pixels(row, frames, 3, side, side)}


# ---- admitted, in full ---------------------------------------------------------------------------


def _sam(patch: int) -> dict[str, Any]:
    return {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "mlp_dim": 32, "image_size": 32, "patch_size": patch, "window_size": 4,
        "global_attn_indexes": [1],
    }  # fmt: skip


def _got_ocr2() -> dict[str, Any]:
    return {"text_config": text("qwen2"), "vision_config": _sam(2), "image_token_index": IMAGE}


def _cohere2_vision() -> dict[str, Any]:
    """Three layers with a window and one without, which has no rotary embedding either."""
    return {
        "text_config": text("cohere2", sliding_window=64, num_hidden_layers=4),
        "vision_config": vision("siglip_vision_model"), "image_token_id": IMAGE,
        "downsample_factor": 2, "alignment_intermediate_size": 32,
    }  # fmt: skip


def _lighton_ocr() -> dict[str, Any]:
    tower = vision("pixtral", image_size=16, num_channels=3, head_dim=8)
    return {
        "text_config": text("qwen3"), "vision_config": tower, "image_token_id": IMAGE,
        "spatial_merge_size": 2,
    }  # fmt: skip


def _of_any_size(row: int) -> tuple[list[int], Inputs]:
    height, width = ((2, 4), (5, 2))[row]
    size = (4 * height, 4 * width)
    image = {"pixel_values": pixels(row, 1, 3, *size), "image_sizes": torch.tensor([size])}
    return around(row, START, *[IMAGE] * height * width, END), image


def _qianfan_ocr() -> dict[str, Any]:
    tower = vision("qianfan_ocr_vision", image_size=[8, 8], patch_size=[2, 2], drop_path_rate=0.0)
    return {"text_config": text("qwen3"), "vision_config": tower, "image_token_id": IMAGE}


def _aria() -> dict[str, Any]:
    return {
        "text_config": text("aria_text", moe_num_experts=4, moe_topk=2),
        "vision_config": vision("idefics3_vision"), "image_token_index": IMAGE,
        "projector_patch_to_query_dict": {16: 6},
    }  # fmt: skip


def _masked(row: int) -> tuple[list[int], Inputs]:
    ids, image = _pictures(6, 8, row)
    return ids, image | {"pixel_mask": torch.ones(1, 8, 8, dtype=torch.bool)}


def _video_llama_3() -> dict[str, Any]:
    tower = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 2,
    }  # fmt: skip
    return {
        "text_config": text("qwen2"), "vision_config": tower, "image_token_id": IMAGE,
        "video_token_id": VIDEO,
    }  # fmt: skip


def _merged(row: int) -> tuple[list[int], Inputs]:
    ids, image = _grid(row, 12)
    return ids, image | {"image_merge_sizes": torch.tensor([2])}


def _paddleocr_vl() -> dict[str, Any]:
    """Multimodal RoPE: positions have three axes."""
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": [2, 1, 1]}
    of_text = text("", rope_parameters=rope)
    del of_text["model_type"]  # the family's own
    tower = vision("paddleocr_vl_vision", spatial_merge_size=2)
    return {
        "text_config": of_text, "vision_config": tower, "image_token_id": IMAGE,
        "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
    }  # fmt: skip


def _grid(row: int, *patch: int) -> tuple[list[int], Inputs]:
    """Rows of patches of a picture, four of them a token."""
    grid = ((1, 4, 6), (1, 8, 4))[row]
    count = grid[1] * grid[2]
    image = {"pixel_values": pixels(row, count, *patch), "image_grid_thw": torch.tensor([grid])}
    return around(row, START, *[IMAGE] * (count // 4), END), image


def _deepseek_vl_hybrid() -> dict[str, Any]:
    return {
        "text_config": text("llama"), "vision_config": vision("siglip_vision_model"),
        "high_res_vision_config": {"model_type": "sam_vision_model", **_sam(4)},
        "image_token_id": IMAGE,
    }  # fmt: skip


def _two_towers(row: int) -> tuple[list[int], Inputs]:
    ids, image = _pictures(16, 8, row)
    return ids, image | {"high_res_pixel_values": pixels(row + 5, 1, 3, 32, 32)}


# ---- refused -------------------------------------------------------------------------------------


def _lfm2_vl() -> dict[str, Any]:
    tower = vision("siglip2_vision_model", num_patches=16)
    of_text = text("lfm2", layer_types=["conv", "full_attention", "conv"])
    return {"text_config": of_text, "vision_config": tower, "image_token_id": IMAGE}


def _sized(row: int) -> tuple[list[int], Inputs]:
    """Rows of patches, filled up; the second picture has fewer of them."""
    height, width = ((4, 6), (6, 2))[row]
    count = height * width
    image = {
        "pixel_values": pixels(row, 1, count, 12),
        "pixel_attention_mask": torch.ones(1, count).long(),
        "spatial_shapes": torch.tensor([[height, width]]),
    }
    return around(row, START, *[IMAGE] * (count // 4), END), image


def _mllama() -> dict[str, Any]:
    tower = {
        "hidden_size": 16, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1,
        "intermediate_size": 32, "image_size": 8, "patch_size": 2, "vision_output_dim": 32,
        "intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    of_text = text("mllama_text_model", cross_attention_layers=[1], eos_token_id=EOS)
    return {"text_config": of_text, "vision_config": tower, "image_token_index": IMAGE}


def _florence2() -> dict[str, Any]:
    of_text = {
        "model_type": "bart", "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    }  # fmt: skip
    tower = {
        "embed_dim": [16, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2],
        "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1],
        "patch_prenorm": [False, True], "projection_dim": 16, "window_size": 2,
    }  # fmt: skip
    return {"text_config": of_text, "vision_config": tower, "image_token_id": IMAGE}


def _blip_2() -> dict[str, Any]:
    queries = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "encoder_hidden_size": 16,
    }  # fmt: skip
    of_text = {
        "model_type": "opt", "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
    }  # fmt: skip
    return {
        "text_config": of_text, "vision_config": vision("blip_2_vision_model"),
        "qformer_config": queries, "num_query_tokens": 6, "image_token_index": IMAGE,
    }  # fmt: skip


def _chameleon() -> dict[str, Any]:
    codes = {
        "embed_dim": 8, "num_embeddings": 20, "latent_channels": 8, "resolution": 16,
        "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
        "attn_resolutions": [],
    }  # fmt: skip
    words = {f"IMGIMG{'ABCDEFGHIJ'[i // 10]}{'ABCDEFGHIJ'[i % 10]}Z": 60 + i for i in range(20)}
    of_text = text("")
    del of_text["model_type"], of_text["tie_word_embeddings"]
    return {**of_text, "vq_config": codes, "vocabulary_map": {**words, "<image>": IMAGE}}


def _never(row: int) -> tuple[list[int], Inputs]:
    raise AssertionError(f"refused before it is given prompt {row}")


UNKNOWN: Mapping[str, Family] = {
    "got_ocr2": Family("got_ocr2", _got_ocr2, functools.partial(_pictures, 16, 32)),
    "cohere2_vision": Family("cohere2_vision", _cohere2_vision, functools.partial(_pictures, 4, 8)),
    "lighton_ocr": Family("lighton_ocr", _lighton_ocr, _of_any_size),
    "qianfan_ocr": Family("qianfan_ocr", _qianfan_ocr, functools.partial(_pictures, 4, 8)),
    "aria": Family("aria", _aria, _masked, dtype=torch.float32),  # its experts refuse float64
    "tiles": Family("got_ocr2", _got_ocr2, lambda row: _pictures(16, 32, row, frames=(2, 1)[row])),
    "video_llama_3": Family("video_llama_3", _video_llama_3, _merged),
    "paddleocr_vl": Family(
        "paddleocr_vl", _paddleocr_vl, lambda row: _grid(row, 3, 2, 2), types="mm_token_type_ids"
    ),
    "deepseek_vl_hybrid": Family("deepseek_vl_hybrid", _deepseek_vl_hybrid, _two_towers),
    "lfm2_vl": Family("lfm2_vl", _lfm2_vl, _sized),
    "mllama": Family("mllama", _mllama, _never),
    "florence2": Family("florence2", _florence2, _never),
    "blip-2": Family("blip-2", _blip_2, functools.partial(_pictures, 6, 8)),
    "chameleon": Family("chameleon", _chameleon, _never),
}
FULL = (
    "got_ocr2", "cohere2_vision", "lighton_ocr", "qianfan_ocr", "aria", "tiles", "video_llama_3",
    "paddleocr_vl", "deepseek_vl_hybrid",
)  # fmt: skip
"""Families on which the methods of `modes` run; "tiles" is GOT-OCR 2 with an image of two."""


# ---- at work -------------------------------------------------------------------------------------

IN_USE = "has no adapter of its own, a generic one is in use"


@pytest.fixture(autouse=True)
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and other test files register adapters of their own."""
    ours = {n: a for n, a in ADAPTERS.items() if a.__module__.startswith("cdkit.models.")}
    monkeypatch.setattr(ADAPTERS, "_classes", ours)


def told(model: Any, given: Inputs, method: str = "pai") -> list[str]:
    """What the warnings say while a method answers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cdkit.attach(model, cdkit.load(method), processor=Words()):
            generated(model, given)
    return [str(warning.message) for warning in caught if IN_USE in str(warning.message)]
