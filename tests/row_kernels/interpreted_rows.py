"""The kernels under Triton's interpreter. `test_generated_rows.py` runs this file, in a process in
which Triton is imported for its interpreter."""

import os

import torch
from hypothesis import HealthCheck, given, settings

from row_kernels.row_cases import Case, cases, check

assert os.environ["TRITON_INTERPRET"] == "1"
SLOW = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(cases(torch.float64))
def test_any_shapes(case: Case) -> None:
    check(case)


@settings(parent=SLOW, max_examples=8)
@given(cases(torch.float32, torch.float16, torch.bfloat16))
def test_any_shapes_in_other_dtypes(case: Case) -> None:
    check(case)
