"""What `cdkit.attach(trace=...)` records of each step."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.generation.traced_inputs import TracedInputs
from cdkit.registry import UnknownNameError, unknown

Wanted = Literal["logits", "last_logits", "image_attention", "mask", "inputs"]
"""What a trace can record."""
FREE = frozenset({"last_logits"})
"""What a trace records at no cost: it is computed anyway and kept until the next step, so a branch
that cannot change a token need not run for it."""


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


@dataclass(repr=False)
class Step:
    """What is recorded of one forward call whose logits `generate` reads, or of one plain call."""

    logits: dict[str, Float[Tensor, "rows vocab"]] = field(default_factory=dict)
    """Branch or inner layer that is read out -> its raw next-token logits, before any combination;
    "original" is the original branch."""
    combined: Float[Tensor, "rows vocab"] | None = None
    """The combined logits that `generate` gets; -inf on tokens that the combiner or the constraint
    rules out."""
    alpha_scale: Float[Tensor, " rows"] | None = None
    """The factor by which the schedules multiply alpha; None for a method without schedules."""
    image_attention: dict[str, dict[int, Float[Tensor, "rows heads image"]]] = field(
        default_factory=dict
    )
    """Branch -> layer -> attention weights, after the softmax, of the call's last column on the
    image tokens."""
    mask: dict[str, dict[int, Bool[Tensor, "rows heads text image"]]] = field(default_factory=dict)
    """Branch -> layer -> True for cells whose value was replaced, or whose logit was set to -inf.
    """

    def __repr__(self) -> str:
        """What was recorded, by shapes: the tensors themselves fill screens."""
        told = [f"{name} {_shape(x)}" for name, x in self.logits.items()]
        if self.combined is not None:
            told.append(f"combined {_shape(self.combined)}")
        if self.alpha_scale is not None:
            told.append(f"alpha_scale {_shape(self.alpha_scale)}")
        for what in ("image_attention", "mask"):
            for branch, layers in getattr(self, what).items():
                each = _shape(next(iter(layers.values()))) if layers else "nothing"
                told.append(f"{what} of {branch} {len(layers)} layers of {each}")
        return f"Step({', '.join(told)})"


@dataclass(repr=False)
class Trace:
    """What is recorded of the latest `generate` call, or of the latest plain call."""

    wanted: frozenset[str]
    """What is recorded: names of `Wanted`."""
    steps: list[Step] = field(default_factory=list)
    """The recorded steps, in order; the latest one alone where only "last_logits" is recorded."""
    inputs: TracedInputs | None = None
    """What each branch was given, where "inputs" is recorded and `generate` was called."""
    sequences: Int[Tensor, "answers tokens"] | None = None
    """The prompts with their answers, as `generate` returned them; None after a plain call, and
    where nothing or only "last_logits" is recorded."""

    def __repr__(self) -> str:
        recorded = ", ".join(sorted(self.wanted)) or "nothing"
        first = f", the first: {self.steps[0]!r}" if self.steps else ""
        return f"<Trace of {recorded}: {len(self.steps)} steps{first}>"

    def keep(
        self,
        step: Step,
        logits: dict[str, Float[Tensor, "rows vocab"]],
        combined: Float[Tensor, "rows vocab"],
        alpha_scale: Float[Tensor, " rows"] | None,
    ) -> None:
        """Record what is wanted of a step.

        Args:
            step: The step; its attention was recorded by the layers.
            logits: Branch or inner layer -> its raw next-token logits.
            combined: The combined logits.
            alpha_scale: The factor by which the schedules multiply alpha; None without any.
        """
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
    """Make an empty trace.

    Args:
        wanted: What to record: "logits" of every step, "last_logits" (those of the latest step
            alone), "image_attention", "mask", "inputs" (pixels, prompts and positions of each
            branch).

    Returns:
        The trace, without steps.

    Raises:
        CdkitError: If `wanted` is no collection of names.
        UnknownNameError: If one of the names is unknown.
    """
    if isinstance(wanted, str) or not isinstance(wanted, Collection):
        raise CdkitError(
            f"trace must be a list of names out of {', '.join(get_args(Wanted))}, got {wanted!r}"
        )
    for name in wanted:
        if name not in get_args(Wanted):
            raise UnknownNameError(unknown("trace", name, get_args(Wanted)))
    return Trace(frozenset(wanted))
