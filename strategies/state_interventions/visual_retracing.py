"""MemVR's second look: where a layer is uncertain, a feed-forward network gets the image again."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import (
    STATE_INTERVENTIONS,
    CdkitError,
    Depth,
    StateIntervention,
    StateSegment,
    check_depth,
    check_finite,
)


@STATE_INTERVENTIONS.register("visual_retracing")
@dataclass(frozen=True)
class VisualRetracing(StateIntervention):
    """Mixes the image's features into a feed-forward output, weighed by its input.

    It happens once in a call of the decoder: in the first of the layers before which the next token
    is unsure, for all tokens of that call. The image's share is scaled to the mean size of the
    output's numbers, over all tokens of a row.

    The public code runs one prompt with one image at a time; here each row decides by itself, and
    the features are those of all images of the prompt.

    Args:
        strength: The image's share; 0 leaves the model as it is.
        threshold: The entropy of the next token above which a layer is unsure, in shares of the
            largest one.
        candidates: Over how many of the best tokens the entropy is taken.
        layers: The share of the depth; by default layers 7 to 16 of 32, whose inputs are the
            outputs of layers 6 to 15.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "f' = (1 - strength) f + strength mean|f| / mean|r| r, r = x Z^T Z; f and x: output and "
        "input of the feed-forward network, Z: the image features as the decoder gets them; in the "
        "first of layers where H > threshold, H: the entropy of the candidates' softmax, of the "
        "state before the layer read out, over log candidates"
    )
    source: ClassVar[str] = (
        "1zhou-Wang/MemVR, memvr.py, lines 83 to 93 and 204 to 257, commit de2e3cf; layers and "
        "threshold: its README.md, strength: eval_scripts/llava/mme.sh"
    )
    bibtex: ClassVar[str] = """@inproceedings{zou2025look,
  title     = {Look Twice Before You Answer: Memory-Space Visual Retracing for Hallucination
               Mitigation in Multimodal Large Language Models},
  author    = {Zou, Xin and Wang, Yizhou and Yan, Yibo and Lyu, Yuanhuiyi and Zheng, Kening and
               Huang, Sirui and Chen, Junkai and Jiang, Peijie and Liu, Jia and Tang, Chang and
               Hu, Xuming},
  booktitle = {ICML},
  year      = {2025}
}"""
    site: ClassVar = "mlp"
    reads: ClassVar = frozenset({"image_features", "module_input", "layer_logits"})
    switch: ClassVar[str] = "strength"
    needs_whole_prompt: ClassVar[bool] = True

    strength: float = 0.12
    threshold: float = 0.75
    candidates: int = 10
    layers: Depth = (7 / 32, 17 / 32)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_finite("threshold", self.threshold, low=0)
        check_depth("layers", self.layers)
        if self.strength > 1:
            raise CdkitError(f"strength must be in [0, 1], got {self.strength}")
        if self.candidates < 2:
            raise CdkitError(f"candidates must be 2 or more, got {self.candidates}")

    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens hidden"]:
        assert states.layer_logits is not None
        assert states.module_input is not None and states.image_features is not None
        done = states.layer_state.get(self)
        now = self._unsure(states.layer_logits)
        now = now if done is None else now & ~done
        states.layer_state[self] = now if done is None else now | done
        wide = torch.promote_types(states.states.dtype, torch.float32)
        out, features = states.states.to(wide), states.image_features.to(wide)
        recalled = states.module_input.to(wide) @ features.mT @ features
        there = states.token_mask[..., None]
        size, own = (x.abs().masked_fill(~there, 0).sum((1, 2)) for x in (out, recalled))
        scale = rearrange(size / own.clamp(min=torch.finfo(wide).tiny), "rows -> rows 1 1")
        mixed = (1 - self.strength) * out + self.strength * scale * recalled
        chosen = rearrange(now, "rows -> rows 1 1")
        return torch.where(chosen, mixed, out).to(states.states.dtype)

    def _unsure(self, logits: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"]:
        count = min(self.candidates, logits.shape[-1])
        best = logits.topk(count, dim=-1).values.log_softmax(dim=-1)
        return -(best.exp() * best).sum(dim=-1) / math.log(count) > self.threshold
