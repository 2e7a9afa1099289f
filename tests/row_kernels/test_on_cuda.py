"""The kernels for generated rows where there is a GPU: the tests of the interpreter, compiled."""

import copy
from collections.abc import Collection

import pytest
import torch
from hypothesis import given, settings
from parity.tiny import batch, sample, tiny

import cdkit
from cdkit.execution.optimizations import ALL
from cdkit.generation.trace import Step
from cdkit.row_kernels.choice import find_kernels
from row_kernels.row_cases import Case, cases, check

HALF, SINGLE = torch.bfloat16, torch.float32
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or find_kernels(torch.device("cuda"), HALF, [128]) is None,
    reason="needs an NVIDIA GPU of compute capability 8.0 or later, and Triton",
)


@settings(max_examples=40)
@given(cases(HALF, torch.float16, SINGLE))
def test_any_shapes(case: Case) -> None:
    check(case, "cuda")


@pytest.mark.parametrize("name", ["cmac", "value_noise", "attention_mask", "identical"])
def test_answers_are_those_of_the_operators(name: str) -> None:
    model = copy.deepcopy(tiny(2, exact=False)).to("cuda", SINGLE)
    inputs = {name: x.cuda() for name, x in batch((sample(3, 5), sample(2, 3, 6))).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(SINGLE)

    def steps(optimize: Collection[str]) -> list[Step]:
        with cdkit.attach(model, cdkit.load(name), trace=["logits"], optimize=optimize) as run:
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return run.trace.steps

    for ours, theirs in zip(steps(ALL), steps(ALL - {"row_kernel"}), strict=True):
        for branch, have in ours.logits.items():
            want = theirs.logits[branch]
            assert (have - want).abs().max() < 1e-3 * want.abs().max()
