"""The published folder's settings in our terms: configuration and generation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from cdkit import CdkitError

from .configuration import QwenVLConfig

SUPPORTED = {
    "model_type": "qwen",
    "no_bias": True,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}
"""Settings that stock Qwen2 has no other way for; a file that leaves one out means this value."""
RESAMPLER_HEAD = 128
"""Width of a head of the resampler."""
GRID = 256
"""Learned positions, and queries unless `n_queries` says otherwise."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CdkitError(
            f"cannot read {file} ({error}); give the folder of Qwen-VL as it was published, with "
            "config.json, qwen.tiktoken and the weights"
        ) from error
    if not isinstance(found, dict):
        raise CdkitError(f"{file} must hold a JSON object")
    return found


def read_config(file: Path) -> QwenVLConfig:
    """Our configuration of a published config.json; what stock Qwen2 cannot do is refused."""
    raw = read_json(file)
    if "visual" not in raw:
        raise CdkitError(f"{file} has no 'visual' part: not a Qwen-VL checkpoint")
    if "quantization_config" in raw:
        raise CdkitError(f"{file} is of a quantised checkpoint; convert the one it was made from")
    for name, value in SUPPORTED.items():
        if raw.get(name, value) != value:
            raise CdkitError(f"{file} has {name} {raw[name]!r}; only {value!r} can be converted")
    try:
        return _translated(raw)
    except KeyError as error:
        raise CdkitError(f"{file} lacks {error}, which every published Qwen-VL has") from error


def _translated(raw: Mapping[str, Any]) -> QwenVLConfig:
    visual, heads = raw["visual"], raw["num_attention_heads"]
    if raw["kv_channels"] * heads != raw["hidden_size"]:
        raise CdkitError(
            f"kv_channels x num_attention_heads must be hidden_size ({raw['hidden_size']}), got "
            f"{raw['kv_channels']} x {heads}"
        )
    longer = not (raw.get("use_logn_attn", True) or raw.get("use_dynamic_ntk", True))
    first = visual["image_start_id"]
    return QwenVLConfig(
        vision_config={
            "image_size": visual["image_size"],
            "patch_size": visual["patch_size"],
            "hidden_size": visual["width"],
            "intermediate_size": int(visual["width"] * visual["mlp_ratio"]),
            "num_hidden_layers": visual["layers"],
            "num_attention_heads": visual["heads"],
            "num_positions": GRID,
            "num_queries": visual.get("n_queries", GRID),
            "resampler_attention_heads": visual["output_dim"] // RESAMPLER_HEAD,
            "output_size": visual["output_dim"],
        },
        text_config={
            "vocab_size": raw["vocab_size"],
            "hidden_size": raw["hidden_size"],
            "intermediate_size": raw["intermediate_size"] // 2,  # the file counts gate and up
            "num_hidden_layers": raw["num_hidden_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "rms_norm_eps": raw["layer_norm_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": raw["rotary_emb_base"]},
            "max_position_embeddings": raw["max_position_embeddings" if longer else "seq_length"],
        },
        image_start_token_id=first,
        image_end_token_id=first + 1,
        image_token_id=first + 2,
        dtype=raw.get("torch_dtype", "bfloat16"),
    )


def read_generation(file: Path, *, first_special: int) -> tuple[GenerationConfig, bool]:
    """How the published model generates, and whether it chats (ChatML). Without a file: greedy.

    A chat also ends at the next turn's tags, which the original's own `chat` watches for.
    """
    raw = read_json(file) if file.exists() else {}
    end, turn, turn_end = (first_special + index for index in range(3))
    chats = raw.get("chat_format") == "chatml"
    known = ["max_new_tokens", "do_sample", "repetition_penalty"]
    if raw.get("do_sample"):  # else transformers refuses to save what would not be used
        known += ["temperature", "top_k", "top_p"]
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **{name: raw[name] for name in known if name in raw},
        eos_token_id=[end, turn_end, turn] if chats else end,
        pad_token_id=end,
    ), chats
