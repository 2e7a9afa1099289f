"""Batch size, order, padding and batch mates change no answer; nor does the place of a sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .presets import ALL, GREEDY, draws_noise, in_turn

QUESTIONS = (
    "is there a cat ?",
    "w1",
    "<image> <image> is there a dog in the image ?",
    "user w5 <image> w6 <image> w7 w8 w9",
)
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]


@pytest.fixture(params=in_turn(GREEDY, 2))
def method(request: pytest.FixtureRequest) -> cdkit.Method:
    return cdkit.load(request.param)


@pytest.fixture(params=in_turn([name for name in ALL if "beam" in cdkit.load(name).modes], 3))
def beaming(request: pytest.FixtureRequest) -> cdkit.Method:
    return cdkit.load(request.param)


def tokens(model: Any, inputs: Inputs, **asked: Any) -> list[list[int]]:
    """The new tokens."""
    ids = model.generate(**inputs, **({"max_new_tokens": 5, "do_sample": False} | asked))
    rows: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


def answers(model: Any, inputs: Inputs, **asked: Any) -> tuple[list[list[int]], Tensor]:
    """(the new tokens, their scores: [steps, rows, vocab]) of a greedy run."""
    out = model.generate(
        **inputs,
        **({"max_new_tokens": 5, "do_sample": False} | asked),
        output_logits=True,
        return_dict_in_generate=True,
    )
    start = inputs["input_ids"].shape[1]
    return out.sequences[:, start:].tolist(), torch.stack(out.logits)


def test_batch_mates_order_size_and_padding(
    model: Any, processor: Any, method: cdkit.Method, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(*QUESTIONS)
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask"):  # the pad token is 0
        padded[name] = torch.nn.functional.pad(inputs[name], (5, 0))
    with cdkit.attach(model, method, processor=processor, seed=5):
        together, logits = answers(model, inputs)
        backwards, turned = answers(model, make_inputs(*reversed(QUESTIONS)))
        pair, two = answers(model, make_inputs(QUESTIONS[1], QUESTIONS[3]))
        singles = [answers(model, make_inputs(question)) for question in QUESTIONS]
        given, others = answers(model, padded)
        # with one candidate left by top_k the samples of a prompt are its greedy answer
        samples, _ = answers(model, inputs, do_sample=True, top_k=1, num_return_sequences=3)
        # an end token that only one row reaches early: the others go on as they would
        end = together[0][1]
        ended, _ = answers(model, inputs, eos_token_id=end)
    assert backwards == together[::-1]
    assert pair == [together[1], together[3]]
    assert [single for (single,), _ in singles] == together
    assert given == together
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(turned, logits.flip(1), **close)
    torch.testing.assert_close(two, logits[:, [1, 3]], **close)
    alone = torch.cat([logits for _, logits in singles], dim=1)
    torch.testing.assert_close(alone, logits, **close)
    torch.testing.assert_close(others, logits, **close)
    assert samples == [answer for answer in together for _ in range(3)]
    for row, (whole, cut) in enumerate(zip(together, ended, strict=True)):
        stop = whole.index(end) + 1 if end in whole else len(whole)
        assert cut[:stop] == whole[:stop], row
        assert set(cut[stop:]) <= {0}, row


def test_beams_of_a_batch(
    model: Any, processor: Any, beaming: cdkit.Method, make_inputs: MakeInputs
) -> None:
    beams = {"num_beams": 3, "num_return_sequences": 3}
    with cdkit.attach(model, beaming, processor=processor, seed=5):
        together = tokens(model, make_inputs(*QUESTIONS), **beams)
        alone = [tokens(model, make_inputs(q), **beams) for q in QUESTIONS]
    assert [answer for rows in alone for answer in rows] == together


def test_sample_ids_decide_the_noise_and_nothing_else(
    model: Any, processor: Any, method: cdkit.Method, make_inputs: MakeInputs
) -> None:
    def run(names: list[str], seed: int) -> Tensor:
        with cdkit.attach(model, method, processor=processor, sample_ids=names, seed=seed):
            return answers(model, make_inputs("w1", "w1"))[1]

    first = run(["a", "b"], 0)
    torch.testing.assert_close(run(["b", "a"], 0), first.flip(1), rtol=0, atol=1e-9)
    assert run(["a", "b"], 0).equal(first)
    random = draws_noise(method)
    for other in (run(["a", "a"], 0)[0, 1], run(["a", "b"], 1)[0, 1]):
        same = torch.allclose(other, first[0, 1], rtol=0, atol=1e-9)
        assert same == (not random)


def test_other_pixels_or_another_prompt_are_another_sample(
    model: Any, make_inputs: MakeInputs
) -> None:
    """Without ids the noise depends on pixels and prompt, and not on padding."""
    inputs = make_inputs("w1", "w2 w3")
    with cdkit.attach(model, cdkit.load("vcd"), trace=("logits",)) as run:
        model.generate(**inputs, max_new_tokens=1)
        both = run.trace.steps[0].logits["distorted"]
        swapped = dict(inputs) | {"pixel_values": inputs["pixel_values"].flip(0)}
        model.generate(**swapped, max_new_tokens=1)
        model.generate(**inputs, max_new_tokens=1)
        again = run.trace.steps[0].logits["distorted"]
        model.generate(**make_inputs("w1"), max_new_tokens=1)
        alone = run.trace.steps[0].logits["distorted"]
    assert again.equal(both)
    torch.testing.assert_close(alone, both[:1], rtol=0, atol=1e-9)
