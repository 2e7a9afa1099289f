"""Answers that come in pieces: chunked prompts, a cache that is continued, rows that end early."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

import cdkit
from cdkit.interfaces.cache_names import CACHE

from .against import (
    CMAC_CASES,
    IMD,
    NOISE,
    SEED,
    assert_close,
    branch_logits,
    generate,
    next_logits,
    one_branch,
    reference,
    tolerance,
)
from .reference import Rules, contrast
from .test_inputs import ROLE, noised, stock_logits, unchanged, with_role
from .tiny import IMAGE, Sample, WordTokenizer, batch, sample, tiny

SAMPLES = (sample(3, 5, seed=41), sample(2, 3, 6, seed=42), sample(0, 4, seed=43, bos=False))


@pytest.mark.parametrize("chunk", [7, 16, 40])
@pytest.mark.parametrize("case", ["cmac-row", "attention_mask-row"])
def test_a_chunked_prompt(case: str, chunk: int) -> None:
    method, rules = CMAC_CASES[case]
    ran = generate(tiny(2), method, SAMPLES, prefill_chunk_size=chunk, steps=3)
    expected = one_branch(tiny(2), SAMPLES, ran.tokens, rules, method)["combined"]
    have = {"combined": ran.logits["combined"][:, -3:]}
    assert_close(have, {"combined": expected}, within=tolerance(method))


def test_value_noise_of_a_chunked_prompt() -> None:
    """Text between two images does not wait for the statistics of the second one."""
    method, rules = cdkit.load("value_noise", scope="row"), replace(NOISE, scope="row")
    ran = generate(tiny(2), method, SAMPLES, prefill_chunk_size=7, steps=3)
    expected = one_branch(tiny(2), SAMPLES, ran.tokens, rules, method)["combined"]
    have = {"combined": ran.logits["combined"][:, -3:]}
    assert_close(have, {"combined": expected}, within=tolerance(method))


@pytest.mark.parametrize("chunk", [7, 40])
def test_a_chunked_prompt_of_vcd(chunk: int) -> None:
    method = cdkit.load("vcd")
    ran = generate(tiny(2), method, SAMPLES, prefill_chunk_size=chunk, steps=3)
    original = stock_logits(tiny(2), SAMPLES, ran.tokens, unchanged)
    distorted = stock_logits(tiny(2), SAMPLES, ran.tokens, noised(500))
    have = {"combined": ran.logits["combined"][:, -3:]}
    expected = {"combined": contrast(original, [distorted], [1.0], 0.1)}
    assert_close(have, expected, within=1e-8)


@pytest.mark.parametrize(
    ("scope", "pieces"),
    [("row", (4,)), ("row", (1, 3)), ("row", (2, 1, 1)), ("call", (1, 1, 1, 1))],
)
def test_a_cache_that_is_continued(scope: str, pieces: Sequence[int]) -> None:
    """Rows after the prompt are groups of their own, however many come at once.

    Under scope `call` several at once might be a prompt that was split: that is refused.
    """
    model, method = tiny(2), cdkit.load("cmac", scope=scope, beta=0.0)
    rules = replace(IMD, scope="row" if scope == "row" else "call")
    one, later = SAMPLES[1], [5, 17, 33, 60]
    with cdkit.attach(model, method), torch.no_grad():
        output = model(**batch([one]), logits_to_keep=1, use_cache=True)
        logits, start = [output.logits[0]], 0
        for piece in pieces:
            output = model(
                input_ids=torch.tensor([later[start : start + piece]]),
                attention_mask=torch.ones(1, len(one.ids) + start + piece, dtype=torch.long),
                **{CACHE: output[CACHE]},
            )
            logits.append(output.logits[0])
            start += piece
    original, distorted = (
        next_logits(reference(model, [one], [later], own), 5)
        for own in (replace(rules, distortion="none"), rules)
    )
    expected = contrast(original, [distorted], [3.0], 0.0)[0]
    assert_close({"all": torch.cat(logits)}, {"all": expected}, within=tolerance(method))


def test_a_cache_of_longer_branches_that_is_continued() -> None:
    """Each branch keeps its own positions where the distorted prompt is longer."""
    model, method = tiny(2), cdkit.load("icd", instruction=ROLE, beta=0.0)
    one, later = SAMPLES[1], [5, 17, 33]
    with cdkit.attach(model, method, processor=WordTokenizer()), torch.no_grad():
        first = model(**batch([one]), logits_to_keep=1, use_cache=True)
        cache = first[CACHE]
        assert cache.get_seq_length() == len(one.ids)
        rest = model(input_ids=torch.tensor([later]), **{CACHE: cache})
    tokens = torch.tensor([[*later, 0]])  # the last one is not fed
    original = stock_logits(model, [one], tokens, unchanged)
    distorted = stock_logits(model, [one], tokens, with_role("system"))
    expected = contrast(original, [distorted], [1.0], 0.0)[0]
    assert_close({"l": torch.cat((first.logits[0], rest.logits[0]))}, {"l": expected}, within=1e-8)


def test_a_row_that_has_ended_does_not_disturb_the_others() -> None:
    method, rules = CMAC_CASES["cmac"]
    free = generate(tiny(2), method, SAMPLES, steps=6)
    end = int(free.tokens[1, 1])
    ran = generate(tiny(2), method, SAMPLES, steps=6, eos_token_id=end)
    assert (ran.tokens[1, 2:] == 0).all()
    kept = [row for row in range(len(SAMPLES)) if end not in free.tokens[row]]
    assert kept
    assert torch.equal(ran.tokens[kept], free.tokens[kept])
    have = {name: logits[kept] for name, logits in ran.logits.items()}
    alive = [SAMPLES[row] for row in kept]
    expected = one_branch(tiny(2), alive, ran.tokens[kept], rules, method)
    assert_close(have, expected, within=tolerance(method))


def test_without_an_attention_mask() -> None:
    method, rules = CMAC_CASES["cmac"]
    inputs = batch(SAMPLES[:1])
    del inputs["attention_mask"]
    with cdkit.attach(tiny(2), method, trace=("logits",)) as run:
        output = tiny(2).generate(**inputs, max_new_tokens=3, do_sample=False)
    tokens = output[:, inputs["input_ids"].shape[1] :]
    expected = one_branch(tiny(2), SAMPLES[:1], tokens, rules, method)
    steps = run.trace.steps
    have = {
        name: torch.stack([step.logits[name] for step in steps], 1)
        for name in ("original", "distorted")
    }
    del expected["combined"]
    assert_close(have, expected, within=1e-8)


class Forced:
    """A logits processor that writes a given answer."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.left = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.left.pop(0)] = 0
        return forced


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("case", ["cmac", "imccd", "value_noise"])
def test_a_generated_image_id_is_text(case: str, optimize: bool) -> None:
    method, rules = CMAC_CASES[case]
    processors: Any = LogitsProcessorList([Forced([9, IMAGE, IMAGE, 9])])
    ran = generate(tiny(2), method, SAMPLES, logits_processor=processors, optimize=optimize)
    assert ran.tokens.tolist() == [[9, IMAGE, IMAGE, 9]] * 3
    expected = one_branch(tiny(2), SAMPLES, ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=tolerance(method))


