"""Sampling by the Gumbel trick: `argmax(logits / T + noise)` draws from `softmax(logits / T)`.

The noise belongs to (seed, sample id, step), so that two methods see the same random numbers and
neither batch nor order changes an answer.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from cdkit.noise import cell_uniform, stream


def streams(seed: int, sample_ids: Sequence[str]) -> Int[Tensor, " rows"]:
    """The key of each sample's noise."""
    return torch.tensor([stream(seed, name, "sampling") for name in sample_ids])


def gumbel_noise(
    streams: Int[Tensor, " rows"], step: int, vocab: int
) -> Float[Tensor, "rows vocab"]:
    """Standard Gumbel noise in float64, one row a sample, on the streams' device."""
    uniform = cell_uniform(streams[:, None], step, torch.arange(vocab, device=streams.device))
    return -uniform.log().neg().log()


class GumbelSampling(LogitsProcessor):
    """Makes greedy search sample: give it to `generate(do_sample=False, num_beams=1)`."""

    def __init__(
        self, seed: int, sample_ids: Sequence[str], *, prompt_length: int, temperature: float
    ) -> None:
        self.streams = streams(seed, sample_ids)
        self.prompt_length, self.temperature = prompt_length, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        noise = gumbel_noise(self.streams.to(scores.device), step, scores.shape[1])
        return scores / self.temperature + noise.to(scores.dtype)
