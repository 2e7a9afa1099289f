"""Qwen-VL's resampler: learned queries read the patches, each knowing its place in the image."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration import QwenVLVisionConfig
from .vision import interpolated

WAVELENGTH = 10_000.0
"""Of the slowest sine, in places, times 2 pi."""


def sine_table(side: int, width: int) -> Float[Tensor, "places {width}"]:
    """Sines and cosines of each place of a `side` x `side` grid, row by row, in float64.

    The first half of the channels tells the column, the second the row; in each half the sines of
    all frequencies stand before the cosines.
    """
    half = width // 4
    frequency = WAVELENGTH ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    one_way = torch.cat((angle.sin(), angle.cos()), dim=1)
    column, row = one_way[None, :].expand(side, -1, -1), one_way[:, None].expand(-1, side, -1)
    return rearrange(torch.cat((column, row), dim=2), "h w c -> (h w) c")


class QwenVLResampler(nn.Module):
    """One cross-attention from `num_queries` learned queries to the patches; no residual.

    Positions are added to queries and keys, not to values. The table is that of the queries' grid;
    the patches' places are interpolated from it. The checkpoint holds it, because the published one
    is rounded to its precision.
    """

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        width, eps = config.output_size, config.layer_norm_eps
        self.heads = config.resampler_attention_heads
        self.queries = nn.Parameter(torch.zeros(config.num_queries, width))
        self.positions = nn.Buffer(torch.zeros(config.num_queries, width))
        narrow = config.hidden_size != width
        self.kv_proj = nn.Linear(config.hidden_size, width, bias=False) if narrow else nn.Identity()
        self.query_norm = nn.LayerNorm(width, eps=eps)
        self.kv_norm = nn.LayerNorm(width, eps=eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.post_norm = nn.LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, patches: Float[Tensor, "images patches width"]) -> Tensor:
        """An image's tokens as the language model takes them: (images, queries, output)."""

        def by_head(x: Tensor) -> Tensor:
            return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)

        values = self.kv_norm(self.kv_proj(patches))
        positions = self.positions.to(values.dtype)  # a buffer may be loaded in another precision
        keys = values + interpolated(positions, patches.shape[1])
        queries = (self.query_norm(self.queries) + positions)[None]
        mixed = F.scaled_dot_product_attention(
            by_head(self.q_proj(queries)).expand(len(patches), -1, -1, -1),
            by_head(self.k_proj(keys)),
            by_head(self.v_proj(values)),
        )
        read = self.out_proj(rearrange(mixed, "b heads n d -> b n (heads d)"))
        tokens: Tensor = self.projection(self.post_norm(read))
        return tokens
