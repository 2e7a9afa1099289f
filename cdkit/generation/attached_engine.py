"""The interface of an engine: the optimised one and the plain reference implement it."""

import abc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.generation.prompts import Session
from cdkit.generation.trace import Trace
from cdkit.methods.attached import AttachedMethod


class AttentionHandles(NamedTuple):
    """How the decoder's attention modules find the engine's attention."""

    key: str
    """The name of this attention in Hugging Face's registries."""
    attribute: str
    """The attribute of an attention module that holds its handle."""
    handles: Sequence[object]
    """One for each layer."""


class Peaks(NamedTuple):
    """The largest logit of each row at one step: it shows whether the row's logits are numbers."""

    branches: Sequence[str]
    """The names of the branches, "original" first."""
    logits: Float[Tensor, "branches rows"]
    """The largest raw logit of each row in each branch."""
    valid: Bool[Tensor, " rows"]
    """False where a branch's logits, or the combined ones, hold NaN or a forbidden infinity."""


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
    last_peaks: Peaks | None = None
    """The largest logits of the latest step; None where its rows have been checked."""
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """Attention weights of the latest call in the last layer, where the method has a loop."""
    lock: Any = field(default_factory=threading.RLock)
    """One call at a time: a second thread waits."""

    @abc.abstractmethod
    def attention(self) -> AttentionHandles:
        """What goes into the decoder's attention modules while the method is attached."""

    @abc.abstractmethod
    def keep_readout(self, name: str, states: Any) -> None:
        """Keep the original branch's last row of a layer that is read out."""

    @abc.abstractmethod
    def compile_steps(self, session: Session) -> None:
        """Prepare the compiled steps of a `generate` call that has a `session.compile_config`."""

    def end_call(self) -> None:
        """Clear what belongs to one call of `generate`."""
        self.session, self.last_original = None, None
        self.last_peaks, self.last_weights = None, None
