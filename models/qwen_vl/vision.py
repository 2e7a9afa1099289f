"""Qwen-VL's vision tower: a pre-norm ViT (bigG) over the patches of a square image."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration import QwenVLVisionConfig


def interpolated(
    table: Float[Tensor, "places width"], places: int
) -> Float[Tensor, "{places} width"]:
    """A table of positions over one square grid, bicubically resampled to another.

    In float32 or better, whatever the table's precision; the table itself where the grids agree.
    """
    if table.shape[0] == places:
        return table
    old, new = round(table.shape[0] ** 0.5), round(places**0.5)
    precise = torch.promote_types(table.dtype, torch.float32)
    grid = rearrange(table.to(precise), "(h w) c -> 1 c h w", h=old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return rearrange(grid, "1 c h w -> (h w) c").to(table.dtype)


class QwenVLVisionAttention(nn.Module):
    """Self-attention over the patches, all of them, by one fused projection.

    Its rows are ordered (head, [query key value], dimension of the head).
    """

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "images patches width"]) -> Tensor:
        query, key, value = rearrange(
            self.qkv(x), "b n (heads three d) -> three b heads n d", heads=self.heads, three=3
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out


class QwenVLVisionLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the mlp has one exact GELU."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = QwenVLVisionAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Float[Tensor, "images patches width"]) -> Tensor:
        x = x + self.attention(self.norm1(x))
        mlp: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + mlp


class QwenVLVisionTower(nn.Module):
    """Patches, learned positions, a norm, the layers; no class token and no norm after them."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=patch, stride=patch, bias=False
        )
        self.positions = nn.Parameter(torch.zeros(config.num_positions, width))
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            [QwenVLVisionLayer(config) for _ in range(config.num_hidden_layers)]
        )

    def forward(self, pixels: Float[Tensor, "images channels height width"]) -> Tensor:
        """States of the patches: (images, patches, width), row by row of the image."""
        patches = rearrange(self.patch_embedding(pixels), "b c h w -> b (h w) c")
        x: Tensor = self.pre_norm(patches + interpolated(self.positions, patches.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return x
