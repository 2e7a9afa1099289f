"""VAF: scaled attention logits of the text after the image, without any branch."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.depth import layers_within

from .against import CALIBRATED, IMD, assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=61), sample(2, 3, 4, seed=62))


Rows = Callable[[Tensor, int], Tensor]
"""(is it an image token?, tokens of the prompt) -> which of the tokens."""


def after(image: Tensor, prompt: int) -> Tensor:
    """The text behind the first image."""
    return (image.cumsum(0) > 0) & ~image


def before(image: Tensor, prompt: int) -> Tensor:
    """The text before the first image."""
    return image.cumsum(0) == 0


def times(logits: Tensor, factor: float) -> Tensor:
    return factor * logits


def factors(layer: Layer, rows: Rows = after, text: Rows = before) -> tuple[Tensor, Tensor]:
    """(rows, columns): where the image is scaled, and where the text before it is."""
    image, prompt = torch.tensor(layer.sequence.image) >= 0, layer.sequence.prompt
    own = rows(image, prompt)[:, None]
    return own & image, own & text(image, prompt)


def scaled(
    enhance: float = 1.15,
    suppress: float = 0.95,
    layers: range = range(1, 2),
    *,
    rows: Rows = after,
    text: Rows = before,
    on_image: Callable[[Tensor, float], Tensor] = times,
    on_text: Callable[[Tensor, float], Tensor] = times,
    elsewhere: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Edit:
    """`enhance x` on the image, `suppress x` on the text before it."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        if layer.layer not in layers:
            return logits
        images, texts = factors(layer, rows, text)
        new = torch.where(texts, on_text(logits, suppress), elsewhere(logits))
        return torch.where(images, on_image(logits, enhance), new)

    return edit


def faulty_weights(layer: Layer, weights: Tensor, result: Result) -> Tensor:
    """Weights scaled, not renormalised."""
    if layer.layer != 1:
        return weights
    on_image, on_text = factors(layer)
    return torch.where(on_image, 1.15 * weights, torch.where(on_text, 0.95 * weights, weights))


CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "vaf": (cdkit.load("vaf"), scaled()),
    "stronger": (cdkit.load("vaf", enhance=1.8, suppress=0.4), scaled(1.8, 0.4)),
    "the image alone": (cdkit.load("vaf", suppress=1.0), scaled(1.15, 1.0)),
    "the text alone": (cdkit.load("vaf", enhance=1.0), scaled(1.0, 0.95)),
    "late layers": (cdkit.load("vaf", layers=(1 / 3, 1.0)), scaled(layers=range(1, 3))),
    "every layer": (cdkit.load("vaf", layers=(0.0, 1.0)), scaled(layers=range(3))),
    "constrained": (cdkit.load("vaf", beta=0.1), scaled()),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_equals_the_reference(
    case: str, kv_heads: int, optimize: bool, pad: int
) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(edit=edit))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


@pytest.mark.parametrize("row", range(len(MIXED)))
def test_a_prompt_alone_is_as_in_the_batch(row: int) -> None:
    alone = generate(tiny(2), cdkit.load("vaf"), [MIXED[row]])
    together = generate(tiny(2), cdkit.load("vaf"), MIXED, pad=2)
    have = {name: own[row : row + 1] for name, own in together.logits.items()}
    assert_close(have, alone.logits, within=1e-8)


def test_the_layers_of_the_authors() -> None:
    """9 to 14 of 32."""
    (part,) = cdkit.load("vaf").interventions
    assert list(layers_within(part.layers, 32)) == [9, 10, 11, 12, 13, 14]


def test_sampling_and_beams() -> None:
    check_modes(CASES["stronger"][0], branches(original=Rules(edit=CASES["stronger"][1])), SAMPLES)


def test_with_a_calibrator() -> None:
    own = replace(cdkit.load("vaf"), calibrator=cdkit.load("cmac").calibrator)
    check(own, branches(original=replace(CALIBRATED, edit=scaled())), MIXED)


