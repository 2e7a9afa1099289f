"""ReVisiT: the prediction of the image token that is nearest to the model's own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import READOUTS, CdkitError, ImageLogits, ImageReadout, ImageStep
from cdkit.functional import check_beta


@READOUTS.register("nearest_image_token")
@dataclass(frozen=True)
class NearestImageToken(ImageReadout):
    """Reads out, at each step, the image token whose next-token distribution is nearest.

    Both distributions are taken over the tokens that the model finds plausible, those at least
    `among` times as probable as the best one; the first image token wins a tie. The divergence is
    that of the authors' code, with the mean M of both distributions in the first place, where the
    Jensen-Shannon divergence has it in the second. The logits of an image token are those after the
    last layer, through the final norm: what the model would say next if the prompt ended there.
    They are kept for the whole answer, 37 MB a row for 576 image tokens and a vocabulary of 32,000
    in half precision.

    The token is chosen for each row. The authors run one prompt at a time, where that is the same.
    Their scores are sums of two logarithms of probabilities, over the plausible tokens; with the
    combiner `ensemble`, alpha 1, and the constraint's beta as `among`, cdkit's logits are these but
    for a number that all tokens of a step share.

    For Qwen2.5-VL their argument parser reads out every second layer, the inner ones without the
    norm, and chooses among all of these; here it is one layer.

    Args:
        among: The least probability of a token that counts in the choice, as a share of the largest
            one; 0 counts every token.
        depth: After which share of the layers the image tokens are read out; 1 is after the last.
        norm: Whether the final norm comes before the output head: in the authors' code after the
            last layer alone.
    """

    formula: ClassVar[str] = (
        "l~ = l_i, i: the image token with the smallest KL(M || p) + KL(M || p_i), "
        "M = (p + p_i) / 2, p and p_i over tokens with p >= among max(p); l_i = W norm(h_i), "
        "h_i: its state after the layers of depth"
    )
    source: ClassVar[str] = (
        "bscho333/ReVisiT, LLaVA1.5/data/transformers-v4.31.0/src/transformers/generation/utils.py,"
        " lines 2605 to 2772 and 5066 to 5087, commit b382967, and the argparse defaults of "
        "LLaVA1.5/eval/chair_eval_llava.py there"
    )
    bibtex: ClassVar[str] = """@article{cho2025revisit,
  title   = {Revisit What You See: Revealing Visual Semantics in Vision Tokens to Guide {LVLM}
             Decoding},
  author  = {Cho, Beomsik and Kim, Jaehyung},
  journal = {arXiv preprint arXiv:2506.09522},
  year    = {2025}
}"""
    name: ClassVar[str] = "image_token"

    among: float = 1e-5
    depth: float = 1.0
    norm: bool = True

    def __post_init__(self) -> None:
        try:
            check_beta(self.among)
        except CdkitError:
            raise CdkitError(
                f"among must be in [0, 1] (0: every token), got {self.among!r}"
            ) from None
        if not 0 <= self.depth <= 1:
            raise CdkitError(f"depth must be a share of the layers, in [0, 1], got {self.depth}")

    def layer(self, count: int) -> int:
        return round(self.depth * count)

    def read_image(self, logits: ImageLogits) -> Mapping[str, Float[Tensor, "image vocab"]]:
        return {"logits": torch.cat(list(logits.pieces()))}

    def step_logits(self, step: ImageStep) -> Float[Tensor, "rows vocab"]:
        image, original = step.kept["logits"], step.original
        least = original.amax(dim=-1, keepdim=True)
        least = least + math.log(self.among) if self.among else torch.full_like(least, -math.inf)
        counts = original >= least
        # the plausible tokens of each row side by side: few of a vocabulary
        most = int(counts.sum(dim=-1).max())
        best = original.topk(most, dim=-1).indices
        counts = counts.gather(1, best)[:, None]
        own = original.gather(1, best)[:, None]
        theirs = image.gather(2, best[:, None].expand(-1, image.shape[1], -1)).to(original)
        far = divergence(_among(own, counts), _among(theirs, counts))
        nearest = far.masked_fill(~step.valid, math.inf).argmin(dim=-1)
        rows = torch.arange(len(nearest), device=nearest.device)
        return image[rows, nearest].to(original)


def divergence(
    a: Float[Tensor, "rows 1 tokens"], b: Float[Tensor, "rows image tokens"]
) -> Float[Tensor, "rows image"]:
    """KL(M || a) + KL(M || b) by the mean M of two distributions, given as log-probabilities."""
    mean = torch.logaddexp(a, b) - math.log(2)
    return (mean.exp() * (2 * mean - a - b)).sum(dim=-1)


def _among(
    logits: Float[Tensor, "rows image tokens"], counts: Bool[Tensor, "rows 1 tokens"]
) -> Float[Tensor, "rows image tokens"]:
    """Log-probabilities over the tokens that count; 0 at the others, which add nothing then."""
    return logits.masked_fill(~counts, -math.inf).log_softmax(dim=-1).masked_fill(~counts, 0)
