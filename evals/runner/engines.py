"""The model of a run, loaded once in a process, however many look at it."""

from dataclasses import dataclass, field
from typing import Any

import torch

import cdkit
from cdkit.evals.protocols.follow import prepare
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.chosen_model import ChosenModel
from cdkit.evals.runner.encoder_cache import EncoderCache
from cdkit.pretrained import device_of


@dataclass(eq=False)
class Engines:
    """Loads a model where it is first asked for, and keeps it until `forget`.

    A process that is started gets none of it: it loads the model itself.

    Args:
        chosen: The model.
        decoding: How it decodes: arguments of `AnswerEngine`.
        device_map: As in `from_pretrained`: how one model lies on several devices.
        protocol: The protocol as it is for this model: prompts and images follow it.
        unmatched: What of it cannot be matched on this model, once it is loaded.
    """

    chosen: ChosenModel
    decoding: dict[str, Any] = field(default_factory=dict)
    device_map: str | None = None
    protocol: Protocol | None = None
    unmatched: tuple[str, ...] = ()
    _loaded: AnswerEngine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}

    def at(self, device: torch.device) -> AnswerEngine:
        """The model on a device."""
        if self._loaded is None:
            model, processor = self.chosen.load(device, device_map=self.device_map)
            if self.protocol is not None:
                adapter = cdkit.adapter_for(model)
                self.unmatched = prepare(self.protocol, adapter=adapter, processor=processor)
            self._loaded = AnswerEngine(
                model,
                processor,
                protocol=self.protocol,
                encoder_cache=EncoderCache(),
                **self.decoding,
            )
        return self._loaded

    def anywhere(self, device: str) -> AnswerEngine:
        """The model as it was loaded before; else on the device that an option names."""
        return self._loaded or self.at(device_of(device))

    def forget(self) -> None:
        """Free its memory: another model follows."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