def test_neighbours_order_and_padding_change_nothing() -> None:
    """Noise and thresholds belong to a sample: also where the reference is not asked."""
    method = cdkit.load("value_noise")
    together = generate(tiny(2), method, SAMPLES).logits
    turned = generate(tiny(2), method, SAMPLES[::-1], pad=5).logits
    assert_close({k: v.flip(0) for k, v in turned.items()}, together, within=tolerance(method))
    for row, one in enumerate(SAMPLES):
        alone = generate(tiny(2), method, [one]).logits
        assert_close(
            {name: logits[0] for name, logits in alone.items()},
            {name: logits[row] for name, logits in together.items()},
            within=tolerance(method),
        )


def test_the_random_mask_has_the_size_of_the_distortions_mask() -> None:
    """Row by row and head by head; from the second layer on the states differ."""
    one: Sample = SAMPLES[1]
    ran = generate(tiny(2), cdkit.load("random_mask"), [one], trace=("mask",), seed=SEED)
    (result,) = reference(tiny(2), [one], [ran.tokens[0, :-1].tolist()], IMD)
    columns = [place for place, token in enumerate(one.ids) if token == IMAGE]
    rows = slice(columns[0] + 16, len(one.ids))
    random = ran.run.trace.steps[0].mask["distorted"][0][0]
    ours = result.masks[0][:, rows][..., columns]
    assert torch.equal(random.sum(-1), ours.sum(-1))
    assert not torch.equal(random, ours)
    assert not (random & ~cells_of(one, rows, columns)).any()


def cells_of(one: Sample, rows: slice, columns: Sequence[int]) -> Tensor:
    image = torch.tensor(one.image)
    places = torch.arange(len(image))
    cells = (image[:, None] < 0) & (image[None] >= 0) & (places[None] < places[:, None])
    return cells[rows][:, list(columns)]


def test_plain_runs_the_stock_model() -> None:
    ran = generate(tiny(2), cdkit.load("plain"), SAMPLES, trace=())
    expected = branch_logits(tiny(2), SAMPLES, ran.tokens, Rules())
    stacked = torch.stack(ran.output.logits, 1).double()
    assert_close({"l": stacked}, {"l": expected}, within=1e-5)
