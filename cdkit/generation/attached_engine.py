"""The interface of an engine: the optimised one and the plain reference implement it."""

import abc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float
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


@dataclass(eq=False)
class AttachedEngine(abc.ABC):
    """One method on one model, and the call of `generate` under way."""

    attached: AttachedMethod
    trace: Trace
    session: Session | None = None
    """The prompts of the call under way."""
    last_original: Float[Tensor, "rows vocab"] | None = None
    """The original branch's logits of the latest step."""
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
        self.session, self.last_original, self.last_weights = None, None, None
