"""CausalMM's language half against its patterns (The-Martyr/CausalMM, README.md, 6d1ae4e)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import cell_uniform, stream

from .against import SEED, assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=90), sample(2, 3, 4, seed=91))
Pattern = Callable[[Tensor], Tensor]
"""(a row's weights on the columns that it may attend to,) -> what stands for them."""


def upside_down(own: Tensor) -> Tensor:
    return own.max() - own


def normalised(new: Tensor) -> Tensor:
    return new / new.sum() if float(new.sum()) > 0 else torch.full_like(new, 1 / len(new))


def replaced(
    pattern: Pattern,
    layers: range = range(3),
    *,
    norm: Pattern = normalised,
    rows: Callable[[Layer], list[int]] | None = None,
    whole: bool = True,
) -> Edit:
    """The weights of each text row after an image, one by one."""

    def edit(layer: Layer, weights: Tensor, result: Result) -> Tensor:
        if layer.layer not in layers:
            return weights
        chosen = torch.arange(weights.shape[1])[layer.cells.any(-1)].tolist()
        new = weights.clone()
        for row in chosen if rows is None else rows(layer):
            seen = torch.arange(weights.shape[2]) <= row
            if not whole:
                seen = layer.cells[row]
            for head in range(len(weights)):
                own = weights[head, row, seen]
                share = own.sum()  # 1, but of the image alone
                new[head, row, seen] = share * norm(pattern(own))
        return new

    return edit


def method(pattern: str = "reversed", **how: Any) -> cdkit.Method:
    return cdkit.load("causalmm_language", pattern=pattern, **how)


CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "preset": (cdkit.load("causalmm_language"), replaced(upside_down)),
    "uniform": (method("uniform"), replaced(torch.ones_like)),
    "a layer": (method(layers=(0.3, 0.6)), replaced(upside_down, range(1, 2))),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_equals_the_reference(
    case: str, kv_heads: int, optimize: bool, pad: int
) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(), distorted=Rules(reweigh=edit))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


def drawn(name: str) -> Edit:
    """Random numbers of (seed, sample, layer, head, row, column)."""

    def edit(layer: Layer, weights: Tensor, result: Result) -> Tensor:
        image, key = torch.tensor(layer.sequence.image) >= 0, torch.tensor(stream(SEED, name))
        text = (~image).long().cumsum(0)
        place = torch.where(image, torch.arange(len(image)), -1 - text)
        new = weights.clone()
        for row in torch.arange(len(image))[layer.cells.any(-1)].tolist():
            for head in range(len(weights)):
                own = cell_uniform(key, layer.layer, head, row, place[: row + 1])
                new[head, row, : row + 1] = normalised(own)
        return new

    return edit


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (3, False)])
@pytest.mark.parametrize("one", SAMPLES, ids=lambda one: one.name)
def test_random(one: Any, pad: int, optimize: bool) -> None:
    expected = branches(original=Rules(), distorted=Rules(reweigh=drawn(one.name)))
    check(method("random"), expected, [one], pad=pad, optimize=optimize)


def test_random_numbers_are_those_of_a_prompt_alone() -> None:
    together = generate(tiny(2), method("random"), SAMPLES, pad=2).logits
    for row, one in enumerate(SAMPLES):
        own = {name: logits[row : row + 1] for name, logits in together.items()}
        assert_close(generate(tiny(2), method("random"), [one]).logits, own, within=1e-8)
    other = generate(tiny(2), method("random"), SAMPLES, seed=8).logits["distorted"]
    assert ((together["distorted"][:, 0] - other[:, 0]).abs().amax(-1) > 1e-3).all()


def test_sampling_and_beams() -> None:
    own, edit = CASES["preset"]
    check_modes(own, branches(original=Rules(), distorted=Rules(reweigh=edit)), SAMPLES)


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_pieces(how: dict[str, Any]) -> None:
    whole, split = (generate(tiny(2), method("random"), SAMPLES, **x) for x in ({}, how))
    have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
    assert_close(have, {"combined": whole.logits["combined"]}, within=1e-8)


def text_rows(layer: Layer) -> list[int]:
    image = torch.tensor(layer.sequence.image) >= 0
    return torch.arange(len(image))[~image].tolist()


def last_rows(layer: Layer) -> list[int]:
    return list(range(layer.sequence.prompt - 1, len(layer.sequence.image)))


FAULTS: dict[str, Edit] = {
    "not normalised": replaced(upside_down, norm=lambda new: new),
    "shuffled": replaced(lambda own: own.flip(0)),
    "inverse": replaced(lambda own: 1 / own),
    "one less": replaced(lambda own: 1 - own),
    "the image alone": replaced(upside_down, whole=False),
    "text before the image too": replaced(upside_down, rows=text_rows),
    "predicting rows alone": replaced(upside_down, rows=last_rows),
    "not the first layer": replaced(upside_down, range(1, 3)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), CASES["preset"][0], SAMPLES)
    right = branches(distorted=Rules(reweigh=CASES["preset"][1]))(tiny(2), SAMPLES, ran.tokens)
    assert_close({"distorted": ran.logits["distorted"]}, right, within=1e-8)
    check_fault(ran, branches(distorted=Rules(reweigh=FAULTS[fault]))(tiny(2), SAMPLES, ran.tokens))


def test_equal_weights_stay_equal() -> None:
    """Nothing is left of `max(A) - A` to be divided by."""
    from cdkit.strategies.distortions.counterfactual_attention import reversed_logits

    level = torch.tensor([2.0, 2.0, -torch.inf, 2.0]).view(1, 1, 1, 4)
    assert reversed_logits(level)[..., [0, 1, 3]].softmax(-1).allclose(torch.full((3,), 1 / 3))
    alone = torch.tensor([-torch.inf, 3.0]).view(1, 1, 1, 2)
    assert reversed_logits(alone)[..., 1].isfinite().all()


def test_what_it_refuses() -> None:
    with pytest.raises(cdkit.CdkitError, match="layers must be two shares of the depth"):
        cdkit.load("causalmm_language", layers=(0.5, 0.2))
