"""Each decode mode against the same mode written out here, one uncached call a token.

The logits come from plain calls on one unpadded prompt at a time, with a threshold for each row
(`scope="row"`), so that nothing of a cache, of a batch or of `generate` is in them. The plain call
itself is held to independent equations elsewhere.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .presets import ACTIVE, by_row, depends_on_the_prompts_end, in_turn, takes_plain_calls

QUESTIONS = ("is there a cat ?", "before <image> w3 <image> w4 in the image ?")
NEW = 4
Inputs = dict[str, Tensor]
Logits = Callable[[Inputs, list[int]], Tensor]


def by_plain_calls(name: str) -> bool:
    """Whether a plain call on prompt and answer is what a step of `generate` computes."""
    method = by_row(name)
    return takes_plain_calls(method) and not depends_on_the_prompts_end(method)


@pytest.fixture(params=in_turn([n for n in ACTIVE if by_plain_calls(n)], 2), scope="module")
def method(request: pytest.FixtureRequest) -> cdkit.Method:
    return by_row(request.param)


@pytest.fixture(scope="module")
def next_logits(model: Any, processor: Any, method: cdkit.Method) -> Logits:
    """One prompt and the tokens after it -> the next token's combined logits.

    Kept for the other modes, which go the same way at first.
    """
    known: dict[tuple[int, ...], Tensor] = {}

    def score(inputs: Inputs, answer: list[int]) -> Tensor:
        key = (*inputs["input_ids"][0].tolist(), *answer)
        if key not in known:
            known[key] = plain_call(inputs, answer)
        return known[key]

    def plain_call(inputs: Inputs, answer: list[int]) -> Tensor:
        ids = torch.cat((inputs["input_ids"], torch.tensor([answer], dtype=torch.long)), dim=1)
        # the noise of a sample belongs to its prompt: name it, for here the prompt grows
        attached = cdkit.attach(model, method, processor=processor, sample_ids=["a"], seed=3)
        with torch.no_grad(), attached:
            out = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=inputs["pixel_values"],
                logits_to_keep=1,
                use_cache=False,
            )
        logits: Tensor = out.logits[0, -1]
        return logits

    return score


def generate(
    model: Any, method: cdkit.Method, processor: Any, inputs: Inputs, **asked: Any
) -> list[list[int]]:
    """The new tokens of a run."""
    count = inputs["input_ids"].shape[0]
    with cdkit.attach(model, method, processor=processor, sample_ids=["a"] * count, seed=3):
        ids = model.generate(**inputs, max_new_tokens=NEW, **asked)
    answers: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return answers


def test_greedy(
    model: Any,
    processor: Any,
    method: cdkit.Method,
    next_logits: Logits,
    make_inputs: Callable[..., Inputs],
) -> None:
    inputs = make_inputs(*QUESTIONS)
    names = {"processor": processor, "sample_ids": ["a", "a"], "seed": 3}
    with cdkit.attach(model, method, trace=("logits",), **names) as run:
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    for row, question in enumerate(QUESTIONS):
        answer: list[int] = []
        for step in run.trace.steps:
            logits = next_logits(make_inputs(question), answer)
            assert step.combined is not None
            torch.testing.assert_close(step.combined[row], logits, rtol=0, atol=1e-5)
            answer.append(int(logits.argmax()))
        assert ids[row, -NEW:].tolist() == answer


def test_sampling(
    model: Any,
    processor: Any,
    method: cdkit.Method,
    next_logits: Logits,
    make_inputs: Callable[..., Inputs],
) -> None:
    """Temperature after the contrast; one draw a step for the whole batch."""
    torch.manual_seed(1)
    wanted: list[list[int]] = [[] for _ in QUESTIONS]
    for _ in range(NEW):
        rows = [
            next_logits(make_inputs(question), answer)
            for question, answer in zip(QUESTIONS, wanted, strict=True)
        ]
        chances = (torch.stack(rows) / 1.5).softmax(dim=-1)
        for answer, token in zip(wanted, chances.multinomial(1)[:, 0].tolist(), strict=True):
            answer.append(token)
    torch.manual_seed(1)
    inputs = make_inputs(*QUESTIONS)
    given = generate(
        model, method, processor, inputs, do_sample=True, temperature=1.5, top_k=0, top_p=1.0
    )
    assert given == wanted


def test_beams(
    model: Any,
    processor: Any,
    method: cdkit.Method,
    next_logits: Logits,
    make_inputs: Callable[..., Inputs],
) -> None:
    """Without an end token beam search is this: the two best sums of log-probabilities go on.

    Hugging Face starts the second beam at -1e9, a copy that any candidate beats: it matters where
    the plausibility constraint leaves one candidate, and is not compared here.
    """
    wanted = []
    for question in QUESTIONS:
        beams: list[tuple[float, list[int]]] = [(0.0, []), (-1e9, [])]
        for _ in range(NEW):
            longer = []
            for score, answer in beams:
                chances = next_logits(make_inputs(question), answer).log_softmax(dim=-1)
                best = chances.topk(4)
                longer += [
                    (score + float(c), [*answer, int(i)])
                    for c, i in zip(best.values, best.indices, strict=True)
                ]
            beams = sorted(longer, key=lambda beam: -beam[0])[:2]
        wanted.append([answer for score, answer in beams if score > -1e8])
    inputs = make_inputs(*QUESTIONS)
    asked = {"do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    rows = generate(model, method, processor, inputs, **asked)
    given = [rows[2 * i : 2 * i + len(best)] for i, best in enumerate(wanted)]
    assert given == wanted
    assert sum(map(len, wanted)) >= 3  # this seed leaves enough to compare
