"""Qwen-VL in plain float64 loops, from the published weights alone; it imports nothing of cdkit.

Written from the facts of the original code (modeling_qwen.py and visual.py of Qwen/Qwen-VL-Chat),
one head, one row, one image at a time. `fault` breaks one thing, to show that a comparison sees it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Fault = Literal[
    "fused_in_blocks", "tanh_gelu", "post_norm", "no_pre_norm", "eps", "patches_by_column",
    "bilinear", "positions_in_values", "no_positions_in_queries", "keys_by_sines", "no_query_norm",
    "no_kv_norm", "no_post_norm", "proj_transposed", "heads_of_64", "swapped_gate", "no_bias",
    "interleaved_rope", "qvk", "no_final_norm", "image_late", "not_causal",
]  # fmt: skip
FAULTS: tuple[Fault, ...] = get_args(Fault)
EPS = 1e-6


@dataclass(frozen=True, eq=False)
class Reference:
    """The whole model; `length` is what it was trained on, `long` the rules beyond it."""

    weights: Mapping[str, Tensor]
    visual_heads: int = 2
    resampler_heads: int = 2
    heads: int = 4
    base: float = 100.0
    length: int = 300
    long: tuple[str, ...] = ("logn", "ntk")
    fault: Fault | None = None

    def image(self, pixels: Tensor) -> Tensor:
        """(3, side, side) to (queries, hidden)."""
        return self.resampled(self.tower(pixels))

    def tower(self, pixels: Tensor) -> Tensor:
        """(3, side, side) to (patches, width)."""
        kernel = self._visual("conv1.weight")
        size = kernel.shape[-1]
        count = pixels.shape[-1] // size
        rows = []
        for place in range(count * count):
            down, right = (size * at for at in divmod(place, count))
            if self.fault == "patches_by_column":
                down, right = right, down
            patch = pixels[:, down : down + size, right : right + size]
            rows.append((kernel * patch).sum(dim=(1, 2, 3)))
        x = torch.stack(rows) + self._resized(self._visual("positional_embedding"), count)
        x = x if self.fault == "no_pre_norm" else self._norm(x, "ln_pre")
        layers = {key.split(".")[4] for key in self.weights if ".resblocks." in key}
        for n in range(len(layers)):
            x = self._block(x, f"transformer.resblocks.{n}")
        return x

    def _block(self, x: Tensor, name: str) -> Tensor:
        width = x.shape[1] // self.visual_heads
        normed = self._norm(x, f"{name}.ln_1")
        fused = self._linear(normed, f"{name}.attn.in_proj")
        parts = []
        for head in range(self.visual_heads):
            start = 3 * width * head
            cuts = [start + part * width for part in range(3)]
            if self.fault == "fused_in_blocks":
                cuts = [part * x.shape[1] + head * width for part in range(3)]
            query, key, value = (fused[:, cut : cut + width] for cut in cuts)
            parts.append(_softmax(query @ key.T / width**0.5) @ value)
        x = x + self._linear(torch.cat(parts, dim=1), f"{name}.attn.out_proj")
        normed = self._norm(x, f"{name}.ln_2")
        inner = self._linear(normed, f"{name}.mlp.c_fc")
        gated = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        if self.fault == "tanh_gelu":
            bent = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
            gated = inner * (1 + torch.tanh(bent)) / 2
        out = self._linear(gated, f"{name}.mlp.c_proj")
        return self._norm(x + out, f"{name}.ln_2") if self.fault == "post_norm" else x + out

    def resampled(self, patches: Tensor) -> Tensor:
        """(patches, width) to (queries, hidden)."""
        kv = patches @ self._visual("attn_pool.kv_proj.weight").T
        kv = kv if self.fault == "no_kv_norm" else self._norm(kv, "attn_pool.ln_kv")
        table = self._visual("attn_pool.pos_embed")
        side = round(len(patches) ** 0.5)
        places = self._resized(table, side)
        if self.fault == "keys_by_sines":
            places = sines(side, table.shape[1])
        queries = self._visual("attn_pool.query")
        if self.fault != "no_query_norm":
            queries = self._norm(queries, "attn_pool.ln_q")
        queries = queries if self.fault == "no_positions_in_queries" else queries + table
        values = kv + places if self.fault == "positions_in_values" else kv
        weight, bias = (self._visual(f"attn_pool.attn.in_proj_{w}") for w in ("weight", "bias"))
        wide = weight.shape[1]
        q, k, v = (
            x @ weight[part * wide : (part + 1) * wide].T + bias[part * wide : (part + 1) * wide]
            for part, x in enumerate((queries, kv + places, values))
        )
        heads = wide // 64 if self.fault == "heads_of_64" else self.resampler_heads
        size = wide // heads
        spans = [slice(head * size, (head + 1) * size) for head in range(heads)]
        read = [_softmax(q[:, at] @ k[:, at].T / size**0.5) @ v[:, at] for at in spans]
        x = self._linear(torch.cat(read, dim=1), "attn_pool.attn.out_proj")
        x = x if self.fault == "no_post_norm" else self._norm(x, "ln_post")
        proj = self._visual("proj")
        return x @ (proj.T if self.fault == "proj_transposed" else proj)

    def logits(
        self, ids: Sequence[int], images: Sequence[Tensor], *, image: int, pad: int = 0
    ) -> Tensor:
        """(tokens, vocabulary) of one row; `image`: the id in whose places image tokens stand.

        `pad` columns stand before it in its batch: only the rules for long inputs count them.
        """
        x = self.weights["transformer.wte.weight"][list(ids)].clone()
        places = [place for place, token in enumerate(ids) if token == image]
        late = self.fault == "image_late"
        for place, feature in zip(places, torch.cat([*images, x[:0]]), strict=True):
            x[place + late] = feature
        alpha = self.alpha(pad + len(ids))
        layers = {key.split(".")[2] for key in self.weights if key.startswith("transformer.h.")}
        for n in range(len(layers)):
            x = x + self._attention(_rms(x, self._text(n, "ln_1")), n, alpha=alpha, pad=pad)
            normed = _rms(x, self._text(n, "ln_2"))
            up, gate = normed @ self._text(n, "mlp.w1").T, normed @ self._text(n, "mlp.w2").T
            if self.fault == "swapped_gate":
                up, gate = gate, up
            x = x + (up * gate / (1 + torch.exp(-gate))) @ self._text(n, "mlp.c_proj").T
        if self.fault != "no_final_norm":
            x = _rms(x, self.weights["transformer.ln_f.weight"])
        return x @ self.weights["lm_head.weight"].T

    def _attention(self, x: Tensor, n: int, *, alpha: float, pad: int) -> Tensor:
        wide = x.shape[1]
        size = wide // self.heads
        fused = x @ self._text(n, "attn.c_attn").T
        if self.fault != "no_bias":
            fused = fused + self.weights[f"transformer.h.{n}.attn.c_attn.bias"]
        query, key, value = fused[:, :wide], fused[:, wide : 2 * wide], fused[:, 2 * wide :]
        if self.fault == "qvk":
            key, value = value, key
        scale = torch.tensor([self.log_n(pad + place + 1) for place in range(len(x))]).double()
        out = []
        for head in range(self.heads):
            at = slice(head * size, (head + 1) * size)
            q = self._rotated(query[:, at], alpha) * scale[:, None]
            logits = q @ self._rotated(key[:, at], alpha).T / size**0.5
            if self.fault != "not_causal":
                later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
                logits = logits.masked_fill(later, -math.inf)
            out.append(_softmax(logits) @ value[:, at])
        return torch.cat(out, dim=1) @ self._text(n, "attn.c_proj").T

    def _rotated(self, x: Tensor, alpha: float) -> Tensor:
        half = x.shape[1] // 2
        base = self.base * alpha ** (2 * half / (2 * half - 2))
        turned = x.clone()
        for pair in range(half):
            a, b = pair, pair + half
            if self.fault == "interleaved_rope":
                a, b = 2 * pair, 2 * pair + 1
            angle = torch.arange(len(x)).double() * base ** (-pair / half)
            turned[:, a] = x[:, a] * angle.cos() - x[:, b] * angle.sin()
            turned[:, b] = x[:, b] * angle.cos() + x[:, a] * angle.sin()
        return turned

    def alpha(self, prefill: int) -> float:
        """RoPE's base grows once a prefill is longer than the training length."""
        if "ntk" not in self.long:
            return 1.0
        return max(2.0 ** math.ceil(math.log2(prefill / self.length) + 1) - 1, 1.0)

    def log_n(self, column: int) -> float:
        """What the query of a column, from 1, is multiplied by."""
        if "logn" not in self.long or column <= self.length:
            return 1.0
        return math.log(column) / math.log(self.length)

    def _resized(self, table: Tensor, side: int) -> Tensor:
        """(old side squared, width) to (side squared, width), along each axis by a matrix."""
        old = round(len(table) ** 0.5)
        if old == side:
            return table
        along = _linear_weights(old, side) if self.fault == "bilinear" else cubic_weights(old, side)
        grid = table.reshape(old, old, -1)
        return torch.einsum("yi,xj,ijc->yxc", along, along, grid).reshape(side * side, -1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        eps = 1e-5 if self.fault == "eps" else EPS
        spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + eps
        normed = (x - x.mean(-1, keepdim=True)) / spread.sqrt()
        return normed * self._visual(f"{name}.weight") + self._visual(f"{name}.bias")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self._visual(f"{name}.weight").T + self._visual(f"{name}.bias")

    def _visual(self, name: str) -> Tensor:
        return self.weights[f"transformer.visual.{name}"]

    def _text(self, n: int, name: str) -> Tensor:
        return self.weights[f"transformer.h.{n}.{name}.weight"]


def sines(side: int, width: int) -> Tensor:
    """The resampler's own table, number by number: column first, sines before cosines."""
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for place in range(side * side):
        row, column = divmod(place, side)
        for which, at in enumerate((column, row)):
            for n in range(quarter):
                angle = at / 10000 ** (n / quarter)
                table[place, which * 2 * quarter + n] = math.sin(angle)
                table[place, which * 2 * quarter + quarter + n] = math.cos(angle)
    return table


def cubic_weights(old: int, new: int) -> Tensor:
    """(new, old): the bicubic kernel of Keys with a = -0.75, edges repeated."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for out in range(new):
        at = (out + 0.5) * old / new - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            d, a = abs(at - tap), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[out, min(max(tap, 0), old - 1)] += near if d <= 1 else far if d < 2 else 0.0
    return weights


def _linear_weights(old: int, new: int) -> Tensor:
    weights = torch.zeros(new, old, dtype=torch.float64)
    for out in range(new):
        at = (out + 0.5) * old / new - 0.5
        for tap in (math.floor(at), math.floor(at) + 1):
            weights[out, min(max(tap, 0), old - 1)] += max(0.0, 1 - abs(at - tap))
    return weights


def _softmax(logits: Tensor) -> Tensor:
    raised = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
    return raised / raised.sum(dim=-1, keepdim=True)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight
