"""Sampling by the Gumbel trick: `argmax(logits / T + noise)` draws from `softmax(logits / T)`.

The noise belongs to (seed, sample id, step), so that two methods see the same random numbers and
neither batch nor order changes an answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cdkit.functional.noise import cell_uniform, stream


def rng_keys(seed: int, sample_ids: Sequence[str]) -> Int[Tensor, " rows"]:
    """The key of each sample's noise."""
    return torch.tensor([stream(seed, name, "sampling") for name in sample_ids])


def gumbel_noise(
    rng_keys: Int[Tensor, " rows"], step: int, vocab: int
) -> Float[Tensor, "rows vocab"]:
    """Standard Gumbel noise in float64, one row a sample, on the rng_keys' device."""
    uniform = cell_uniform(rng_keys[:, None], step, torch.arange(vocab, device=rng_keys.device))
    return -uniform.log().neg().log()


def warpers(
    temperature: float, top_k: int | None = None, top_p: float | None = None
) -> LogitsProcessorList:
    """Hugging Face's own, in the order in which its `generate(do_sample=True)` applies them."""
    found = LogitsProcessorList()
    if temperature != 1:
        found.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        found.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        found.append(TopPLogitsWarper(float(top_p)))
    return found


class GumbelSampling(LogitsProcessor):
    """Makes greedy search sample: give it to `generate(do_sample=False, num_beams=1)`.

    What top-k and top-p take out stays out: noise moves no -inf.
    """

    def __init__(
        self,
        seed: int,
        sample_ids: Sequence[str],
        *,
        prompt_length: int,
        temperature: float,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        self.rng_keys = rng_keys(seed, sample_ids)
        self.prompt_length = prompt_length
        self.warpers = warpers(temperature, top_k, top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        noise = gumbel_noise(self.rng_keys.to(scores.device), step, scores.shape[1])
        # no type: it asks for a LongTensor
        warped: Tensor = self.warpers(input_ids, scores)  # type: ignore[arg-type]
        return warped + noise.to(scores.dtype)