def test_in_both_branches_of_cmac() -> None:
    """The threshold of the distortion is taken on the logits before they are scaled."""
    cmac = cdkit.load("cmac")
    part: Any = cdkit.load("vaf").interventions[0]
    both = replace(part, branches=("original", "distorted"))
    own = replace(cmac, interventions=(both,))
    expected = branches(
        original=replace(CALIBRATED, edit=scaled()), distorted=replace(IMD, edit=scaled())
    )
    check(own, expected, MIXED)


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_pieces(how: dict[str, Any]) -> None:
    """A chunk of the prompt is no generated row: its image rows are left alone."""
    whole = check(cdkit.load("vaf"), branches(original=Rules(edit=scaled())), SAMPLES)
    split = generate(tiny(2), cdkit.load("vaf"), SAMPLES, **how)
    have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
    assert_close(have, {"combined": whole.logits["combined"]}, within=1e-8)


def shifted(logits: Tensor, factor: float = 1.0) -> Tensor:
    """As if scaled after a stable softmax took the maximum away."""
    return factor * (logits - logits.amax(-1, keepdim=True))


def of_weights(logits: Tensor, factor: float) -> Tensor:
    return logits + math.log(factor)


FAULTS: dict[str, dict[str, Any]] = {
    "last row": {"rows": lambda image, prompt: torch.arange(len(image)) >= prompt - 1},
    "image rows": {"rows": lambda image, prompt: after(image, prompt) | image},
    "not the first token": {
        "text": lambda image, prompt: before(image, prompt) & (torch.arange(len(image)) > 0)
    },
    "all text": {"text": lambda image, prompt: ~image},
    "abs": {"on_image": lambda logits, factor: logits + (factor - 1) * logits.abs()},
    "weights": {"on_image": of_weights, "on_text": of_weights},
    "shifted": {"on_image": shifted, "on_text": shifted, "elsewhere": shifted},
}
"""Mistake -> the pieces of `scaled` that are wrong."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    own = cdkit.load("vaf", layers=(0.0, 2 / 3))
    ran = generate(tiny(2), own, SAMPLES)
    right = branches(original=Rules(edit=scaled(layers=range(2))))
    assert_close(
        {"original": ran.logits["original"]}, right(tiny(2), SAMPLES, ran.tokens), within=1e-8
    )
    wrong = branches(original=Rules(edit=scaled(layers=range(2), **FAULTS[fault])))
    check_fault(ran, wrong(tiny(2), SAMPLES, ran.tokens))


@pytest.mark.parametrize(
    "wrong",
    [
        Rules(edit=scaled(1.16)),
        Rules(edit=scaled(1.15, 0.94)),
        Rules(edit=scaled(layers=range(2))),
        Rules(edit=scaled(layers=range(2, 3))),
        Rules(edit=scaled(layers=range(1, 3))),
        Rules(reweigh=faulty_weights),
        Rules(),
    ],
)
def test_other_numbers_are_seen(wrong: Rules) -> None:
    ran = generate(tiny(2), cdkit.load("vaf"), SAMPLES)
    check_fault(ran, branches(original=wrong)(tiny(2), SAMPLES, ran.tokens))


def test_factors_of_one_are_the_plain_model() -> None:
    check(cdkit.load("vaf", enhance=1.0, suppress=1.0), branches(original=Rules()), MIXED)


def test_with_nothing_before_the_image_there_is_nothing_to_suppress() -> None:
    bare = [sample(0, 4, seed=63, bos=False)]
    one, other = (
        generate(tiny(2), cdkit.load("vaf", suppress=value), bare) for value in (0.95, 0.1)
    )
    assert_close(one.logits, other.logits, within=1e-12)


@pytest.mark.parametrize("name", ["enhance", "suppress"])
def test_what_it_refuses(name: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=f"{name} must be a finite number > 0, got 0"):
        cdkit.load("vaf", **{name: 0.0})
