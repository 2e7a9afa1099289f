"""The gate of CMAC's public code: no contrast where the image gets less attention than before."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import SCHEDULES, AlphaSchedule, CdkitError, Signals, State, check_choice
from cdkit.strategies.papers.cmac import CMAC

History = Literal["first", "last", "all"]
Quantity = Literal["logits", "mass"]


@SCHEDULES.register("attention_gate")
@dataclass(frozen=True)
class AttentionGate(AlphaSchedule):
    """No contrast at a step that attends to the image less than the steps before did on average.

    The present step is part of the mean where `history` includes it, so the first step is never
    gated, nor is one that equals the mean. The code gates captions alone, where a tokenizer happens
    to be passed to `generate`; the paper has no gate. The code takes one mean over a batch, we take
    one for each row.

    Args:
        window: How many steps are averaged; without effect for "all".
        history: Which steps are averaged: "first" the first ones, after which the mean stands still
            (the code's sampling); "last" the latest ones (its greedy search); "all" every one (the
            text of its beam search, where a constant switches it off: no step is gated there).
        quantity: What is averaged: "logits" before the softmax, as the code does for LLaVA, or
            "mass", the weights after it, as it does for InstructBLIP.
    """

    formula: ClassVar[str] = (
        "alpha is 0 where s < mean of s over the steps of history and window; s = quantity of the "
        "original branch's last row, summed over the image, averaged over heads and layers"
    )
    source: ClassVar[str] = (
        "lijm48/IMCCD, vcd_utils/vcd_sample.py, commit 9db52a0: history first in sample, last in "
        "greedy_search; not in the paper"
    )
    bibtex: ClassVar[str] = CMAC
    reads_attention: ClassVar[bool] = True

    window: int = 30
    history: History = "first"
    quantity: Quantity = "logits"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise CdkitError(f"window must be 1 step or more, got {self.window}")
        check_choice("history", self.history, History)
        check_choice("quantity", self.quantity, Quantity)

    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        seen = signals.image_logits if self.quantity == "logits" else signals.image_mass
        assert seen is not None
        # Both means are differences to what they hold, so that equal steps give them to the bit:
        # a rounded sum could lie above all of its terms, and gate them.
        if self.history == "last":
            recent = torch.cat((state.get("recent", seen[:, None][:, :0]), seen[:, None]), dim=1)
            recent = recent[:, -self.window :]
            below, state = (recent - seen[:, None]).mean(dim=1) > 0, {"recent": recent}
        else:
            mean = state.get("mean", torch.zeros_like(seen))
            if self.history == "all" or step < self.window:
                mean = mean + (seen - mean) / (step + 1)
            below, state = seen < mean, {"mean": mean}
        return (~below).to(seen.dtype), state
