"""Whole answers with the kernels under Triton's interpreter. `test_generated_rows.py` runs this
file, in a process in which Triton is imported for its interpreter.

The interpreter is slow, so what is marked `slow` runs with `pytest -m slow` alone.
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.against import (
    CALIBRATED,
    CMAC_CASES,
    Ran,
    assert_close,
    branch_logits,
    generate,
    one_branch,
    tolerance,
)
from parity.tiny import LAYERS, Sample, sample, tiny

import cdkit
from cdkit.attention import fused_rows
from cdkit.execution.optimizations import ALL
from cdkit.row_kernels import choice
from cdkit.row_kernels.generated_rows import attend_rows

assert os.environ["TRITON_INTERPRET"] == "1"
MIXED = (
    sample(3, 5, seed=1),
    sample(0, 4, seed=2, bos=False),  # no text before the image
    sample(2, 3, 6, seed=3),  # two images
)
CASES = (
    *("cmac", "cmac-head", "cmac_imd", "imccd", "attention_mask", "attention_mask-row"),
    *("value_noise", "value_noise-head"),
)
FEW = ("attention_mask-row", "value_noise-head")
"""Two effects, each with a scope of its own; beams have the third."""
STEPS = 3
slow = pytest.mark.slow


class Spy:
    """Counts the layers' calls of the kernels."""

    def __init__(self) -> None:
        self.calls, self.inner = 0, attend_rows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


@pytest.fixture(autouse=True)
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    """The kernels run on the CPU, in float64 too."""
    monkeypatch.setattr(choice, "DEVICES", ("cpu",))
    monkeypatch.setattr(choice, "DTYPES", (*choice.DTYPES, torch.float64))
    spy = Spy()
    monkeypatch.setattr(fused_rows, "attend_rows", spy)
    yield spy


def check(kv_heads: int, case: str, samples: tuple[Sample, ...], **how: Any) -> None:
    model = tiny(kv_heads)
    method, rules = CMAC_CASES[case]
    ran = generate(model, method, samples, steps=STEPS, **how)
    expected = one_branch(model, samples, ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=tolerance(method))
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))


@pytest.mark.parametrize(
    "case", [case if case in FEW else pytest.param(case, marks=slow) for case in CASES]
)
def test_every_variant_equals_the_reference(case: str, spy: Spy) -> None:
    """A padded batch, grouped heads, one prompt with two images."""
    check(2, case, MIXED)
    assert spy.calls == LAYERS * (STEPS - 1)


@slow
@pytest.mark.parametrize(
    ("case", "kv_heads"),
    [("cmac", 4), ("cmac", 1), ("value_noise", 1)],
)
def test_one_prompt(case: str, kv_heads: int, spy: Spy) -> None:
    check(kv_heads, case, MIXED[:1])
    assert spy.calls == LAYERS * (STEPS - 1)


@slow
@pytest.mark.parametrize("alone", ["shared_prefix", "one_forward"])
def test_every_row_has_all_of_its_columns(alone: str, spy: Spy) -> None:
    check(2, "cmac", MIXED[:2], optimize=[alone, "fast_kernels", "row_kernel"])
    assert spy.calls > 0


def same(method: cdkit.Method, samples: tuple[Sample, ...], **how: Any) -> Ran:
    """The answer of the plain algorithm, to the token, and its logits."""
    own = generate(tiny(2), method, samples, steps=STEPS, **how)
    wanted = generate(tiny(2), method, samples, steps=STEPS, optimize=False, **how)
    assert own.tokens.equal(wanted.tokens)
    assert_close(own.logits, wanted.logits, within=tolerance(method))
    return own


@pytest.mark.parametrize(
    "name",
    ["cmac", pytest.param("value_noise", marks=slow), pytest.param("imccd", marks=slow)],
)
def test_beams(name: str, spy: Spy) -> None:
    same(cdkit.load(name), MIXED[:2], num_beams=2)
    assert spy.calls == LAYERS * (STEPS - 1)


@slow
def test_samples() -> None:
    torch.manual_seed(3)
    ran = generate(tiny(2), cdkit.load("cmac"), MIXED[:2], steps=STEPS, do_sample=True)
    method, rules = CMAC_CASES["cmac"]
    expected = one_branch(tiny(2), MIXED[:2], ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=tolerance(method))


def test_several_branches_with_changes_of_their_own(spy: Spy) -> None:
    """Mean, cut, noise and nothing, beside pixels that are noised: nothing can be shared."""
    distortions: Any = cdkit.DISTORTIONS
    above_mean: Any = cdkit.SELECTORS["above_mean"]
    parts = {
        "mean": distortions["value_mean_mask"](),
        "cut": distortions["attention_mask"](selector=above_mean("head")),
        "noise": distortions["value_noise"](),
        "same": distortions["identical"](),
    }
    branches = tuple(cdkit.Branch(name, distortions=(part,)) for name, part in parts.items())
    combiners: Any = cdkit.COMBINERS
    contrast = combiners["contrast"](alpha=0.5)
    same(replace(cdkit.load("cmac"), combiner=contrast, branches=branches), MIXED[2:])
    assert spy.calls == LAYERS * (STEPS - 1)
    same(cdkit.load("cmac_vcd"), MIXED[:1])
    assert spy.calls == 2 * LAYERS * (STEPS - 1)


@slow
def test_an_identical_branch_and_calibration_alone(spy: Spy) -> None:
    same(cdkit.load("identical"), MIXED)
    assert spy.calls == LAYERS * (STEPS - 1)
    method = cdkit.load("cmac_cmpc")
    ran = generate(tiny(2), method, MIXED, steps=STEPS)
    original = branch_logits(tiny(2), MIXED, ran.tokens, CALIBRATED)
    assert_close(ran.logits, {"original": original, "combined": original}, within=1e-8)


@slow
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_other_dtypes(dtype: torch.dtype, within: float, spy: Spy) -> None:
    """The first generated row differs from that of the operators by rounding."""
    model = copy.deepcopy(tiny(2, exact=False)).to(dtype)
    ours, theirs = (
        generate(model, cdkit.load("cmac"), MIXED[:2], steps=2, optimize=optimize)
        for optimize in (ALL, ALL - {"row_kernel"})
    )
    assert spy.calls == LAYERS and ours.tokens[:, 0].equal(theirs.tokens[:, 0])
    # in bfloat16 rounding takes other cells of the distorted branch
    names = ["original", "distorted"] if dtype == torch.float32 else ["original"]
    for name in names:
        have, want = ours.logits[name][:, 1].double(), theirs.logits[name][:, 1].double()
        assert (have - want).abs().max() < within * want.abs().max()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("cmac", {"optimize": ALL - {"row_kernel"}}),
        pytest.param("cmac", {"optimize": False}, marks=slow),
        pytest.param("cmac", {"trace": ("logits", "mask")}, marks=slow),
        ("moving", {}),  # generated queries move
        pytest.param("pai", {}, marks=slow),  # it changes the logits of the original branch
        pytest.param("random_mask", {}, marks=slow),  # its cells are not those above a mean
        ("imccd_chair", {}),  # its gate reads the attention
    ],
)
def test_where_operators_compute(name: str, how: dict[str, Any], spy: Spy) -> None:
    moving = CMAC_CASES["cmac-text-step"][0]
    method = moving if name == "moving" else cdkit.load(name)
    generate(tiny(2), method, MIXED[:1], steps=STEPS, **how)
    assert spy.calls == 0
