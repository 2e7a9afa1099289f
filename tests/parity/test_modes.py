"""Each way to decode against the same way done by hand on the reference's logits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import IMD, NOISE, Ran, Rewrite, branch_logits, generate
from .reference import Rules, contrast
from .test_inputs import ROLE, noised, unchanged, with_role
from .tiny import Sample, sample, tiny

SAMPLES = (sample(3, 5, seed=31), sample(2, 2, seed=32))
STEPS = 4
Logits = Callable[[Sample, Sequence[int]], Tensor]
"""(sample, generated tokens) -> the combined logits of the next token."""


RULES: dict[str, tuple[Rules, Rewrite]] = {
    "cmac": (replace(IMD, scope="row"), unchanged),
    "value_noise": (NOISE, unchanged),
    "vcd": (Rules(), noised(500)),
    "icd": (Rules(), with_role("system")),
}


def method(name: str, beta: float) -> cdkit.Method:
    more = {"cmac": {"scope": "row"}, "icd": {"instruction": ROLE}}
    return cdkit.load(name, beta=beta, **more.get(name, {}))


def by_hand(name: str, beta: float) -> Logits:
    rules, rewrite = RULES[name]
    combiner = method(name, beta).combiner

    def logits(one: Sample, generated: Sequence[int]) -> Tensor:
        tokens = torch.tensor([[*generated, 0]])  # the last one is not fed
        original = branch_logits(tiny(2), [one], tokens, replace(rules, distortion="none"))
        distorted = branch_logits(tiny(2), [one], tokens, rules, rewrite=rewrite)
        combined = contrast(original, [distorted], [getattr(combiner, "alpha", 0.0)], beta)
        return combined[0, -1].float()  # as generate reads them

    return logits


def greedy(logits: Logits, one: Sample, processed: Callable[[Tensor], Tensor]) -> list[int]:
    tokens: list[int] = []
    for _ in range(STEPS):
        tokens.append(int(processed(logits(one, tokens)).argmax()))
    return tokens


def drawn(
    logits: Logits, rows: Sequence[Sample], processed: Callable[[Tensor], Tensor], seed: int
) -> list[list[int]]:
    """Sampling: all rows of a step are drawn by one call."""
    torch.manual_seed(seed)
    tokens: list[list[int]] = [[] for _ in rows]
    for _ in range(STEPS):
        scores = [processed(logits(one, own)) for one, own in zip(rows, tokens, strict=True)]
        chosen = torch.multinomial(torch.stack(scores).softmax(-1), num_samples=1)[:, 0]
        for own, token in zip(tokens, chosen.tolist(), strict=True):
            own.append(token)
    return tokens


def beams(logits: Logits, one: Sample, count: int) -> list[tuple[float, list[int]]]:
    """Plain beam search for a fixed length: the best `count` continuations of each step."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(STEPS):
        candidates = []
        for score, tokens in alive:
            log_p = logits(one, tokens).log_softmax(-1)
            for token in log_p.topk(count).indices.tolist():
                candidates.append((score + float(log_p[token]), [*tokens, token]))
        alive = sorted(candidates, reverse=True)[:count]
        assert all(score > float("-inf") for score, _ in alive), "choose another prompt or beta"
    return alive


def top_k(count: int, temperature: float) -> Callable[[Tensor], Tensor]:
    def processed(scores: Tensor) -> Tensor:
        scores = scores / temperature
        return scores.masked_fill(scores < scores.topk(count).values[-1], -torch.inf)

    return processed


def same(scores: Tensor) -> Tensor:
    return scores


def lists(ran: Ran) -> list[list[int]]:
    rows: list[list[int]] = ran.tokens.tolist()
    return rows


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_greedy(name: str, optimize: bool) -> None:
    ran = generate(tiny(2), method(name, 0.1), SAMPLES, steps=STEPS, optimize=optimize, trace=())
    logits = by_hand(name, 0.1)
    assert lists(ran) == [greedy(logits, one, same) for one in SAMPLES]


