"""Whether all variants compute the same: their logits, step by step, under the same tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.speed.bench_runners import BenchRunner, Logits, Tokens
from cdkit.evals.speed.prompts import Prompts
from cdkit.evals.speed.variants import VariantName
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method

STEPS = 8
"""So many tokens of an answer are compared, if it has them: the prompt's logits, and those of steps
with a cache. Enough for a branch that waits at a step to come back at a later one."""
ROUNDINGS = {"float64": 16, "float32": 16, "bfloat16": 2, "float16": 2}
"""How many of a dtype's relative errors a logit may be off by, for each square root of a layer.
Products of half precision are summed in float32, so less is lost there."""


@dataclass(frozen=True)
class Agreement:
    """One variant beside the two-pass loop, over all steps and rows."""

    difference: float
    """The largest difference of two combined logits."""
    allowed: float
    """What it may be."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What the two-pass loop computes: the tokens that it chooses, and the logits behind them."""

    tokens: Tokens
    original: Logits
    combined: Logits
    method: Method
    dtype: torch.dtype
    layers: int

    @property
    def one_candidate(self) -> float:
        """The share of steps, by row, that leave one token to choose."""
        return float((self._candidates == 1).float().mean())

    @property
    def _candidates(self) -> Int[Tensor, "steps rows"]:
        return self.combined.isfinite().sum(dim=-1)

    @property
    def rounding(self) -> float:
        """How far two correct ways to a branch's logits may be apart: `c eps sqrt(layers) max |l|`.

        Rounding errors of layers add up like random steps, and a logit's is relative to its size.
        eps is float32's at least, in which norms are computed and `generate` hands logits out.
        """
        eps = max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps)
        often = ROUNDINGS[str(self.dtype).removeprefix("torch.")]
        return often * eps * math.sqrt(self.layers) * float(self.original.abs().max())

    @property
    def tolerance(self) -> float:
        """The same of combined logits: `(1 + 2 sum alpha)` times as much, the weights of the
        branches in `(1 + alpha) l - alpha l~`.
        """
        combiner, branches = self.method.combiner, self.method.live_branches
        total: float = sum(combiner.weight(branch.name) for branch in branches)
        return (1 + 2 * total) * self.rounding

    def compare(self, name: object, found: Logits) -> Agreement:
        """Raise CdkitError where `found` is something else.

        Where one candidate is left, the value of its logit decides nothing and is not compared. A
        token may be left in one of the two alone where it stands at the constraint's very edge.
        """
        found = found.to(self.combined)
        left, other = self.combined.isfinite(), found.isfinite()
        if bool(found.isnan().any()):
            raise CdkitError(f"{name}: logits are not numbers (NaN); nothing was measured")
        apart = (left != other) & ~self._at_the_edge
        if bool(apart.any()):
            step, row, token = (int(at) for at in apart.nonzero()[0])
            raise CdkitError(
                f"{name}: at step {step}, row {row}, token {token} is "
                f"{'ruled out' if bool(left[step, row, token]) else 'left'} and the two-pass loop "
                "has it otherwise: the variant computes something else; nothing was measured"
            )
        several = (self._candidates > 1)[..., None] & left & other
        difference = torch.where(several, (found - self.combined).abs(), 0)
        each = difference.amax(dim=(1, 2)).tolist()
        if max(each) > self.tolerance:
            at = next(step for step, worst in enumerate(each) if worst > self.tolerance)
            raise CdkitError(
                f"{name}: at step {at} a logit differs by {each[at]:.2g} from the two-pass loop's, "
                f"of which {self.tolerance:.2g} may be rounding in {self.dtype}: the variant "
                "computes something else; nothing was measured"
            )
        return Agreement(max(each), self.tolerance)

    @property
    def _at_the_edge(self) -> Bool[Tensor, "steps rows vocab"]:
        """Tokens whose original logit is within rounding of the constraint's threshold."""
        if self.method.constraint is None:
            return torch.zeros_like(self.original, dtype=torch.bool)
        slack = self.method.constraint.slack(self.original.flatten(0, 1)).view_as(self.original)
        return slack.abs() <= 2 * self.rounding  # its own and the one's that sets the threshold


def reference(
    model: Any,
    method: Method,
    prompts: Prompts,
    *,
    processor: Any,
    layers: int,
    steps: int = STEPS,
) -> Reference:
    """Run the plain algorithm, branch by branch, for `steps` greedy tokens."""
    with cdkit.attach(
        model,
        method,
        processor=processor,
        sample_ids=prompts.sample_ids,
        trace=("logits",),
        optimize=False,
    ) as run:
        made = model.generate(**prompts.inputs(), max_new_tokens=steps, do_sample=False)
    original = torch.stack([step.logits[ORIGINAL] for step in run.trace.steps])
    combined = [step.combined for step in run.trace.steps if step.combined is not None]
    tokens = made[:, prompts.ids.shape[1] :]
    return Reference(tokens, original, torch.stack(combined), method, model.dtype, layers)


def check_agreement(
    reference: Reference, runners: Mapping[VariantName, BenchRunner]
) -> dict[VariantName, Agreement]:
    """Each variant of one method, under the tokens of the reference."""
    agreed = {}
    for name, runner in runners.items():
        with runner.ready():
            agreed[name] = reference.compare(name, runner.logits(reference.tokens))
    return agreed
