"""Models of real shapes with random weights: stock transformers classes, nothing downloaded."""

import math
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
)
from transformers.initialization import no_init_weights

from cdkit.errors import CdkitError
from cdkit.evals.speed.bench_settings import DEEP, HALF, MICRO, SEVEN, BenchSettings

IMAGE_TOKENS = 576
PATCH = 14
LAYERS_READ = -2  # of the vision tower, in LLaVA-1.5
CLIP_LARGE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}
NARROW_TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, by which its processor normalises pixels."""
SHARPNESS = 8.0
"""The standard deviation of the random models' logits. At 8 some 4 of 32,000 normally distributed
logits are within ln 10 of the largest: as few plausible tokens (beta .1) as trained models leave.
What a step has left is counted and shown with the results."""
EMBEDDED = 0.1
"""The standard deviation of token embeddings: small beside what layers add, so that an output head
that is tied to them does not repeat the last token for ever."""
MIXED = 0.3
"""How much attention adds, relative to its output's usual size: it averages over tokens, and random
layers that did little else would make them all alike."""
LETTERS = 5
"""Letters of a text for each token of the stand-in tokenizer."""


def config_of(shape: str, image_tokens: int = IMAGE_TOKENS) -> LlavaConfig:
    """LLaVA-1.5-7B's, its vision tower before a decoder of Qwen2-0.5B's shape, or a narrow model as
    deep as the first: a step of that waits for Python and the launch of operators alone.
    """
    tower = NARROW_TOWER if shape == DEEP else CLIP_LARGE
    vision = CLIPVisionConfig(
        image_size=PATCH * math.isqrt(image_tokens), patch_size=PATCH, **tower
    )
    text: Any
    if shape == SEVEN:
        image, pad, bos = 32000, 32001, 1
        text = LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
        )
    elif shape == HALF:
        image, pad, bos = 151646, 151643, 151644
        text = Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
        )
    elif shape == DEEP:
        image, pad, bos = 999, 0, 1
        text = LlamaConfig(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
        )
    else:
        raise CdkitError(f"shape {shape!r} is not made from random weights")
    text.pad_token_id, text.bos_token_id, text.eos_token_id = pad, bos, None
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        vision_feature_layer=LAYERS_READ,
        vision_feature_select_strategy="default",
        image_seq_length=image_tokens,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def blank(config: LlavaConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """The model before its weights are drawn: in `dtype` and on `device` from the first byte."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, no_init_weights():
            model: Any = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    return model.eval()


def build(settings: BenchSettings, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """(model in eval mode, processor); its answers never end by themselves."""
    if settings.shape == MICRO:
        model, processor = settings.chosen.load(device)
        fixed = int(model.config.image_seq_length)
        if settings.image_tokens not in (None, fixed):
            raise CdkitError(
                f"--image-tokens is {settings.image_tokens}, but the trained model {MICRO} has "
                f"{fixed}: leave it out, or use --shape {HALF}, {SEVEN} or {DEEP}"
            )
    else:
        config = config_of(settings.shape, settings.image_tokens or IMAGE_TOKENS)
        _check_room(settings.shape, config, dtype, device)
        model = blank(config, dtype, device)
        randomise(model, settings.seed)
        processor = stand_in(model.config)
    text = model.config.text_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=text.pad_token_id, bos_token_id=text.bos_token_id, eos_token_id=None
    )
    return model, processor


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Weights by fan-in, so that attention prefers and logits differ, whatever the depth."""
    config: Any = model.config
    hidden = config.text_config.hidden_size
    head = EMBEDDED if config.tie_word_embeddings else hidden**-0.5
    generators: dict[torch.device, torch.Generator] = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 1 and not name.endswith("class_embedding"):
            weight.fill_(0.0 if name.endswith("bias") else 1.0)  # the norms are the ones
            continue
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        std = 1.0 if weight.ndim == 1 else weight[0].numel() ** -0.5
        if "embed_tokens" in name:
            std = EMBEDDED
        elif "q_proj" in name:
            std *= 2
        elif name.endswith(("o_proj.weight", "out_proj.weight")):
            std *= MIXED
        weight.normal_(std=std, generator=generators[weight.device])
    norm: Any = model.get_submodule("model.language_model.norm")
    norm.weight.fill_(SHARPNESS / head * hidden**-0.5)


def stand_in(config: Any) -> Any:
    """What methods need of a processor, where a shape has no words: text to some token ids."""
    words = int(config.image_token_id) - 3

    def tokenizer(text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        pieces = [text[at : at + LETTERS] for at in range(0, len(text), LETTERS)]
        return {"input_ids": [3 + sum(map(ord, piece)) ** 2 % words for piece in pieces]}

    tokenizer.bos_token_id = config.text_config.bos_token_id  # type: ignore[attr-defined]
    colours = SimpleNamespace(image_mean=MEAN, image_std=STD)
    return SimpleNamespace(tokenizer=tokenizer, image_processor=colours)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each counted once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def parameters(config: LlavaConfig) -> int:
    """How many there will be, without making them."""
    return sum(p.numel() for p in blank(config, torch.float32, torch.device("meta")).parameters())


def _check_room(shape: str, config: LlavaConfig, dtype: torch.dtype, device: torch.device) -> None:
    needed = parameters(config) * dtype.itemsize
    if device.type == "cuda":
        has = torch.cuda.mem_get_info(device)[1]
    elif device.type == "xpu" or not hasattr(os, "sysconf"):  # Windows has none
        return
    else:
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > has:
        raise CdkitError(
            f"--shape {shape} needs {needed / 1e9:.1f} GB for its weights alone, and {device} has "
            f"{has / 1e9:.1f} GB: use --dtype bfloat16 or a smaller shape"
        )
