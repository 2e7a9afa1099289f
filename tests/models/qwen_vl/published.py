"""A tiny checkpoint in the published layout, with the original names, of random weights."""

import base64
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WORDS = (b"th", b"the", b" the", b"is", b" is", b"an", b" an", b"in", b"re", b"\xc3\xa9", b"aa")
"""Merged tokens after the 256 bytes."""
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
"""The bytes in the order of GPT-2's alphabet: byte n is not token n."""
END = len(BYTES) + len(WORDS)
"""<|endoftext|>; <|im_start|> and <|im_end|> follow, 205 extras, and nine tokens of images."""
IMAGE_START = END + 3 + 205 + 6
IMAGE = IMAGE_START + 2
QUERIES = 256
VISUAL = {
    "heads": 2, "image_size": 36, "image_start_id": IMAGE_START, "layers": 2, "mlp_ratio": 1.7,
    "output_dim": 256, "patch_size": 2, "width": 24,
}  # fmt: skip
CONFIG = {
    "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 256,
    "intermediate_size": 144, "kv_channels": 64, "layer_norm_epsilon": 1e-6, "no_bias": True,
    "max_position_embeddings": 1200, "seq_length": 300, "num_attention_heads": 4,
    "num_hidden_layers": 2, "rotary_emb_base": 100, "rotary_pct": 1.0, "scale_attn_weights": True,
    "tie_word_embeddings": False, "torch_dtype": "float64", "use_dynamic_ntk": True,
    "use_logn_attn": True, "visual": VISUAL, "vocab_size": IMAGE + 5,
}  # fmt: skip
"""The published one's keys; the training length leaves room for one image and 40 tokens."""
GENERATION = {
    "chat_format": "chatml", "eos_token_id": END, "pad_token_id": END, "max_window_size": 200,
    "max_new_tokens": 12, "do_sample": False, "transformers_version": "4.31.0",
}  # fmt: skip


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """The original's names and the shapes this configuration gives them."""
    wide, middle, width, out = 256, 72, 24, 256
    names: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (IMAGE + 5, wide),
        "transformer.ln_f.weight": (wide,),
        "lm_head.weight": (IMAGE + 5, wide),
    }
    for n in range(2):
        names |= {
            f"transformer.h.{n}.ln_1.weight": (wide,),
            f"transformer.h.{n}.attn.c_attn.weight": (3 * wide, wide),
            f"transformer.h.{n}.attn.c_attn.bias": (3 * wide,),
            f"transformer.h.{n}.attn.c_proj.weight": (wide, wide),
            f"transformer.h.{n}.ln_2.weight": (wide,),
            f"transformer.h.{n}.mlp.w1.weight": (middle, wide),
            f"transformer.h.{n}.mlp.w2.weight": (middle, wide),
            f"transformer.h.{n}.mlp.c_proj.weight": (wide, middle),
        }
    visual: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 3, 2, 2),
        "positional_embedding": (256, width),
        "proj": (out, out),
        "attn_pool.query": (QUERIES, out),
        "attn_pool.pos_embed": (QUERIES, out),
        "attn_pool.kv_proj.weight": (out, width),
        "attn_pool.attn.in_proj_weight": (3 * out, out),
        "attn_pool.attn.in_proj_bias": (3 * out,),
        "attn_pool.attn.out_proj.weight": (out, out),
        "attn_pool.attn.out_proj.bias": (out,),
    }
    norms = {"ln_pre": width, "ln_post": out, "attn_pool.ln_q": out, "attn_pool.ln_kv": out}
    linear: dict[str, tuple[int, int]] = {}
    for n in range(2):
        block = f"transformer.resblocks.{n}"
        norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
        linear |= {
            f"{block}.attn.in_proj": (3 * width, width),
            f"{block}.attn.out_proj": (width, width),
            f"{block}.mlp.c_fc": (40, width),
            f"{block}.mlp.c_proj": (width, 40),
        }
    for name, size in norms.items():
        visual |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for name, (rows, columns) in linear.items():
        visual |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return names | {f"transformer.visual.{name}": shape for name, shape in visual.items()}


def make_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random, in float64; attention is peaked, and no part is near zero or near the identity."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in weight_shapes().items():
        value = torch.randn(shape, generator=random, dtype=torch.float64)
        if len(shape) == 1:
            scaled = 0.3 * value + ("ln_" in name and name.endswith("weight"))
        elif name.endswith(("wte.weight", "embed", "embedding", "query")):
            scaled = value
        else:
            peaked = name.endswith(("c_attn.weight", "in_proj.weight", "in_proj_weight"))
            scaled = value * (2.0 if peaked else 1.0) / value[0].numel() ** 0.5
        found[name] = scaled
    return found


def write_published(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    suffix: str = "bin",
    files: int = 2,
    config: dict[str, object] | None = None,
    generation: dict[str, object] | None = None,
) -> Path:
    """The folder as the hub has it: settings, vocabulary, weights in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION | (generation or {})))
    tokens = [bytes([byte]) for byte in BYTES] + list(WORDS)
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    stem = "pytorch_model" if suffix == "bin" else "model"
    names = sorted(weights)
    places: dict[str, str] = {}
    for number in range(files):
        part = {name: weights[name].clone() for name in names[number::files]}
        tail = f"-{number + 1:05}-of-{files:05}" if files > 1 else ""
        file = folder / f"{stem}{tail}.{suffix}"
        if suffix == "bin":
            torch.save(part, file)
        else:
            save_file(part, file)
        places |= dict.fromkeys(part, file.name)
    if files > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder
