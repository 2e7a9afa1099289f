"""ResDec: logits of the answer's recent tokens, from where they settled, are mixed in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, CdkitError, LogitCombiner, State, check_finite


@COMBINERS.register("recent_logits")
@dataclass(frozen=True)
class RecentLogits(LogitCombiner):
    """Mixes the logits with a weighted mean of those of recent steps. No second branch runs.

    Steps are compared on the `pool` tokens that are most probable now. Neighbouring steps diverge
    less and less while the model settles on a meaning, and more again while it looks for words:
    the mean begins at the two steps that diverge least, and ends at the step before this one. A
    step counts by its confidence, the mean surprise of the pool's tokens, which is large where few
    of them hold all probability. The first token is the model's own.

    The paper has no public code. Its window, and the rule for the step at which the mean begins,
    could not be established: both are ours here, as is that the first of equal divergences wins.

    Args:
        alpha: The share of the mean, at most 1; 0 switches the method off.
        window: How many steps before this one are looked at, at most.
        pool: How many tokens the steps are compared on.
    """

    formula: ClassVar[str] = (
        "(1 - alpha) l + alpha sum of C_i l_i / sum of C_i over the steps i = s .. t - 1; C_i: "
        "mean of -log P_i, P_i = softmax(l_i) on the pool of most probable tokens of step t; s: "
        "least JSD(P_s, P_s+1) of the window steps before t"
    )
    source: ClassVar[str] = (
        "arXiv 2602.01047, which has no public code, as notes on it quote its formulas"
    )
    bibtex: ClassVar[str] = """@inproceedings{chen2026residual,
  title     = {Residual Decoding: Mitigating Hallucinations in Large Vision-Language Models via
               History-Aware Residual Guidance},
  author    = {Chen, Xinrong and Chu, Xu and Qiu, Yingmin and Zhang, Hengyuan and Xiong, Jing and
               Tang, Shiyu and Liu, Shuai and Yang, Shaokang and Yang, Cheng and
               So, Hayden Kwok-Hay and Wong, Ngai},
  booktitle = {CVPR},
  year      = {2026}
}"""
    stateful: ClassVar[bool] = True

    alpha: float = 0.5
    window: int = 8
    pool: int = 256

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha, low=0)
        if self.alpha > 1:
            raise CdkitError(f"alpha must be a share in [0, 1], got {self.alpha}")
        if self.window < 1:
            raise CdkitError(f"window must be 1 step or more, got {self.window}")
        if self.pool < 2:
            raise CdkitError(f"pool must be 2 tokens or more, got {self.pool}")

    @property
    def is_identity(self) -> bool:
        return self.alpha == 0

    def uses(self, name: str) -> bool:
        return False

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        now = rearrange(original, "rows vocab -> rows 1 vocab")
        past = state.get("past")
        if past is None or self.alpha == 0:
            return original, {"past": now}
        steps = torch.cat((past, now), dim=1)
        weights = history_weights(steps, pool=self.pool)
        residual = (weights[..., None] * past).sum(dim=1)
        combined = (1 - self.alpha) * original + self.alpha * residual
        return combined, {"past": steps[:, -self.window :]}


def history_weights(
    steps: Float[Tensor, "rows steps vocab"], *, pool: int
) -> Float[Tensor, "rows past"]:
    """How much each step before the last one counts.

    Args:
        steps: Logits, oldest first; two steps or more.
        pool: How many tokens the steps are compared on.

    Returns:
        Weights of all steps but the last; those of a row sum to 1.
    """
    best = steps[:, -1:].topk(min(pool, steps.shape[-1]), dim=-1).indices
    log_p = steps.gather(-1, best.expand(-1, steps.shape[1], -1)).log_softmax(dim=-1)
    a, b = log_p[:, :-1], log_p[:, 1:]
    mean = ((a.exp() + b.exp()) / 2).log()
    far = (a.exp() * (a - mean) + b.exp() * (b - mean)).sum(dim=-1) / 2
    start = far.argmin(dim=-1, keepdim=True)
    places = torch.arange(far.shape[1], device=far.device)
    confidence = -a.mean(dim=-1)
    weights = torch.where(places >= start, confidence, 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)
