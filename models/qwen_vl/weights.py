"""The published weights' names, and what becomes of each under ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration import QwenVLConfig

BUFFERS = re.compile(r"transformer\.(h\.\d+\.attn\.)?(rotary_emb\.inv_freq|masked_bias)")
"""Constants that old checkpoints carry; ours are computed."""


def _whole(value: Tensor) -> Sequence[Tensor]:
    return (value,)


def _thirds(value: Tensor) -> Sequence[Tensor]:
    """Queries, keys, values: a fused projection's rows, in that order."""
    return value.chunk(3)


def _transposed(value: Tensor) -> Sequence[Tensor]:
    """A matrix used from the right, as a Linear's weight."""
    return (value.transpose(0, -1),)


@dataclass(frozen=True)
class Rule:
    """What one published tensor becomes: our names, and how it is cut into them."""

    names: tuple[str, ...]
    cut: Callable[[Tensor], Sequence[Tensor]] = _whole

    def apply(self, value: Tensor) -> dict[str, Tensor]:
        parts = (part.clone(memory_format=torch.contiguous_format) for part in self.cut(value))
        return dict(zip(self.names, parts, strict=True))

    def fits(self, shape: Sequence[int], wanted: Mapping[str, Sequence[int]]) -> bool:
        """Whether a tensor of this shape is cut into parts of the shapes wanted."""
        if not shape:
            return False
        parts = self.cut(torch.empty(tuple(shape), device="meta"))
        return [list(part.shape) for part in parts] == [list(wanted[name]) for name in self.names]


def rules(config: QwenVLConfig) -> dict[str, Rule]:
    """A rule for each tensor a published checkpoint of this configuration holds."""
    text, vision = config.text_config, config.vision_config
    found = {"lm_head.weight": Rule(("lm_head.weight",))}
    found |= _under("transformer.", "model.language_model.", _TEXT)
    for n in range(text.num_hidden_layers):
        found |= _under(f"transformer.h.{n}.", f"model.language_model.layers.{n}.", _TEXT_LAYER)
    found |= _under("transformer.visual.", "model.", _VISION)
    for n in range(vision.num_hidden_layers):
        old = f"transformer.visual.transformer.resblocks.{n}."
        found |= _under(old, f"model.vision_tower.layers.{n}.", _VISION_LAYER)
    if vision.hidden_size == vision.output_size:  # then the patches are not projected
        del found["transformer.visual.attn_pool.kv_proj.weight"]
    return found


def _under(old: str, new: str, table: Mapping[str, Rule]) -> dict[str, Rule]:
    return {
        old + name: Rule(tuple(new + to for to in rule.names), rule.cut)
        for name, rule in table.items()
    }


def _module(old: str, new: str) -> dict[str, Rule]:
    """A module with weight and bias that only changes its name."""
    return {f"{old}.{part}": Rule((f"{new}.{part}",)) for part in ("weight", "bias")}


def _fused(new: str, part: str) -> Rule:
    return Rule(tuple(f"{new}{which}_proj.{part}" for which in "qkv"), _thirds)


_TEXT = {
    "wte.weight": Rule(("embed_tokens.weight",)),
    "ln_f.weight": Rule(("norm.weight",)),
}
_TEXT_LAYER = {
    "ln_1.weight": Rule(("input_layernorm.weight",)),
    "attn.c_attn.weight": _fused("self_attn.", "weight"),
    "attn.c_attn.bias": _fused("self_attn.", "bias"),
    "attn.c_proj.weight": Rule(("self_attn.o_proj.weight",)),
    "ln_2.weight": Rule(("post_attention_layernorm.weight",)),
    "mlp.w1.weight": Rule(("mlp.up_proj.weight",)),  # w1 x * silu(w2 x): w2 is the gate
    "mlp.w2.weight": Rule(("mlp.gate_proj.weight",)),
    "mlp.c_proj.weight": Rule(("mlp.down_proj.weight",)),
}
_VISION = {
    "conv1.weight": Rule(("vision_tower.patch_embedding.weight",)),
    "positional_embedding": Rule(("vision_tower.positions",)),
    **_module("ln_pre", "vision_tower.pre_norm"),
    "attn_pool.query": Rule(("resampler.queries",)),
    "attn_pool.pos_embed": Rule(("resampler.positions",)),
    "attn_pool.kv_proj.weight": Rule(("resampler.kv_proj.weight",)),
    **_module("attn_pool.ln_q", "resampler.query_norm"),
    **_module("attn_pool.ln_kv", "resampler.kv_norm"),
    "attn_pool.attn.in_proj_weight": _fused("resampler.", "weight"),
    "attn_pool.attn.in_proj_bias": _fused("resampler.", "bias"),
    **_module("attn_pool.attn.out_proj", "resampler.out_proj"),
    **_module("ln_post", "resampler.post_norm"),
    "proj": Rule(("resampler.projection.weight",), _transposed),
}
_VISION_LAYER = {
    **_module("ln_1", "norm1"),
    **_module("attn.in_proj", "attention.qkv"),
    **_module("attn.out_proj", "attention.out"),
    **_module("ln_2", "norm2"),
    **_module("mlp.c_fc", "fc1"),
    **_module("mlp.c_proj", "fc2"),
}
