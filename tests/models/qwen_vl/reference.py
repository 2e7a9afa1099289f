"""Qwen-VL in plain float64 loops, from the published weights alone; it imports nothing of cdkit.

Written from the facts of the original code (modeling_qwen.py and visual.py of Qwen/Qwen-VL-Chat),
one head, one row, one image at a time. What can be got wrong is a function of its own, so that
`faults` replaces one by a mistake, to show that a comparison sees it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = VISION_EPS = 1e-6


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
            down, right = (size * at for at in row_and_column(place, count))
            patch = pixels[:, down : down + size, right : right + size]
            rows.append((kernel * patch).sum(dim=(1, 2, 3)))
        x = torch.stack(rows) + self._resized(self._visual("positional_embedding"), count)
        x = self._norm(x, "ln_pre")
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
            cuts = fused_cuts(head, width, x.shape[1])
            query, key, value = (fused[:, cut : cut + width] for cut in cuts)
            parts.append(_softmax(query @ key.T / width**0.5) @ value)
        x = x + self._linear(torch.cat(parts, dim=1), f"{name}.attn.out_proj")
        normed = self._norm(x, f"{name}.ln_2")
        inner = gelu(self._linear(normed, f"{name}.mlp.c_fc"))
        return self._block_output(x + self._linear(inner, f"{name}.mlp.c_proj"), name)

    def _block_output(self, x: Tensor, name: str) -> Tensor:
        """No norm follows a block."""
        return x

    def resampled(self, patches: Tensor) -> Tensor:
        """(patches, width) to (queries, hidden)."""
        kv = patches @ self._visual("attn_pool.kv_proj.weight").T
        kv = self._norm(kv, "attn_pool.ln_kv")
        table = self._visual("attn_pool.pos_embed")
        places = key_places(self._resized(table, round(len(patches) ** 0.5)))
        queries = self._norm(self._visual("attn_pool.query"), "attn_pool.ln_q")
        queries, values = placed_queries(queries, table), resampled_values(kv, places)
        weight, bias = (self._visual(f"attn_pool.attn.in_proj_{w}") for w in ("weight", "bias"))
        wide = weight.shape[1]
        q, k, v = (
            x @ weight[part * wide : (part + 1) * wide].T + bias[part * wide : (part + 1) * wide]
            for part, x in enumerate((queries, kv + places, values))
        )
        heads = heads_of(self.resampler_heads, wide)
        size = wide // heads
        spans = [slice(head * size, (head + 1) * size) for head in range(heads)]
        read = [_softmax(q[:, at] @ k[:, at].T / size**0.5) @ v[:, at] for at in spans]
        x = self._linear(torch.cat(read, dim=1), "attn_pool.attn.out_proj")
        return projected(self._norm(x, "ln_post"), self._visual("proj"))

    def logits(
        self, ids: Sequence[int], images: Sequence[Tensor], *, image: int, pad: int = 0
    ) -> Tensor:
        """(tokens, vocabulary) of one row; `image`: the id in whose places image tokens stand.

        `pad` columns stand before it in its batch: only the rules for long inputs count them.
        """
        x = self.weights["transformer.wte.weight"][list(ids)].clone()
        places = [place for place, token in enumerate(ids) if token == image]
        for place, feature in zip(places, torch.cat([*images, x[:0]]), strict=True):
            x[feature_place(place)] = feature
        alpha = self.alpha(pad + len(ids))
        layers = {key.split(".")[2] for key in self.weights if key.startswith("transformer.h.")}
        for n in range(len(layers)):
            x = x + self._attention(_rms(x, self._text(n, "ln_1")), n, alpha=alpha, pad=pad)
            normed = _rms(x, self._text(n, "ln_2"))
            up, gate = normed @ self._text(n, "mlp.w1").T, normed @ self._text(n, "mlp.w2").T
            x = x + gated(up, gate) @ self._text(n, "mlp.c_proj").T
        x = final_norm(x, self.weights["transformer.ln_f.weight"])
        return x @ self.weights["lm_head.weight"].T

    def _attention(self, x: Tensor, n: int, *, alpha: float, pad: int) -> Tensor:
        wide = x.shape[1]
        size = wide // self.heads
        fused = x @ self._text(n, "attn.c_attn").T
        fused = biased(fused, self.weights[f"transformer.h.{n}.attn.c_attn.bias"])
        query, key, value = query_key_value(fused)
        scale = torch.tensor([self.log_n(pad + place + 1) for place in range(len(x))]).double()
        out = []
        for head in range(self.heads):
            at = slice(head * size, (head + 1) * size)
            q = self._rotated(query[:, at], alpha) * scale[:, None]
            logits = q @ self._rotated(key[:, at], alpha).T / size**0.5
            out.append(_softmax(causal(logits)) @ value[:, at])
        return torch.cat(out, dim=1) @ self._text(n, "attn.c_proj").T

    def _rotated(self, x: Tensor, alpha: float) -> Tensor:
        half = x.shape[1] // 2
        base = self.base * alpha ** (2 * half / (2 * half - 2))
        turned = x.clone()
        for pair in range(half):
            a, b = turned_pair(pair, half)
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
        along = cubic_weights(old, side)
        grid = table.reshape(old, old, -1)
        return torch.einsum("yi,xj,ijc->yxc", along, along, grid).reshape(side * side, -1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + VISION_EPS
        normed = (x - x.mean(-1, keepdim=True)) / spread.sqrt()
        return normed * self._visual(f"{name}.weight") + self._visual(f"{name}.bias")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self._visual(f"{name}.weight").T + self._visual(f"{name}.bias")

    def _visual(self, name: str) -> Tensor:
        return self.weights[f"transformer.visual.{name}"]

    def _text(self, n: int, name: str) -> Tensor:
        return self.weights[f"transformer.h.{n}.{name}.weight"]


# ---- what can be got wrong -----------------------------------------------------------------------


def row_and_column(place: int, count: int) -> tuple[int, int]:
    """Of a patch, in a square of `count` x `count`."""
    return divmod(place, count)


def fused_cuts(head: int, width: int, hidden: int) -> list[int]:
    """Where a head's query, key and value begin in the fused projection: head by head."""
    return [3 * width * head + part * width for part in range(3)]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def key_places(resized: Tensor) -> Tensor:
    """The learnt table, resized: (patches, width)."""
    return resized


