"""The presets of CMAC's public code, and CMAC beside VCD, against the reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import (
    CALIBRATED,
    IMD,
    Ran,
    Rewrite,
    assert_close,
    branch_logits,
    generate,
    one_branch,
    tolerance,
)
from .faults import faulty
from .reference import Rules, calibrated_positions, contrast
from .test_inputs import noised, unchanged
from .test_schedules import IMCCD, scaled_contrast, scales, seen_by, traced
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=71), sample(2, 3, 6, seed=72), sample(0, 4, seed=73, bos=False))
RULES = {
    "imccd_mme": IMCCD,
    "imccd_instructblip": Rules(distortion="mean_scalar"),
    "imccd_qwen_vl": replace(IMCCD, text_step=2 / 3),
}


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
@pytest.mark.parametrize("name", RULES)
def test_the_presets(name: str, pad: int, optimize: bool) -> None:
    method = cdkit.load(name)
    ran = generate(tiny(2), method, SAMPLES, pad=pad, optimize=optimize)
    expected = one_branch(tiny(2), SAMPLES, ran.tokens, RULES[name], method)
    assert_close(ran.logits, expected, within=tolerance(method))
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
def test_captions(pad: int, optimize: bool) -> None:
    ran = generate(tiny(2), cdkit.load("imccd_chair"), SAMPLES, steps=6, pad=pad, optimize=optimize)
    fed = ran.tokens[:, :-1].tolist()
    scale = torch.tensor(
        [
            scales(seen_by(one, own, "logits", IMCCD), "first", 30)
            for one, own in zip(SAMPLES, fed, strict=True)
        ],
        dtype=torch.float64,
    )
    original = branch_logits(tiny(2), SAMPLES, ran.tokens, replace(IMCCD, distortion="none"))
    distorted = branch_logits(tiny(2), SAMPLES, ran.tokens, IMCCD)
    combined = scaled_contrast(original, distorted, scale, 0.2)
    expected = {"original": original, "distorted": distorted, "combined": combined}
    assert_close(ran.logits, expected, within=1e-8)
    assert torch.equal(traced(ran), scale) and (scale == 0).any()


@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [
        ("imccd", 3.0, 0.2),
        ("imccd_chair", 1.0, 0.2),
        ("imccd_mme", 1.0, 0.5),
        ("imccd_instructblip", 3.0, 0.3),
        ("imccd_qwen_vl", 3.0, 0.2),
    ],
)
def test_the_scripts_numbers(name: str, alpha: float, beta: float) -> None:
    data: dict[str, Any] = cdkit.load(name).to_dict()
    assert (data["combiner"]["alpha"], data["constraint"]["beta"]) == (alpha, beta)
    ((mask,),) = [branch["distortions"] for branch in data["branches"]]
    assert mask == {
        "kind": "value_mean_mask",
        "value_mean": "scalar",
        "selector": {"kind": "above_mean", "scope": "call"},
    }
    gate = {"kind": "attention_gate", "window": 30, "history": "first", "quantity": "logits"}
    assert data.get("schedules", []) == [gate] * (name == "imccd_chair")
    if name == "imccd_instructblip":
        assert "calibrator" not in data
    else:
        assert data["calibrator"]["gamma"] == 3.0
        assert data["calibrator"]["first_gap"] == "unit"
        step = 2 / 3 if name == "imccd_qwen_vl" else 1.0
        assert data["calibrator"]["text_step"] == pytest.approx(step)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("imccd_mme", {"distortion": "mean_dim"}),
        ("imccd_mme", {"gamma": 2.0}),
        ("imccd_mme", {"first_gap": "scaled"}),
        ("imccd_instructblip", {"calibrated": True, "gamma": 3.0}),
        ("imccd_instructblip", {"scope": "row"}),
        ("imccd_qwen_vl", {"text_step": 1.0}),
        ("imccd_qwen_vl", {"first_gap": "scaled"}),
        ("imccd_qwen_vl", {"gamma": 1.5}),
    ],
)
def test_other_rules_are_seen_in_each_row(name: str, wrong: dict[str, Any]) -> None:
    ran = generate(tiny(2), cdkit.load(name), SAMPLES)
    other = branch_logits(tiny(2), SAMPLES, ran.tokens, replace(RULES[name], **wrong))
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            have = {"distorted": ran.logits["distorted"][row]}
            assert_close(have, {"distorted": other[row]}, within=1e-4)


def test_one_threshold_for_all_rows_is_seen() -> None:
    """What the code does, as the preset says."""
    ran = generate(tiny(2), cdkit.load("imccd_instructblip"), SAMPLES)
    with faulty("one_group"):
        wrong = branch_logits(tiny(2), SAMPLES, ran.tokens, RULES["imccd_instructblip"])
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            have = {"distorted": ran.logits["distorted"][row]}
            assert_close(have, {"distorted": wrong[row]}, within=1e-4)


def test_qwens_positions() -> None:
    """The code counts by 2 and divides by 3: text at 2 p / 3, image token i at (2 m + i) / 3.

    So the first image token is a text step after the text.
    """
    before, image, after = 4, 6, 5
    code = torch.tensor(
        [2 * p / 3 for p in range(before)]
        + [(2 * before + i) / 3 for i in range(image)]
        + [(2 * before + image + 2 * j) / 3 for j in range(after)],
        dtype=torch.float64,
    )
    tokens = torch.tensor([False] * before + [True] * image + [False] * after)
    calibrator = cdkit.load("imccd_qwen_vl").calibrator
    assert calibrator is not None
    ours = calibrator.calibrate(torch.arange(15)[None], tokens[None].long() - 1)[0]
    reference = calibrated_positions([int(t) - 1 for t in tokens], RULES["imccd_qwen_vl"])
    for positions in (ours, reference):
        assert torch.allclose(positions - positions[0], code, rtol=0, atol=1e-9)


# ---- CMAC and VCD at once ------------------------------------------------------------------------

PLAN: dict[str, tuple[Rules, Rewrite]] = {
    "original": (CALIBRATED, unchanged),
    "attention": (IMD, unchanged),
    "noise": (CALIBRATED, noised(500)),
}


def of_both(ran: Ran, plan: dict[str, tuple[Rules, Rewrite]] = PLAN) -> dict[str, Tensor]:
    return {
        name: branch_logits(tiny(2), SAMPLES, ran.tokens, rules, rewrite=rewrite)
        for name, (rules, rewrite) in plan.items()
    }


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
def test_cmac_and_vcd(pad: int, optimize: bool) -> None:
    """`5 l - 3 l_cmac - l_vcd`."""
    ran = generate(tiny(2), cdkit.load("cmac_vcd"), SAMPLES, pad=pad, optimize=optimize)
    expected = of_both(ran)
    others = [expected["attention"], expected["noise"]]
    expected["combined"] = contrast(expected["original"], others, [3.0, 1.0], 0.1)
    assert_close(ran.logits, expected, within=1e-7)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))
    for alphas in ([1.0, 3.0], [3.0, 3.0], [1.0, 1.0], [3.0, 0.0], [0.0, 1.0]):
        faulty = {"combined": contrast(expected["original"], others, alphas, 0.1)}
        with pytest.raises(AssertionError, match="off by"):
            assert_close({"combined": ran.logits["combined"]}, faulty, within=1e-3)


@pytest.mark.parametrize(
    ("branch", "rules", "rewrite"),
    [
        ("noise", Rules(), noised(500)),  # no calibrator in VCD's branch
        ("noise", IMD, noised(500)),
        ("attention", IMD, noised(500)),  # one branch with both
        ("original", Rules(), unchanged),
    ],
)
def test_a_mixed_up_branch_is_seen(branch: str, rules: Rules, rewrite: Rewrite) -> None:
    ran = generate(tiny(2), cdkit.load("cmac_vcd"), SAMPLES)
    faulty = of_both(ran, {branch: (rules, rewrite)})
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            assert_close(
                {branch: ran.logits[branch][row]}, {branch: faulty[branch][row]}, within=1e-4
            )
