"""IBD's image-biased branch: its text attends more to the image."""

import math
from dataclasses import dataclass
from typing import ClassVar

from cdkit import DISTORTIONS, AttentionDistortion, CrossModalSegment, Modified, check_finite
from cdkit.strategies.papers.ibd import IBD


@DISTORTIONS.register("image_bias")
@dataclass(frozen=True)
class ImageBias(AttentionDistortion):
    """Raises all attention logits on the image by one number, in every text row after it.

    Before the softmax each image token's weight thus grows by the factor exp(epsilon / sqrt(d)),
    d the width of a head: 1.2 by default where it is 128. The paper also raises the attention
    of image rows to the image, and tunes this branch on captions with a few parameters of its own;
    both are left out.

    Args:
        epsilon: What is added to the products of queries and keys, before they are divided by
            sqrt(d).
    """

    formula: ClassVar[str] = "A~ = softmax((q k + epsilon C) / sqrt(d)), C = 1 on the image, else 0"
    source: ClassVar[str] = (
        "arXiv 2402.18476, after the notes of rubato-yeong/rubato-yeong.github.io, "
        "_posts/3. Multimodal/2024-08-17-ibd.md, section 1, commit e4683a9, and of "
        "https://lijianxiong.space/2025/20251129; no code is public"
    )
    bibtex: ClassVar[str] = IBD
    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits"})

    epsilon: float = 2.0

    def __post_init__(self) -> None:
        check_finite("epsilon", self.epsilon, low=0)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        added = self.epsilon / math.sqrt(segment.queries.shape[-1])
        return segment.changed(logits=segment.logits + added)
