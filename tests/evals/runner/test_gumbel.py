"""Sampling by the Gumbel trick: the right distribution, and the same draw in any company."""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList

from cdkit.evals.runner.gumbel import GumbelSampling, warpers

hf: Any = transformers  # much of it is not typed
LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5, -0.5]])
IDS = torch.zeros(1, 3, dtype=torch.long)


def drawn(logits: Tensor, seed: int, names: list[str], **asked: float | int | None) -> list[int]:
    given: dict[str, Any] = {"temperature": 1.0, **asked}
    sampling = GumbelSampling(seed, names, prompt_length=3, **given)
    ids = torch.zeros(len(names), 3, dtype=torch.long)
    chosen: list[int] = sampling(ids, logits).argmax(dim=-1).tolist()
    return chosen


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Of the tokens that can be drawn; one that cannot must not have been."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    return float(((counts[possible] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.8, "top_k": 5, "top_p": 0.85},
    ],
)
def test_draws_are_those_of_hugging_faces_sampling(asked: dict[str, float]) -> None:
    """4,000 samples; 24.3 is the 99.9 % quantile of chi-square with 7 degrees of freedom."""
    count = 4000
    chosen = drawn(LOGITS.expand(count, -1), 7, [f"sample {i}" for i in range(count)], **asked)
    counts = torch.tensor(chosen).bincount(minlength=LOGITS.shape[1]).double()
    warped = warpers(**asked)(IDS, LOGITS)  # type: ignore[arg-type]
    assert chi_square(counts, warped.double().softmax(dim=-1)[0]) < 24.3


def test_another_distribution_would_be_noticed() -> None:
    count = 4000
    chosen = drawn(LOGITS.expand(count, -1), 7, [f"sample {i}" for i in range(count)])
    counts = torch.tensor(chosen).bincount(minlength=LOGITS.shape[1]).double()
    assert chi_square(counts, (LOGITS / 1.2).double().softmax(dim=-1)[0]) > 24.3


def test_warpers_stand_in_hugging_faces_order() -> None:
    """Their own list, as `generate(do_sample=True)` makes it."""
    config = hf.GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = hf.GPT2LMHeadModel(config)
    asked = hf.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, top_p=0.9, eos_token_id=0, pad_token_id=0
    )
    theirs = model._get_logits_processor(asked, logits_processor=LogitsProcessorList())
    ours = warpers(0.7, 5, 0.9)
    assert [type(each) for each in ours] == [type(each) for each in theirs]
    for mine, own in zip(ours, theirs, strict=True):
        assert vars(mine) == vars(own)


@given(
    seed=st.integers(0, 5),
    order=st.permutations(range(6)),
    size=st.integers(1, 6),
    top_k=st.none() | st.integers(1, 8),
    top_p=st.none() | st.floats(0.1, 1.0),
)
def test_company_changes_no_draw(
    seed: int, order: list[int], size: int, top_k: int | None, top_p: float | None
) -> None:
    names = [f"sample {i}" for i in range(6)]
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    asked = {"top_k": top_k, "top_p": top_p}
    together = drawn(logits, seed, names, **asked)
    chosen = order[:size]
    apart = drawn(logits[chosen], seed, [names[i] for i in chosen], **asked)
    assert apart == [together[i] for i in chosen]


def test_seeds_and_steps_draw_anew() -> None:
    names = [f"sample {i}" for i in range(200)]
    logits = torch.zeros(200, 8)
    by_seed = [drawn(logits, seed, names) for seed in (0, 1)]
    assert sum(a == b for a, b in zip(*by_seed, strict=True)) < 60  # 25 by chance
    sampling = GumbelSampling(0, names, prompt_length=3, temperature=1.0)
    later = sampling(torch.zeros(200, 4, dtype=torch.long), logits).argmax(dim=-1).tolist()
    assert sum(a == b for a, b in zip(by_seed[0], later, strict=True)) < 60
