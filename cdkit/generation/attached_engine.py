"""The interface of an engine: the optimised one and the plain reference implement it."""

import abc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.generation.prompts import Session
from cdkit.generation.trace import Trace
from cdkit.methods.attached import AttachedMethod
from cdkit.states.state_call import CurrentSites


class AttentionHandles(NamedTuple):
    """How the decoder's attention modules find the engine's attention."""

    key: str
    """The name of this attention in Hugging Face's registries."""
    attribute: str
    """The attribute of an attention module that holds its handle."""
    handles: Sequence[object]
    """One for each layer."""


@dataclass(frozen=True, eq=False)
class StepLogits:
    """All logits of one step, and whether they are numbers.

    The maximum of a row is NaN where any of its logits is, infinite where one is, and -inf where
    all are.
    """

    branches: Sequence[str]
    """The names of the branches, "original" first."""
    raw: Float[Tensor, "branches rows vocab"]
    combined: Float[Tensor, "rows vocab"]
    is_original: bool
    """Whether the combined logits are those of the original branch, and no other one ran."""

    def of(self, rows: slice) -> "StepLogits":
        """Those of some rows."""
        raw, combined = self.raw[:, rows], self.combined[rows]
        return StepLogits(self.branches, raw, combined, self.is_original)

    def valid(self) -> Bool[Tensor, " rows"]:
        """False where a branch's logits, or the combined ones, hold NaN or a forbidden infinity."""
        return self.raw.amax(dim=-1).isfinite().all(dim=0) & (
            self.combined.amax(dim=-1) < torch.inf
        )


@dataclass(eq=False)
class AttachedEngine(abc.ABC):
    """One method on one model, and the call of `generate` under way."""

    attached: AttachedMethod
    trace: Trace
    session: Session | None = None
    """The prompts of the call under way."""
    is_attached: bool = False
    """Whether the method is in the model's attributes. A thread may have read one of these before
    the block ended; its call is then one of the model as it is."""
    gives_weights: bool = False
    """Whether the method's attention gives its weights, as that of the stock model does ("eager"
    alone)."""
    is_encoding: bool = False
    """Whether an image encoder runs: one of videos may call that of images."""
    last_original: Float[Tensor, "rows vocab"] | None = None
    """The original branch's logits of the latest step."""
    last_logits: StepLogits | None = None
    """The logits of the latest step; None where its rows have been checked."""
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """Attention weights of the latest call in the last layer, where the method has a loop."""
    sites: CurrentSites = field(default_factory=CurrentSites)
    """What the hooks at the sites of hidden states read."""
    lock: Any = field(default_factory=threading.RLock)
    """One call at a time: a second thread waits."""

    @abc.abstractmethod
    def attention(self) -> AttentionHandles:
        """What goes into the decoder's attention modules while the method is attached."""

    @abc.abstractmethod
    def keep_readout(self, name: str, states: Any) -> None:
        """Keep the original branch's last row of a layer that is read out."""

    @abc.abstractmethod
    def keep_image(self, states: Any) -> None:
        """Keep the original branch's image tokens of a layer, in a call that runs the prompts."""

    @abc.abstractmethod
    def compile_steps(self, session: Session) -> None:
        """Prepare the compiled steps of a `generate` call that has a `session.compile_config`."""

    def end_call(self) -> None:
        """Clear what belongs to one call of `generate`."""
        self.session, self.last_original = None, None
        self.last_logits, self.last_weights = None, None
