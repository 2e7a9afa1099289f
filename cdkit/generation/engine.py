"""A method at work on a model: what one call of `generate` shares between its steps."""

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cdkit.attention.context import AttentionRecord, LayerWork
from cdkit.attention.layer import CurrentCall
from cdkit.branches.state import BranchState
from cdkit.execution.compiled_steps import CompiledSteps
from cdkit.execution.optimizations import Optimization
from cdkit.execution.plan import layer_works
from cdkit.generation.prompts import Session
from cdkit.generation.trace import Step, Trace
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import ORIGINAL


@dataclass(eq=False)
class Call:
    """One call of the forward that `generate` reads."""

    step: Step
    state: BranchState | None = None
    columns: int = 0
    """How many columns the decoder was given."""
    aligned: int = 0
    """The last columns of the decoder's input in which every branch has the same token."""
    readouts: dict[str, Float[Tensor, "rows hidden"]] = field(default_factory=dict)
    record: AttentionRecord | None = None
    """What was noted of the original branch's attention."""


@dataclass(eq=False)
class Engine:
    """One method on one model, and the call of `generate` under way."""

    attached: AttachedMethod
    optimizations: frozenset[Optimization]
    trace: Trace
    current: CurrentCall = field(default_factory=CurrentCall)
    """What the layers read."""
    compiled: CompiledSteps | None = None
    """Where the call of `generate` under way asked for `torch.compile`."""
    compiled_before: CompiledSteps | None = None
    """What the latest such call compiled: the next one goes on with it."""
    session: Session | None = None
    call: Call | None = None
    last_original: Float[Tensor, "rows vocab"] | None = None
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """Of the latest call, where the method brings its own loop."""
    lock: Any = field(default_factory=threading.RLock)
    """One call at a time: a second thread waits."""

    @cached_property
    def works(self) -> dict[tuple[str, ...], tuple[LayerWork, ...]]:
        """For each group of branches what the layers do."""
        names = self.attached.branch_names
        traces = bool(self.attached.traced & {"image_attention", "mask"})
        groups = [names] if "one_forward" in self.optimizations else [(name,) for name in names]
        return {
            group: layer_works(
                self.attached,
                group,
                records_image=self.attached.records_image,
                traces=traces,
            )
            for group in groups
        }

    @cached_property
    def reading_works(self) -> dict[tuple[str, ...], tuple[LayerWork, ...]]:
        """What they do where the original branch runs to see what it attends to."""
        alone = (ORIGINAL,)
        return {alone: layer_works(self.attached, alone, records_image=True, traces=False)}

    def end_call(self) -> None:
        """Forget what belonged to a call of `generate`."""
        self.session, self.last_original, self.last_weights = None, None, None
        if self.compiled is not None:
            self.compiled.clear()
            self.compiled_before = self.compiled
        self.compiled = None
