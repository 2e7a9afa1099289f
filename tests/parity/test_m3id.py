"""M3ID against two runs without a cache: with the image, and of the prompt without it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.schedule import Signals

from .against import Ran, assert_close, branch_logits, generate
from .reference import Rules, apply_constraint
from .test_inputs import SAMPLES, unchanged, without_image
from .test_schedules import scaled_contrast, schedule, traced
from .tiny import IMAGE, Sample, batch, tiny

STEPS = 5


def both(ran: Ran, samples: tuple[Sample, ...] = SAMPLES) -> tuple[Tensor, Tensor]:
    """(rows, steps, vocab) with the image, and without it."""
    plain = Rules()
    return (
        branch_logits(tiny(2), samples, ran.tokens, plain),
        branch_logits(tiny(2), samples, ran.tokens, plain, rewrite=without_image),
    )


def weights(rate: float, *, first: int = 1, steps: int = STEPS) -> Tensor:
    """`(1 - g) / g` with `g = exp(-rate t)`, as the forks write it."""
    decay = [math.exp(-rate * t) for t in range(first, first + steps)]
    return torch.tensor([(1 - g) / g for g in decay], dtype=torch.float64)


def authors(conditional: Tensor, unconditional: Tensor, weight: Tensor, beta: float) -> Tensor:
    """`lc + w (lc - lu)` on log-probabilities, cut where the original branch says so."""
    own, other = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    mixed = own + weight[..., None] * (own - other)
    return mixed if beta == 0 else apply_constraint(mixed, conditional, beta)


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
@pytest.mark.parametrize("first", [1, 0])
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_m3id(rate: float, first: int, pad: int, optimize: bool) -> None:
    method = cdkit.load("m3id", rate=rate, first_step=first)
    ran = generate(tiny(2), method, SAMPLES, steps=STEPS, pad=pad, optimize=optimize)
    conditional, unconditional = both(ran)
    weight = weights(rate, first=first)
    expected = {
        "original": conditional,
        "distorted": unconditional,
        "combined": scaled_contrast(conditional, unconditional, weight.expand(3, -1), 0.1),
    }
    assert_close(ran.logits, expected, within=1e-7)
    assert_close({"w": traced(ran)}, {"w": weight.expand(3, -1)}, within=1e-12)
    # the same distribution as on log-probabilities
    have = ran.logits["combined"].log_softmax(-1)
    want = authors(conditional, unconditional, weight, 0.1).log_softmax(-1)
    assert_close({"p": have}, {"p": want}, within=1e-7)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))
    if first == 0:  # the first token: the constraint alone
        alone = apply_constraint(ran.logits["original"], ran.logits["original"], 0.1)
        assert torch.equal(ran.logits["combined"][:, 0], alone[:, 0])


def test_a_batch_is_its_rows_alone() -> None:
    method = cdkit.load("m3id", rate=0.3)
    together = generate(tiny(2), method, SAMPLES, steps=STEPS).logits
    for row, one in enumerate(SAMPLES):
        alone = generate(tiny(2), method, [one], steps=STEPS).logits
        own = {name: logits[row : row + 1] for name, logits in together.items()}
        assert_close(alone, own, within=1e-8)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_the_papers_gate(threshold: float, optimize: bool) -> None:
    """`s = lc + 1[max lc < log threshold] w (lc - lu)`, every token allowed."""
    method = cdkit.load("m3id_gated", rate=0.3, threshold=threshold)
    ran = generate(tiny(2), method, SAMPLES, steps=6, pad=2, optimize=optimize)
    conditional, unconditional = both(ran)
    unsure = conditional.log_softmax(-1).amax(-1) < math.log(threshold)
    assert unsure.any() and not unsure.all()
    weight = weights(0.3, steps=6) * unsure
    want = authors(conditional, unconditional, weight, 0.0).log_softmax(-1)
    assert_close({"p": ran.logits["combined"].log_softmax(-1)}, {"p": want}, within=1e-7)
    assert_close({"w": traced(ran)}, {"w": weight}, within=1e-12)
    ungated = authors(conditional, unconditional, weights(0.3, steps=6), 0.0).log_softmax(-1)
    with pytest.raises(AssertionError, match="off by"):
        assert_close({"p": ran.logits["combined"].log_softmax(-1)}, {"p": ungated}, within=1e-3)


def test_the_gates_edge() -> None:
    """A model that is exactly as confident as the threshold is left alone."""
    gate = schedule("confidence_gate", threshold=0.5)
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.1], [-0.1, 0.0]], dtype=torch.float64)
    logits = torch.nn.functional.pad(logits, (0, 1), value=-math.inf)
    four = torch.zeros(1, 3, dtype=torch.float64)
    factor, state = gate.scale(Signals(torch.cat((logits, four)), None, None), step=0, state={})
    assert factor.tolist() == [0, 0, 0, 1] and not state


@pytest.mark.parametrize("t", [1, 2, 50, 512])
def test_the_growth(t: int) -> None:
    signals = Signals(torch.zeros(2, 5, dtype=torch.float64), None, None)
    for first in (0, 1):
        growth = schedule("growth", first_step=first)
        factor, state = growth.scale(signals, step=t - first, state={})
        assert factor.tolist() == pytest.approx([math.expm1(0.02 * t)] * 2, rel=1e-12)
        assert not state
    capped, _ = schedule("growth", cap=5.0).scale(signals, step=t, state={})
    assert capped.tolist() == pytest.approx([min(5.0, math.expm1(0.02 * (t + 1)))] * 2)


def test_the_growth_has_an_end_in_every_dtype() -> None:
    """No infinity, and so no not-a-number where the branches agree on a token."""
    original, other = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 3.0, -5.0]])
    for step in (1_000, 50_000, 10**9):
        growth = schedule("growth", rate=0.5)
        factor, _ = growth.scale(Signals(original, None, None), step=step, state={})
        combined = original + factor[:, None] * (original - other)
        assert combined.isfinite().all() and combined.argmax().item() == 2


Faulty = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("m3id", rate=0.3), SAMPLES, steps=STEPS)


def steps_of(weight: Callable[[int, Sample], float]) -> Tensor:
    """(rows, steps)."""
    return torch.tensor(
        [[weight(t, one) for t in range(1, STEPS + 1)] for one in SAMPLES], dtype=torch.float64
    )


@pytest.mark.parametrize(
    "weight",
    [
        lambda t, one: math.exp(-0.3 * t),
        lambda t, one: 1 - math.exp(-0.3 * t),
        lambda t, one: math.exp(0.3 * t),
        lambda t, one: math.expm1(0.3 * (t - 1)),
        lambda t, one: math.expm1(0.3 * (t + 1)),
        lambda t, one: math.expm1(0.03 * (len(one.ids) + t)),
        lambda t, one: math.expm1(0.3),
        lambda t, one: -math.expm1(0.3 * t),
    ],
    ids=["g", "1 - g", "1 / g", "from 0", "from 2", "prompt counted", "constant", "other sign"],
)
def test_a_wrong_weight_is_seen(ran: Ran, weight: Callable[[int, Sample], float]) -> None:
    conditional, unconditional = both(ran)
    faulty = scaled_contrast(conditional, unconditional, steps_of(weight), 0.1)
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            assert_close(
                {"combined": ran.logits["combined"][row]}, {"combined": faulty[row]}, within=1e-6
            )


def test_a_wrong_judge_is_seen(ran: Ran) -> None:
    conditional, unconditional = both(ran)
    free = scaled_contrast(conditional, unconditional, weights(0.3).expand(3, -1), 0.0)
    for judge in (unconditional, free):
        with pytest.raises(AssertionError, match="other tokens are ruled out"):
            faulty = {"combined": apply_constraint(free, judge, 0.1)}
            assert_close({"combined": ran.logits["combined"]}, faulty, within=1e-6)


@torch.no_grad()
def text_alone(one: Sample, fed: list[int], *, gap: bool, zeros: bool) -> Tensor:
    """A wrong text-only branch: positions that leave a gap, or an image of zeros that stays."""
    model: Any = tiny(2)
    kept = [place for place, token in enumerate(one.ids) if zeros or token != IMAGE]
    ids = torch.tensor([[*(one.ids[place] for place in kept), *fed]])
    places = torch.tensor([[*kept, *range(len(one.ids), len(one.ids) + len(fed))]])
    if not gap:
        places = torch.arange(ids.shape[1])[None]
    embeds = model.get_input_embeddings()(ids.masked_fill(ids == IMAGE, 0))
    embeds = embeds.masked_fill((ids == IMAGE)[..., None], 0.0)
    logits: Tensor = model(inputs_embeds=embeds, position_ids=places, use_cache=False).logits[0]
    return logits[-len(fed) - 1 :]


@pytest.mark.parametrize("how", [{"gap": True, "zeros": False}, {"gap": False, "zeros": True}])
def test_a_wrong_text_branch_is_seen(ran: Ran, how: dict[str, bool]) -> None:
    for row, (one, tokens) in enumerate(zip(SAMPLES, ran.tokens.tolist(), strict=True)):
        have = {"distorted": ran.logits["distorted"][row]}
        right = {"distorted": text_alone(one, tokens[:-1], gap=False, zeros=False)}
        assert_close(have, right, within=1e-8)
        if one.ids[0] == IMAGE and how["gap"]:
            continue  # nothing stands before its image: a gap there moves all, and changes nothing
        with pytest.raises(AssertionError, match="off by"):
            wrong = {"distorted": text_alone(one, tokens[:-1], **how)}
            assert_close(have, wrong, within=1e-3)


def test_a_shared_cache_is_seen(ran: Ran) -> None:
    """A fault of many forks: from the second token on the text branch sees the image."""
    conditional, unconditional = both(ran)
    faulty = torch.cat((unconditional[:, :1], conditional[:, 1:]), dim=1)
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            assert_close(
                {"distorted": ran.logits["distorted"][row]}, {"distorted": faulty[row]}, within=1e-2
            )


def test_the_count_starts_anew_with_each_answer() -> None:
    with cdkit.attach(tiny(2), cdkit.load("m3id"), trace=("logits",)) as run:
        answers, factors = [], []
        for _ in range(2):
            out = tiny(2).generate(**batch(SAMPLES), max_new_tokens=4, do_sample=False)
            answers.append(out.tolist())
            factors.append([step.alpha_scale[0].item() for step in run.trace.steps])  # type: ignore[index]
    assert answers[0] == answers[1]
    assert factors[0] == factors[1] == [math.expm1(0.02 * t) for t in (1, 2, 3, 4)]


def test_equal_branches_are_the_constraint_alone() -> None:
    method = replace(cdkit.load("m3id", rate=0.5), branches=cdkit.load("identical").branches)
    ran = generate(tiny(2), method, SAMPLES)
    original = branch_logits(tiny(2), SAMPLES, ran.tokens, Rules(), rewrite=unchanged)
    alone = {"combined": apply_constraint(original, original, 0.1)}
    assert_close({"combined": ran.logits["combined"]}, alone, within=1e-7)
