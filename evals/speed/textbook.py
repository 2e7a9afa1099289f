"""Visual contrastive decoding as one writes it without a library: two model calls a token."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache

from cdkit.evals.speed.bench_runners import Logits, Tick, Tokens
from cdkit.evals.speed.prompts import Prompts
from cdkit.functional.noise import generator, purpose_of
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.distortion import PixelDistortion
from cdkit.methods.method import Method

SEED = 0
"""That of `cdkit.attach` where none is given: both see the same noise."""


def has_textbook(method: Method) -> bool:
    """Whether the loop computes this method: one branch with noise on its pixels, as VCD has it."""
    noisy = [d for branch in method.live_branches for d in branch.distortions]
    alone = not (method.interventions or method.calibrator or method.stateful or method.readout)
    alone = alone and not method.live_state_interventions
    return (
        alone
        and method.loop is None
        and len(method.live_branches) == 1
        and all(isinstance(part, PixelDistortion) and part.elementwise for part in noisy)
    )


@dataclass(frozen=True, eq=False)
class TextbookRunner:
    """A greedy loop: the image and its noised copy, each with a cache, go through the model apart.

    It does nothing that its prompts do not need: no padding, no end token, no bookkeeping of
    `generate`. What is left is the cost of two calls a token.
    """

    model: Any
    prompts: Prompts
    method: Method

    @contextmanager
    def ready(self) -> Iterator[None]:
        yield

    def answer(self, limit: int, tick: Tick) -> Tokens:
        tokens = list[Tensor]()
        for logits in self._steps(tokens):
            tokens.append(logits.argmax(dim=-1, keepdim=True))
            tick()
            if len(tokens) == limit:
                break
        return torch.cat(tokens, dim=1)

    def logits(self, tokens: Tokens) -> Logits:
        chosen, seen = list[Tensor](), list[Tensor]()
        # the tokens first: where they end, no further step is computed
        for token, logits in zip(torch.split(tokens, 1, dim=1), self._steps(chosen), strict=False):
            seen.append(logits)
            chosen.append(token)
        return torch.stack(seen)

    def _steps(self, tokens: list[Tensor]) -> Iterator[Tensor]:
        """The combined logits of each step, without end; the caller adds each token it chooses."""
        (branch,) = self.method.live_branches
        image_cache, noisy_cache = DynamicCache(), DynamicCache()
        given = self.prompts.inputs()
        image = self._next(image_cache, **given)
        noisy = self._next(noisy_cache, **{**given, "pixel_values": self._noised()})
        while True:
            combined, _ = self.method.combine(
                image, {branch.name: noisy}, step=len(tokens), state={}
            )
            yield combined
            image = self._next(image_cache, input_ids=tokens[-1])
            noisy = self._next(noisy_cache, input_ids=tokens[-1])

    @torch.no_grad()
    def _next(self, cache: Cache, **given: Any) -> Float[Tensor, "rows vocab"]:
        """The last column's logits, in float32 at least, as `generate` hands them on."""
        made = self.model(**given, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        logits: Tensor = made.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _noised(self) -> Tensor:
        """The pixels with the noise that cdkit draws for the same prompts."""
        made = []
        pixels = self.prompts.pixels.cpu()
        for name, own in zip(self.prompts.sample_ids, torch.split(pixels, 1), strict=True):
            for part in self.method.live_branches[0].pixel:
                own = part.distort(own, generator=generator(SEED, name, purpose_of(part)))
            made.append(own)
        return torch.cat(made).to(self.prompts.pixels)