@pytest.mark.parametrize("name", ["cmac", "vcd"])
def test_greedy_with_suppressed_tokens(name: str) -> None:
    """The contrast comes before the processors."""
    logits = by_hand(name, 0.0)
    banned = sorted({greedy(logits, one, same)[0] for one in SAMPLES})

    def without(scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[banned] = -torch.inf
        return scores

    ran = generate(
        tiny(2), method(name, 0.0), SAMPLES, steps=STEPS, trace=(), suppress_tokens=banned
    )
    assert lists(ran) == [greedy(logits, one, without) for one in SAMPLES]


@pytest.mark.parametrize("name", ["cmac", "vcd"])
@pytest.mark.parametrize("returned", [1, 3])
def test_sampling(name: str, returned: int) -> None:
    logits = by_hand(name, 0.05)
    rows = [one for one in SAMPLES for _ in range(returned)]
    answers = set()
    for seed in range(2):
        torch.manual_seed(seed)
        ran = generate(
            tiny(2), method(name, 0.05), SAMPLES, steps=STEPS, trace=(),
            do_sample=True, top_k=0, num_return_sequences=returned,
        )  # fmt: skip
        assert lists(ran) == drawn(logits, rows, same, seed)
        answers |= {tuple(row) for row in lists(ran)}
    assert len(answers) > 2  # it does sample


@pytest.mark.parametrize("name", ["cmac", "vcd"])
def test_sampling_with_temperature_and_top_k(name: str) -> None:
    logits = by_hand(name, 0.0)
    torch.manual_seed(5)
    ran = generate(
        tiny(2), method(name, 0.0), SAMPLES, steps=STEPS, trace=(),
        do_sample=True, top_k=4, temperature=1.5,
    )  # fmt: skip
    assert lists(ran) == drawn(logits, SAMPLES, top_k(4, 1.5), 5)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(
    ("name", "count", "beta"),
    [(name, 2, 0.0) for name in RULES] + [("cmac", 3, 0.05), ("vcd", 3, 0.05)],
)
def test_beam_search(name: str, count: int, beta: float, optimize: bool) -> None:
    ran = generate(
        tiny(2), method(name, beta), SAMPLES, steps=STEPS, optimize=optimize, trace=(),
        num_beams=count, num_return_sequences=count, early_stopping=True, output_scores=True,
    )  # fmt: skip
    expected = [beam for one in SAMPLES for beam in beams(by_hand(name, beta), one, count)]
    assert lists(ran) == [tokens for _, tokens in expected]
    scores = torch.tensor([score / STEPS for score, _ in expected])  # generate's length penalty
    assert (ran.output.sequences_scores - scores).abs().max() < 1e-4


def test_beam_search_moves_between_beams() -> None:
    """Else it would prove nothing about reordered caches."""
    ran = generate(
        tiny(2), method("cmac", 0.0), SAMPLES, steps=STEPS, trace=(), num_beams=3,
        num_return_sequences=3, output_scores=True,
    )  # fmt: skip
    indices = ran.output.beam_indices[:, :STEPS]
    assert (indices[:, 1:] != indices[:, :-1]).any()


@pytest.mark.parametrize("name", ["cmac", "vcd"])
def test_the_method_changes_every_mode(name: str) -> None:
    plain, seed = cdkit.load("plain"), 0
    modes: tuple[dict[str, Any], ...] = (
        {"do_sample": False},
        {"do_sample": True, "top_k": 0},
        {"num_beams": 3, "num_return_sequences": 3},
    )
    for how in modes:
        answers = []
        for one in plain, method(name, 0.0):
            torch.manual_seed(seed)
            answers.append(lists(generate(tiny(2), one, SAMPLES, steps=STEPS, trace=(), **how)))
        assert answers[0] != answers[1]
