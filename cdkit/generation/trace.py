"""What a run saw, step by step, when it was asked to keep it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.registry import UnknownNameError, unknown

Wanted = Literal["logits", "last_logits", "image_attention", "mask"]
FREE = frozenset({"last_logits"})
"""What is there anyway, and kept until the next step: it forces no branch that cannot matter."""


@dataclass
class Step:
    """One forward call whose logits `generate` read (or one plain call)."""

    logits: dict[str, Float[Tensor, "rows vocab"]] = field(default_factory=dict)
    """Branch -> raw next-token logits; "original" is the original branch."""
    combined: Float[Tensor, "rows vocab"] | None = None
    """What `generate` got: -inf where the plausibility constraint removes a token."""
    alpha_scale: Float[Tensor, " rows"] | None = None
    """What the schedules multiplied alpha by; None without any."""
    image_attention: dict[str, dict[int, Float[Tensor, "rows heads image"]]] = field(
        default_factory=dict
    )
    """Branch -> layer -> the last row's weights on the image tokens, after the softmax."""
    mask: dict[str, dict[int, Bool[Tensor, "rows heads text image"]]] = field(default_factory=dict)
    """Branch -> layer -> the cells whose value was replaced or whose weight was cut."""


@dataclass
class Trace:
    """The steps of the latest `generate` call, or of the latest plain call."""

    wanted: frozenset[str]
    steps: list[Step] = field(default_factory=list)

    def keep(
        self,
        step: Step,
        logits: dict[str, Float[Tensor, "rows vocab"]],
        combined: Float[Tensor, "rows vocab"],
        alpha_scale: Float[Tensor, " rows"] | None,
    ) -> None:
        """Keep what was asked for of a step."""
        step.alpha_scale = alpha_scale
        if "last_logits" in self.wanted:
            step.logits, step.combined = logits, combined
            self.steps[:] = [step] if self.wanted <= FREE else self.steps
        if "logits" in self.wanted:
            step.logits = {name: own.clone() for name, own in logits.items()}
            step.combined = combined.clone()
        if self.wanted - FREE:
            self.steps.append(step)


def make_trace(wanted: Collection[str]) -> Trace:
    """A trace of `logits` (`last_logits`: of the latest step), `image_attention`, `mask`."""
    if isinstance(wanted, str) or not isinstance(wanted, Collection):
        raise CdkitError(
            f"trace must be a list of names out of {', '.join(get_args(Wanted))}, got {wanted!r}"
        )
    for name in wanted:
        if name not in get_args(Wanted):
            raise UnknownNameError(unknown("trace", name, get_args(Wanted)))
    return Trace(frozenset(wanted))
