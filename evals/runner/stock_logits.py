"""The logits of a model with no method on, which are checked after the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.generation.guard import prompt_error

NO_NUMBERS = (
    "the model's logits are not numbers (NaN or infinite); check its weights, its pixel_values and "
    "its dtype (float16 overflows where bfloat16 and float32 do not)"
)


@dataclass(eq=False)
class StockLogits:
    """The logits of a model with no method on, which no guard of cdkit sees."""

    first: Float[Tensor, "rows vocab"] | None = None
    finite: list[Bool[Tensor, " rows"]] = field(default_factory=list)
    """Each step's: whether the largest logit of a row is a number, and so all are."""

    def add(self, logits: Float[Tensor, "rows vocab"]) -> None:
        if self.first is None:
            self.first = logits.float()
        self.finite.append(logits.amax(dim=-1).isfinite())

    def check(self, name: str, steps: Sequence[int]) -> None:
        """Raise where an answer was chosen from logits that are no numbers.

        Args:
            name: The method's name.
            steps: How many steps each answer took; what a row says later counts nothing.
        """
        if not self.finite:
            return
        finite = torch.stack(self.finite, dim=-1)
        counted = torch.arange(finite.shape[1], device=finite.device)
        of_answer = counted < torch.tensor(steps, device=finite.device)[:, None]
        each = len(finite) // len(steps)  # beams
        wrong = (~finite & of_answer.repeat_interleave(each, dim=0)).any(dim=-1)
        if bool(wrong.any()):
            raise prompt_error(name, wrong, lambda row: NO_NUMBERS, rows_per_prompt=each)
