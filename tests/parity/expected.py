"""A method under `generate`, greedy, by sampling and by beams, against what its test expects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import cdkit

from .against import Ran, Rewrite, assert_close, beta_of, branch_logits, generate, tolerance
from .reference import Rules, contrast
from .test_modes import STEPS, beams, drawn, same
from .tiny import Sample, tiny

WAYS = ((4, True, 0), (2, False, 3), (1, True, 1))
"""Key heads, `optimize`, more columns of padding on the left."""
Expected = Callable[[Any, Sequence[Sample], Tensor], dict[str, Tensor]]
"""(model, samples, tokens) -> branch -> its logits (rows, steps, vocab), by the reference."""


def branches(**plan: Rules | tuple[Rules, Rewrite]) -> Expected:
    """Each branch by its rules, with a prompt and pixels of its own where that is said."""

    def expected(model: Any, samples: Sequence[Sample], tokens: Tensor) -> dict[str, Tensor]:
        made = {}
        for name, own in plan.items():
            rules, rewrite = own if isinstance(own, tuple) else (own, lambda one: one)
            made[name] = branch_logits(model, samples, tokens, rules, rewrite=rewrite)
        return made

    return expected


def with_combined(logits: Mapping[str, Tensor], method: cdkit.Method) -> dict[str, Tensor]:
    combiner: Any = method.combiner
    others = [own for name, own in logits.items() if name != "original"]
    alphas = [combiner.alpha] * len(others)
    combined = contrast(logits["original"], others, alphas, beta_of(method))
    return {**logits, "combined": combined}


Combine = Callable[[Mapping[str, Tensor], cdkit.Method], dict[str, Tensor]]
"""(branch -> its logits (rows, steps, vocab), method) -> the same with "combined"."""


def check(
    method: cdkit.Method,
    expected: Expected,
    samples: Sequence[Sample],
    *,
    kv_heads: int = 2,
    steps: int = 4,
    combine: Combine = with_combined,
    **how: Any,
) -> Ran:
    """Greedy: every branch's logits of the first and of later steps, and the tokens."""
    model = tiny(kv_heads)
    ran = generate(model, method, samples, steps=steps, **how)
    want = combine(expected(model, samples, ran.tokens), method)
    assert_close(ran.logits, want, within=tolerance(method))
    assert torch.equal(ran.tokens, want["combined"].argmax(-1))
    return ran


def check_modes(
    method: cdkit.Method,
    expected: Expected,
    samples: Sequence[Sample],
    *,
    combine: Combine = with_combined,
) -> None:
    """Sampling and beam search, against both done by hand on the expected logits."""
    free = replace(method, constraint=None)

    def logits(one: Sample, generated: Sequence[int]) -> Tensor:
        tokens = torch.tensor([[*generated, 0]])  # the last one is not fed
        return combine(expected(tiny(2), [one], tokens), free)["combined"][0, -1].float()

    torch.manual_seed(3)
    ran = generate(tiny(2), free, samples, steps=STEPS, trace=(), do_sample=True, top_k=0)
    assert ran.tokens.tolist() == drawn(logits, samples, same, 3)
    ran = generate(
        tiny(2), free, samples, steps=STEPS, trace=(), num_beams=3, num_return_sequences=3,
        early_stopping=True, output_scores=True,
    )  # fmt: skip
    best = [beam for one in samples for beam in beams(logits, one, 3)]
    assert ran.tokens.tolist() == [tokens for _, tokens in best]
    assert (ran.output.beam_indices[:, 1:STEPS] != ran.output.beam_indices[:, : STEPS - 1]).any()


def check_fault(ran: Ran, faulty: Mapping[str, Tensor], rows: Sequence[int] | None = None) -> None:
    """What a faulty reference gives differs from what cdkit gave, in each row."""
    for name, wrong in faulty.items():
        have = ran.logits[name]
        for row in range(len(have)) if rows is None else rows:
            worst = (have[row] - wrong[row]).abs().max().item()
            assert worst > 1e-6, f"{name}: the fault is not seen in row {row}"
