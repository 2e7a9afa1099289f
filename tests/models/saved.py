"""Tiny checkpoints of two families whose processors read videos too, laid out as on the hub."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

hf: Any = transformers  # much of it is not typed

WORDS = "<pad> <s> </s> <unk> is there a cat dog in the image ? . yes no you are confused".split()
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %} {% endfor %}{% endfor %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip


def _tokenizer(marks: dict[str, str], image: str) -> Any:
    words = [*WORDS, *(f"w{i}" for i in range(60 - len(WORDS)))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", extra_special_tokens=marks,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", image)
    return tokenizer


def _save(folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForImageTextToText.from_config(config)
    model.generation_config = hf.GenerationConfig(pad_token_id=0)
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(folder)
    return folder


def save_qwen2_vl(folder: Path) -> Path:
    """Settings of the image processor alone, as the oldest of the family."""
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    marks = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    tokenizer = _tokenizer(
        {f"{name}_token": token for name, token in names.items()} | marks,
        "".join((marks["vision_bos_token"], names["image"], marks["vision_eos_token"])),
    )
    ids = {f"{n}_token_id": tokenizer.convert_tokens_to_ids(t) for n, t in names.items()}
    ids["vision_start_token_id"], ids["vision_end_token_id"] = (
        tokenizer.convert_tokens_to_ids(token) for token in marks.values()
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = hf.Qwen2VLConfig(
        text_config=SIZES | {"vocab_size": 70, "rope_parameters": rope},
        vision_config={
            "depth": 2, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2,
            "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "initializer_range": 0.3,
        },
        **ids,
    )  # fmt: skip
    limits = {"shortest_edge": 64, "longest_edge": 256}
    return _save(
        folder, config, tokenizer, Qwen2VLImageProcessorPil(size=limits, patch_size=2, merge_size=2)
    )


def save_internvl(folder: Path) -> Path:
    """Settings of the processor in a file of its own."""
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(marks, marks["context_image_token"])
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", **SIZES, "vocab_size": 70},
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": [8, 8], "patch_size": [2, 2],
            "initializer_range": 0.3,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(marks["context_image_token"]),
        downsample_ratio=0.5,
    )  # fmt: skip
    tile = {"height": 8, "width": 8}
    _save(folder, config, tokenizer, GotOcr2ImageProcessorPil(size=tile, max_patches=3))
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder
