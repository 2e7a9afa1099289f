"""IAT and AdaIAT against the authors' code (XianguiKang/AdaIAT, LLaVA/methods, commit a0bf78e)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

import cdkit
from cdkit.interfaces.depth import layers_within

from .against import assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=61), sample(2, 3, 4, seed=62))
GAINS = ((0.5, -0.1, 2.0, -0.9), (1.0, 0.0, 0.3, 0.2), (0.1, 0.1, 3.0, 0.4))
"""For each layer those of its heads."""
THRESHOLDS = (0.02, 0.2, 0.3)


def iat(strength: float = 0.7, layers: range = range(1, 2), first: int = 0) -> Edit:
    """What the code does to a row's logits from the prompt's last column on (`first` 0)."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        if layer.layer not in layers:
            return logits
        new, prompt = logits.clone(), layer.sequence.prompt
        for row in range(prompt, logits.shape[1]):
            own = slice(prompt + first, row + 1)
            new[:, row, own] += strength * logits[:, row, own].abs()
        return new

    return edit


def adaiat(
    alpha: float = 6.0,
    gains: Callable[[int], Sequence[float]] = lambda layer: (1.0,) * 4,
    threshold: Callable[[int], float] = lambda layer: 0.22,
    layers: range = range(1, 2),
    over: Callable[[Tensor], Tensor] = lambda own: own.mean(-1).sum(),
) -> Edit:
    """The code multiplies weights, which is to add a logarithm to logits."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        if layer.layer not in layers:
            return logits
        new, prompt = logits.clone(), layer.sequence.prompt
        for row in range(prompt, logits.shape[1]):
            weights = logits[:, row, : row + 1].softmax(-1)
            if over(weights[:, prompt:]) >= threshold(layer.layer):
                continue
            for head, gain in enumerate(gains(layer.layer)):
                new[head, row, prompt : row + 1] += math.log(max(1 + alpha * gain, 1e-6))
        return new

    return edit


MEASURED: Any = {
    "strength": 1.0, "gains": GAINS, "thresholds": THRESHOLDS, "layers": (0.0, 1.0)
}  # fmt: skip
MEASURED_EDIT: dict[str, Any] = {
    "alpha": 1.0,
    "gains": lambda layer: GAINS[layer],
    "threshold": lambda layer: THRESHOLDS[layer],
    "layers": range(3),
}
CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "iat": (cdkit.load("iat"), iat()),
    "iat everywhere": (cdkit.load("iat", strength=3.0, layers=(0.0, 1.0)), iat(3.0, range(3))),
    "adaiat": (cdkit.load("adaiat", thresholds=(2.0,)), adaiat(threshold=lambda layer: 2.0)),
    "measured": (cdkit.load("adaiat", **MEASURED), adaiat(**MEASURED_EDIT)),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_reference(case: str, kv_heads: int, optimize: bool, pad: int) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(edit=edit))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


@pytest.mark.parametrize("case", ["iat everywhere", "measured"])
def test_sampling_and_beams(case: str) -> None:
    own, edit = CASES[case]
    check_modes(own, branches(original=Rules(edit=edit)), SAMPLES)


def test_in_packed_rows_and_static_caches() -> None:
    """Beside another branch, with every cache that knows generated columns."""
    both = cdkit.load("iat+icd", strength=3.0, layers=(0.0, 1.0))
    plain = generate(tiny(2), both, SAMPLES, optimize=False)
    caches: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}, {"use_cache": False}]
    for how in caches:
        ran = generate(tiny(2), both, SAMPLES, **how)
        assert_close(ran.logits, plain.logits, within=1e-8)


FAULTS: dict[str, tuple[str, Edit]] = {
    "the prompt's last column too": ("iat everywhere", iat(3.0, range(3), first=-1)),
    "a mean over heads": (
        "measured",
        adaiat(**MEASURED_EDIT, over=lambda own: own.mean(-1).mean()),
    ),
    "a sum over tokens": ("measured", adaiat(**MEASURED_EDIT, over=lambda own: own.sum())),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    case, edit = FAULTS[fault]
    ran = generate(tiny(2), CASES[case][0], SAMPLES, steps=6)
    have = {"original": ran.logits["original"]}
    own = branches(original=Rules(edit=CASES[case][1]))
    assert_close(have, own(tiny(2), SAMPLES, ran.tokens), within=1e-8)
    check_fault(ran, branches(original=Rules(edit=edit))(tiny(2), SAMPLES, ran.tokens))


@pytest.mark.parametrize(
    "off", [cdkit.load("iat", strength=0.0), cdkit.load("adaiat", strength=0.0)], ids=["iat", "ada"]
)
def test_off_is_the_stock_model(off: cdkit.Method) -> None:
    have = generate(tiny(2), off, SAMPLES).logits["original"]
    want = generate(tiny(2), cdkit.load("plain"), SAMPLES).logits["original"]
    assert_close({"original": have}, {"original": want}, within=1e-12)


def test_the_layers_of_the_authors() -> None:
    for name in ("iat", "adaiat"):
        (part,) = cdkit.load(name).interventions
        assert list(layers_within(part.layers, 32)) == list(range(5, 18))


def test_numbers_of_another_model_are_refused() -> None:
    for wrong in ({"gains": GAINS[:2]}, {"thresholds": (0.1, 0.2)}, {"gains": ((0.1, 0.2),) * 3}):
        method = cdkit.load("adaiat", **{**MEASURED, **wrong})
        with pytest.raises(cdkit.CdkitError, match="numbers that were measured on this model"):
            generate(tiny(2), method, SAMPLES)
