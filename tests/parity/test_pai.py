"""PAI: amplified attention to the image, and contrast with the prompt without it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import CALIBRATED, assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules
from .test_cmac import MIXED
from .test_inputs import without_image
from .tiny import sample, tiny


def amplified(
    a: float = 0.2,
    layers: range = range(1, 3),
    *,
    first_token: bool = True,
    rows: Callable[[int, int], Iterable[int]] = range,
    cells: Callable[[Tensor], Tensor] = lambda image: image,
    size: Callable[[Tensor], Tensor] = Tensor.abs,
) -> Edit:
    """`x + a |x|` on the image columns of the prompt's last row and of each generated one."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        if layer.layer not in layers:
            return logits
        tokens, prompt = len(layer.sequence.image), layer.sequence.prompt
        start = prompt - 1 if first_token else prompt
        new = logits.clone()
        for row in rows(start, tokens):
            own = cells(layer.cells[row])
            old = logits[:, row, own]
            new[:, row, own] = old + a * size(old)
        return new

    return edit


def faulty_weights(layer: Layer, weights: Tensor, result: Result) -> Tensor:
    """Weights scaled after the softmax, not renormalised."""
    if layer.layer == 0:
        return weights
    rows = torch.arange(weights.shape[1]) >= layer.sequence.prompt - 1
    return torch.where(layer.cells & rows[:, None], 1.2 * weights, weights)


def method(a: float = 0.2, *, alpha: float = 0.1, beta: float = 0.1, **how: Any) -> cdkit.Method:
    return cdkit.load("pai", strength=a, alpha=alpha, beta=beta, **how)


CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "pai": (cdkit.load("pai"), amplified()),
    "stronger": (method(0.5, alpha=1.0), amplified(0.5)),
    "turned over": (method(1.5), amplified(1.5)),
    "one layer": (method(layers=(1 / 3, 2 / 3)), amplified(layers=range(1, 2))),
    "every layer": (method(layers=(0.0, 1.0)), amplified(layers=range(3))),
    "later tokens": (method(0.5, first_token=False), amplified(0.5, first_token=False)),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_equals_the_reference(
    case: str, kv_heads: int, optimize: bool, pad: int
) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(edit=edit), distorted=(Rules(), without_image))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


@pytest.mark.parametrize("row", range(len(MIXED)))
def test_a_prompt_alone_is_as_in_the_batch(row: int) -> None:
    alone = generate(tiny(2), cdkit.load("pai"), [MIXED[row]])
    tokens = generate(tiny(2), cdkit.load("pai"), MIXED, pad=2)
    have = {name: own[row : row + 1] for name, own in tokens.logits.items()}
    assert_close(have, alone.logits, within=1e-8)


SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 4, seed=52))


def test_sampling_and_beams() -> None:
    own, edit = CASES["stronger"]
    expected = branches(original=Rules(edit=edit), distorted=(Rules(), without_image))
    check_modes(own, expected, SAMPLES)


def test_with_a_calibrator() -> None:
    """The calibrated logits are amplified."""
    own = replace(cdkit.load("pai"), calibrator=cdkit.load("cmac").calibrator)
    rules = replace(CALIBRATED, edit=amplified())
    expected = branches(original=rules, distorted=(CALIBRATED, without_image))
    check(own, expected, SAMPLES)


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_pieces_without_the_contrast(how: dict[str, Any]) -> None:
    """Only the last row of the whole prompt counts, and each row that was last once."""
    bare = replace(cdkit.load("pai", alpha=0.0, beta=0.0), branches=())
    whole = check(bare, branches(original=Rules(edit=amplified())), SAMPLES)
    split = generate(tiny(2), bare, SAMPLES, **how)
    have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
    assert_close(have, {"combined": whole.logits["combined"]}, within=1e-8)


@pytest.mark.parametrize(
    "wrong",
    [
        Rules(edit=amplified(rows=lambda start, tokens: range(tokens))),
        Rules(edit=amplified(cells=torch.ones_like)),
        Rules(edit=amplified(size=lambda old: old)),
        Rules(edit=amplified(layers=range(3))),
        Rules(edit=amplified(layers=range(2, 3))),
        Rules(edit=amplified(layers=range(1, 2))),
        Rules(edit=amplified(0.25)),
        Rules(edit=amplified(first_token=False)),
        Rules(reweigh=faulty_weights),
        Rules(),
    ],
)
def test_a_faulty_reference_is_seen(wrong: Rules) -> None:
    ran = generate(tiny(2), cdkit.load("pai"), SAMPLES)
    check_fault(ran, branches(original=wrong)(tiny(2), SAMPLES, ran.tokens))


def test_rows_that_were_last_stay_amplified() -> None:
    """A fault of later steps alone: only the final row of all is amplified."""
    ran = generate(tiny(2), cdkit.load("pai"), SAMPLES)
    right = branches(original=Rules(edit=amplified()))
    last = amplified(rows=lambda start, tokens: [tokens - 1])
    wrong = branches(original=Rules(edit=last))
    for step in range(1, 4):
        tokens = ran.tokens[:, : step + 1]
        have = ran.logits["original"][:, step]
        assert (have - right(tiny(2), SAMPLES, tokens)["original"][:, -1]).abs().max() < 1e-8
        off = (have - wrong(tiny(2), SAMPLES, tokens)["original"][:, -1]).abs().amax(-1)
        assert (off > 1e-6).all()


def test_the_branch_without_the_image_is_seen() -> None:
    """Amplified or not it is the same, for it has no image; another prompt it is not."""
    ran = generate(tiny(2), cdkit.load("pai"), SAMPLES)
    edited = branches(distorted=(Rules(edit=amplified()), without_image))
    want = edited(tiny(2), SAMPLES, ran.tokens)
    assert_close({"distorted": ran.logits["distorted"]}, want, within=1e-8)
    check_fault(ran, branches(distorted=Rules())(tiny(2), SAMPLES, ran.tokens))


def test_switched_off_it_is_the_plain_model() -> None:
    own = cdkit.load("pai", strength=0.0, alpha=0.0, beta=0.0)
    check(replace(own, branches=()), branches(original=Rules()), MIXED)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strength": -0.1}, "strength must be a finite number >= 0, got -0.1"),
        ({"layers": (0.5, 0.5)}, "layers must be two shares of the depth"),
    ],
)
def test_what_it_refuses(given: dict[str, Any], told: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load("pai", **given)
