"""What a bench runs: something that answers prompts greedily, and can say what logits it saw."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

import cdkit
from cdkit.evals.speed.prompts import Prompts
from cdkit.methods.method import Method

Tick = Callable[[], None]
Tokens = Int[Tensor, "rows tokens"]
Logits = Float[Tensor, "steps rows vocab"]


@runtime_checkable
class BenchRunner(Protocol):
    """One way to decode one batch of prompts."""

    def ready(self) -> AbstractContextManager[None]:
        """What stands around an answer and is not part of it, such as `cdkit.attach`."""
        ...

    def answer(self, limit: int, tick: Tick) -> Tokens:
        """`limit` greedy tokens; `tick` is called after each."""
        ...

    def logits(self, tokens: Tokens) -> Logits:
        """The logits of each step when the answer is forced to be `tokens`."""
        ...


@dataclass(frozen=True, eq=False)
class GenerateRunner:
    """Hugging Face's `generate`: stock, or with a method attached."""

    model: Any
    prompts: Prompts
    method: Method | None = None
    processor: Any = None
    optimize: frozenset[str] | bool = frozenset()

    @contextmanager
    def ready(self) -> Iterator[None]:
        if self.method is None:
            yield
            return
        with cdkit.attach(
            self.model,
            self.method,
            processor=self.processor,
            sample_ids=self.prompts.sample_ids,
            optimize=self.optimize,
        ):
            yield

    def answer(self, limit: int, tick: Tick) -> Tokens:
        made: Tensor = self.model.generate(
            **self._asked(limit), stopping_criteria=StoppingCriteriaList([TokenTimer(tick)])
        )
        return made[:, self.prompts.ids.shape[1] :]

    def logits(self, tokens: Tokens) -> Logits:
        forced = ForcedTokens(tokens, start=self.prompts.ids.shape[1])
        made = self.model.generate(
            **self._asked(tokens.shape[1]),
            logits_processor=LogitsProcessorList([forced]),
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(made.logits)

    def _asked(self, limit: int) -> Mapping[str, Any]:
        return {**self.prompts.inputs(), "max_new_tokens": limit, "do_sample": False}


class TokenTimer(StoppingCriteria):
    """Never stops an answer; reports each token."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self._tick()
        return input_ids.new_zeros(input_ids.shape[0], dtype=torch.bool)


class ForcedTokens(LogitsProcessor):
    """Leaves the given token alone, whatever its logit: all variants then see the same prefix."""

    def __init__(self, tokens: Tokens, start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chosen = self._tokens[:, input_ids.shape[1] - self._start, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
