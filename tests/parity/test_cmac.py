"""CMAC and its variants: cdkit under `generate` against the reference, first and later steps."""

from dataclasses import replace

import pytest
import torch

import cdkit

from .against import (
    CALIBRATED,
    CMAC_CASES,
    assert_close,
    branch_logits,
    generate,
    next_logits,
    one_branch,
    reference,
    tolerance,
)
from .reference import Rules, contrast
from .tiny import IMAGE, Sample, batch, sample, tiny

MIXED = (
    sample(3, 5, seed=1),
    sample(0, 4, seed=2, bos=False),  # no text before the image
    sample(2, 3, 6, seed=3),  # two images
    sample(1, 0, 2, seed=4),  # two images without text between them
    sample(4, 0, seed=5),  # no text after the image
)
"""One batch, left-padded: prompts of 20 to 44 tokens."""


def check(
    kv_heads: int, case: str, samples: tuple[Sample, ...], *, pad: int = 0, optimize: bool
) -> None:
    model = tiny(kv_heads)
    method, rules = CMAC_CASES[case]
    ran = generate(model, method, samples, pad=pad, steps=5, optimize=optimize)
    expected = one_branch(model, samples, ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=tolerance(method))
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))


@pytest.mark.parametrize(("kv_heads", "optimize"), [(4, True), (2, True), (2, False), (1, True)])
@pytest.mark.parametrize("case", CMAC_CASES)
def test_every_variant_equals_the_reference(case: str, kv_heads: int, optimize: bool) -> None:
    check(kv_heads, case, MIXED, optimize=optimize)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("prompt", range(len(MIXED)))
def test_a_prompt_alone_padded_or_not(prompt: int, pad: int, optimize: bool) -> None:
    check(2, "cmac", (MIXED[prompt],), pad=pad, optimize=optimize)


@pytest.mark.parametrize("case", ["cmac", "cmac-head", "imccd", "attention_mask", "value_noise"])
def test_the_longest_prompt_has_the_fewest_images(case: str) -> None:
    """It begins with its image, without padding: what fills up its columns must not count."""
    samples = (sample(0, 40, seed=6, bos=False), sample(1, 0, 2, seed=4))
    check(2, case, samples, optimize=True)


@pytest.mark.parametrize("case", ["cmac", "imccd", "attention_mask-row", "value_noise"])
def test_with_the_stock_float32_rope(case: str) -> None:
    model = tiny(2, exact=False)
    method, rules = CMAC_CASES[case]
    ran = generate(model, method, MIXED)
    expected = one_branch(model, MIXED, ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=tolerance(method, 2e-5))


@pytest.mark.parametrize("case", ["cmac", "imccd", "attention_mask", "value_noise-head"])
def test_output_logits_without_a_trace(case: str) -> None:
    method, rules = CMAC_CASES[case]
    ran = generate(tiny(2), method, MIXED, trace=())
    expected = one_branch(tiny(2), MIXED, ran.tokens, rules, method)["combined"]
    stacked = torch.stack(ran.output.logits, 1).double()  # Hugging Face keeps them in float32
    assert_close({"combined": stacked}, {"combined": expected}, within=tolerance(method, 1e-5))


@pytest.mark.parametrize("optimize", [True, False])
def test_calibration_alone(optimize: bool) -> None:
    method = cdkit.load("cmac_cmpc")
    ran = generate(tiny(2), method, MIXED, optimize=optimize)
    original = branch_logits(tiny(2), MIXED, ran.tokens, CALIBRATED)
    assert_close(ran.logits, {"original": original, "combined": original}, within=1e-8)
    plain = branch_logits(tiny(2), MIXED, ran.tokens, Rules())
    assert (original - plain).abs().max() > 0.1


@pytest.mark.parametrize("case", ["cmac", "imccd", "attention_mask"])
def test_traced_attention_and_mask(case: str) -> None:
    model, method, rules = tiny(2), *CMAC_CASES[case]
    one = sample(2, 3, 6, seed=3)
    ran = generate(model, method, [one], trace=("image_attention", "mask"))
    fed = [ran.tokens[0, :-1].tolist()]
    columns = [place for place, token in enumerate(one.ids) if token == IMAGE]
    for branch, own in ("original", replace(rules, distortion="none")), ("distorted", rules):
        (result,) = reference(model, [one], fed, own)
        for step, traced in enumerate(ran.run.trace.steps):
            row = len(one.ids) - 1 + step
            rows = slice(columns[0] + 16, row + 1) if step == 0 else slice(row, row + 1)
            for layer in range(3):
                seen = traced.image_attention[branch][layer][0]
                assert (seen - result.weights[layer][:, row, columns]).abs().max() < 1e-9
                mask = traced.mask[branch][layer][0]
                assert torch.equal(mask, result.masks[layer][:, rows][..., columns])
                assert mask.any() == (branch == "distorted")


@pytest.mark.parametrize("case", ["cmac-row", "attention_mask-row"])
def test_without_a_cache(case: str) -> None:
    method, rules = CMAC_CASES[case]
    ran = generate(tiny(2), method, MIXED, use_cache=False)
    expected = one_branch(tiny(2), MIXED, ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=tolerance(method))


@pytest.mark.parametrize("scope", ["call", "head", "row"])
def test_a_plain_call_scores_every_token_of_one_prompt(scope: str) -> None:
    model, method = tiny(2), cdkit.load("cmac", scope=scope, beta=0.0)
    rules = Rules(distortion="mean_dim", scope=scope, calibrated=True, gamma=2.0)  # type: ignore[arg-type]
    one = MIXED[2]
    with cdkit.attach(model, method), torch.no_grad():
        scored = model(**batch([one], pad=2)).logits[:, 2:]
    original, distorted = (
        next_logits(reference(model, [one], [[]], own), len(one.ids))
        for own in (replace(rules, distortion="none"), rules)
    )
    expected = contrast(original, [distorted], [3.0], 0.0)
    assert_close({"scored": scored}, {"scored": expected}, within=tolerance(method))


def test_the_cases_do_not_agree_by_chance() -> None:
    """Each variant's distorted logits differ from each other's: no test above compares a thing
    with itself."""
    tokens = torch.tensor([[5, 6, 7]] * len(MIXED))
    seen = {
        case: branch_logits(tiny(2), MIXED, tokens, rules)
        for case, (_, rules) in CMAC_CASES.items()
        if case != "cmac-gamma1"  # CMPC with gamma 1 is no CMPC
    }
    names = list(seen)
    for index, a in enumerate(names):
        for b in names[:index]:
            assert (seen[a] - seen[b]).abs().amax((0, 2)).min() > 1e-3, f"{a} and {b}"