def placed_queries(queries: Tensor, table: Tensor) -> Tensor:
    return queries + table


def resampled_values(kv: Tensor, places: Tensor) -> Tensor:
    """Without positions."""
    return kv


def heads_of(heads: int, width: int) -> int:
    """How many heads the resampler has: as configured."""
    return heads


def projected(x: Tensor, proj: Tensor) -> Tensor:
    return x @ proj


def feature_place(place: int) -> int:
    return place


def gated(up: Tensor, gate: Tensor) -> Tensor:
    return up * gate / (1 + torch.exp(-gate))


def biased(x: Tensor, bias: Tensor) -> Tensor:
    return x + bias


def query_key_value(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = fused.chunk(3, dim=1)
    return query, key, value


def causal(logits: Tensor) -> Tensor:
    later = torch.ones_like(logits, dtype=torch.bool).triu(1)
    return logits.masked_fill(later, -math.inf)


def turned_pair(pair: int, half: int) -> tuple[int, int]:
    """The two numbers of a head that an angle turns."""
    return pair, pair + half


def final_norm(x: Tensor, weight: Tensor) -> Tensor:
    return _rms(x, weight)


# ---- tables --------------------------------------------------------------------------------------


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


def _softmax(logits: Tensor) -> Tensor:
    raised = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
    return raised / raised.sum(dim=-1, keepdim=True)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight
