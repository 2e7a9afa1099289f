"""Tiny random LLaVA models in float64, prompts for them, and the sequences of the reference."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from .decoders import Decoder
from .reference import Sequence_

PAD, BOS, IMAGE, VOCAB, IMAGE_TOKENS, LAYERS, THETA = 0, 1, 119, 120, 16, 3, 50.0


class Rotary64(nn.Module):
    """RoPE's cosines and sines in float64; Hugging Face's own are float32 in any model."""

    rope_type: ClassVar[str] = "default"

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        half = head_dim // 2
        rate = THETA ** (-torch.arange(half, dtype=torch.float64) / half)
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", rate, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids.double()[..., None] * self.inv_freq
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


class Norm64(nn.Module):
    """RMSNorm in float64; Hugging Face's own passes through float32 in any model."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = stock.weight
        self.eps: float = stock.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


@functools.cache
def tiny(kv_heads: int = 2, *, exact: bool = True, symmetric: bool = False) -> Any:
    """A random model with peaked attention. `exact`: RoPE and RMSNorm in float64 too.
    `symmetric`: its image encoder cannot tell the places of an image apart."""
    torch.manual_seed(kv_heads)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=kv_heads, vocab_size=VOCAB, max_position_embeddings=256,
        bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, tie_word_embeddings=False
    )
    model: Any = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                peaked = name.endswith(("q_proj.weight", "k_proj.weight"))
                gain = 2.4 if peaked else 2.0 if name == "lm_head.weight" else 1.0
                if "embed_tokens" in name:
                    gain = parameter.shape[1] ** 0.5
                parameter.normal_(std=gain / parameter[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(mean=1.0, std=0.1)
            else:
                parameter.normal_(std=0.1)
        if symmetric:
            model.model.vision_tower.embeddings.position_embedding.weight.zero_()
    model = model.double().eval()
    if exact:
        decoder = model.model.language_model
        decoder.rotary_emb, decoder.norm = Rotary64(head_dim=16), Norm64(decoder.norm)
        for layer in decoder.layers:
            layer.input_layernorm = Norm64(layer.input_layernorm)
            layer.post_attention_layernorm = Norm64(layer.post_attention_layernorm)
    return model


class WordTokenizer:
    """Each word is one token, any word."""

    bos_token_id = BOS

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [2 + sum(map(ord, word)) % 110 for word in text.split()]}


@dataclass(frozen=True, eq=False)
class Sample:
    """A prompt of one sample and its images."""

    name: str
    ids: tuple[int, ...]
    pixels: Tensor
    """(images, 3, 16, 16)."""

    @property
    def image(self) -> tuple[int, ...]:
        return image_numbers(self.ids)


def image_numbers(ids: Sequence[int]) -> tuple[int, ...]:
    """For each token the number of its image, -1 for text."""
    numbers, seen = [], 0
    for token in ids:
        numbers.append(seen // IMAGE_TOKENS if token == IMAGE else -1)
        seen += token == IMAGE
    return tuple(numbers)


def sample(*lengths: int, seed: int = 0, bos: bool = True) -> Sample:
    """A prompt with texts of these lengths and an image between each two of them."""
    random = torch.Generator().manual_seed(seed)
    ids = [BOS] if bos else []
    for index, length in enumerate(lengths):
        ids += [IMAGE] * IMAGE_TOKENS * (index > 0)
        ids += torch.randint(2, IMAGE, (length,), generator=random).tolist()
    shape = (len(lengths) - 1, 3, 16, 16)
    pixels = torch.randn(shape, generator=random, dtype=torch.float64)
    return Sample(f"sample {seed}", tuple(ids), pixels)


def batch(samples: Sequence[Sample], *, pad: int = 0) -> dict[str, Tensor]:
    """The model's inputs, left-padded to one length and `pad` columns more."""
    length = max(len(one.ids) for one in samples) + pad
    gaps = [length - len(one.ids) for one in samples]
    return {
        "input_ids": torch.tensor(
            [[PAD] * gap + list(one.ids) for gap, one in zip(gaps, samples, strict=True)]
        ),
        "attention_mask": torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps]),
        "pixel_values": torch.cat([one.pixels for one in samples]),
    }


@torch.no_grad()
def sequence(
    model: Any,
    prompt: Sequence[int],
    generated: Sequence[int],
    pixels: Tensor | None,
    *,
    noise: Tensor | None = None,
) -> Sequence_:
    """What the reference decodes: embedded tokens, image features in their places."""
    ids = [*prompt, *generated]
    image = image_numbers(prompt) + (-1,) * len(generated)
    embeds = Decoder.of(model).state["model.language_model.embed_tokens.weight"][ids].clone()
    if max(image) >= 0:
        assert pixels is not None
        features = torch.cat(list(model.get_image_features(pixel_values=pixels).pooler_output))
        embeds[torch.tensor(image) >= 0] = features
    return Sequence_(embeds, image, len(prompt), noise)
