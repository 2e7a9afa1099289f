"""GIFT: image tokens to which the question shifted attention get more of it at every step."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import (
    INTERVENTIONS,
    CdkitError,
    CrossModalSegment,
    Depth,
    Intervention,
    check_depth,
    check_finite,
    layers_within,
)


@INTERVENTIONS.register("gaze_shift_amplification")
@dataclass(frozen=True)
class GazeShiftAmplification(Intervention):
    """Amplifies the image tokens to which attention moved while the prompt's text was read.

    In the first layer of `layers` each text row of the prompt is compared with the row before it:
    what an image token gained in attention is summed over these rows and over the half of the heads
    that gained most. Clipped to three standard deviations around its mean and scaled to 0 .. 1,
    this is the image's saliency s. It is remembered for the whole answer.

    In the layers of `enhanced`, in the rows that predict a token, the half of the heads that attend
    most to the image have their weights there multiplied by exp(strength s). The half that attends
    most to the prompt's text after the image has those weights multiplied by the factor by which
    the former grew in sum. Then each row is normalised.

    The authors take the question's content words by a tagger, and its tokens without those of the
    chat template; here all text after the image counts in both places. They measure the saliency in
    a run of its own, so their layers may come in any order: in ours none that is enhanced comes
    before the one that is read, which excludes their setting for Qwen2-VL. Ours are several images,
    which share one scale, and a saliency of 0 where all image tokens gained alike.

    Args:
        strength: The authors' alpha: the most salient token's weight times exp(strength).
        layers: The share of the depth in which it acts; its first layer is read. By default layer
            11 of 32 is read.
        enhanced: The share of the depth that is enhanced; by default layers 12 to 22 of 32.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "s = scaled sum over prompt rows t and heads of max(0, A_t - A_(t-1)) on the image; then "
        "weights exp(strength s) on the image, and the same growth on the text after it; in layers"
    )
    source: ClassVar[str] = (
        "amazon-science/GIFT, inference.py, lines 210 to 258, and transformers-4.50.0/src/"
        "transformers/models/llama/modeling_llama.py, lines 236 to 268, commit e20b8a9; strength "
        "and layers: configs/llava_1.5_7b.yaml"
    )
    bibtex: ClassVar[str] = """@inproceedings{qi2026gift,
  title     = {Capturing Gaze Shifts for Guidance: Cross-Modal Fusion Enhancement for {VLM}
               Hallucination Mitigation},
  author    = {Qi, Zheng and Shang, Chao and Spiliopoulou, Evangelia and Pappas, Nikolaos},
  booktitle = {ICML},
  year      = {2026}
}"""
    remembers: ClassVar[bool] = True

    strength: float = 5.0
    layers: Depth = (11 / 32, 23 / 32)
    enhanced: Depth = (12 / 32, 23 / 32)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)
        check_depth("enhanced", self.enhanced)
        if self.enhanced[0] < self.layers[0] or self.enhanced[1] > self.layers[1]:
            raise CdkitError(
                f"enhanced must lie within layers, whose first one is read, got enhanced "
                f"{list(self.enhanced)} and layers {list(self.layers)}"
            )

    @property
    def needs_whole_prompt(self) -> bool:
        return True

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        layer, depth = segment.image.layer, segment.image.depth
        if self not in segment.memory:  # the prompt's call
            if layer == layers_within(self.layers, depth).start:
                segment.layer_state[self] = saliency(segment)
            segment.memory[self] = segment.layer_state[self]
        if layer not in layers_within(self.enhanced, depth):
            return segment
        return self._enhanced(segment, segment.memory[self])

    def _enhanced(
        self, segment: CrossModalSegment, salient: Float[Tensor, "rows image"]
    ) -> CrossModalSegment:
        on_image, on_text = segment.all_weights()
        text = segment.text_logits
        query = text.isfinite() & ~rearrange(
            segment.before_image | segment.generated_columns, "rows columns -> rows 1 1 columns"
        )
        heads_image = top_half(on_image.sum(dim=-1))
        heads_query = top_half((on_text * query).sum(dim=-1))
        raise_by = self.strength * rearrange(salient, "rows image -> rows 1 1 image")
        chosen = on_image * heads_image[..., None]
        before = chosen.sum(dim=(1, 3))
        growth = (chosen * raise_by.exp()).sum(dim=(1, 3)) / before
        growth = torch.where(before > 0, growth, 1).log()
        rows = rearrange(segment.predicts_next, "rows text -> rows 1 text 1")
        on = rows & heads_image[..., None]
        of_query = rows & heads_query[..., None] & query
        growth = rearrange(growth, "rows text -> rows 1 text 1")
        return segment.changed(
            logits=torch.where(on, segment.logits + raise_by, segment.logits),
            text_logits=torch.where(of_query, text + growth, text),
        )


def saliency(segment: CrossModalSegment) -> Float[Tensor, "rows image"]:
    """How much each image token gained in attention while the prompt's text was read, 0 .. 1."""
    valid = segment.image.valid
    # rows of the prompt that see all images, and so does the row before them
    whole = segment.prompt & (segment.cells == valid[:, None]).all(dim=-1)
    pairs = rearrange(whole[:, 1:] & whole[:, :-1], "rows text -> rows 1 text 1")
    gained = segment.weights().diff(dim=2).clamp(min=0) * pairs
    heads = top_half(gained.sum(dim=(2, 3))[..., None])
    heat = (gained.sum(dim=2) * heads).sum(dim=1)
    count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = heat.sum(dim=-1, keepdim=True) / count
    spread = ((heat - mean).square() * valid).sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
    limit = 3 * spread.sqrt()
    heat = torch.minimum(torch.maximum(heat, mean - limit), mean + limit)
    least = heat.masked_fill(~valid, math.inf).amin(dim=-1, keepdim=True)
    most = heat.masked_fill(~valid, -math.inf).amax(dim=-1, keepdim=True)
    scaled = torch.where(most > least, (heat - least) / (most - least), 0)
    return scaled.masked_fill(~valid, 0)


def top_half(scores: Float[Tensor, "rows heads text"]) -> Bool[Tensor, "rows heads text"]:
    """For each row the half of the heads with the largest scores."""
    order = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return order < scores.shape[1] // 2
