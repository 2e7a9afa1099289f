"""When an answer began, had its first token, and was there: on the CPU's clock or on the GPU's."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """One answer's, in seconds."""

    first: float
    """Until the first token: image encoder and prefill are in it."""
    per_token: float
    """The mean over all tokens after the first."""
    whole: float


@dataclass(eq=False)
class Stopwatch:
    """Counts the tokens of one answer; under CUDA by events, so that the host is not held up.

    On another accelerator the host waits at each mark.
    """

    device: torch.device
    tokens: int = 0
    marks: list[Any] = field(default_factory=list)

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._mark()

    def token(self) -> None:
        """One more token was chosen."""
        self.tokens += 1
        if self.tokens == 1:
            self._mark()

    def stop(self) -> Times:
        """Waits for a GPU to finish."""
        self._mark()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start, first, end = self.marks
        rest = self._between(first, end) / (self.tokens - 1)
        return Times(self._between(start, first), rest, self._between(start, end))

    def _mark(self) -> None:
        if self.device.type != "cuda":
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            self.marks.append(perf_counter())
            return
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        self.marks.append(event)

    def _between(self, start: Any, end: Any) -> float:
        if self.device.type == "cuda":
            return float(start.elapsed_time(end)) / 1000
        return float(end - start)
