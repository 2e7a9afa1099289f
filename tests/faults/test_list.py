"""Every fault of the public code that shared/method.md lists has a test that fails on it."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
FAULTS: dict[str, tuple[str, str]] = {
    "the distorted branch is fed from the original branch's cache after the first token": (
        "parity/test_mutations.py",
        "test_each_step_is_compared",
    ),
    "a method silently does nothing in a decode mode": (
        "faults/test_silent_mode.py",
        "test_a_method_that_sleeps_in_a_mode_is_noticed",
    ),
    "the plausibility constraint is dropped in a decode mode": (
        "faults/test_dropped_constraint.py",
        "test_a_constraint_that_is_dropped_is_noticed",
    ),
    "a threshold is shared across the batch": (
        "parity/test_mutations.py",
        "test_a_faulty_branch_is_seen_in_each_row",
    ),
    "the image's place in the prompt is hard-coded": (
        "faults/test_hard_coded_span.py",
        "test_a_hard_coded_span_is_noticed",
    ),
    "a broken generate is scored as an empty answer": (
        "faults/test_swallowed_error.py",
        "test_a_swallowed_error_is_noticed",
    ),
    "a POPE parser looks at the label": (
        "evals/benchmarks/test_pope.py",
        "test_the_vcd_parser_looks_at_the_label",
    ),
    "the yes-ratio is that of the ground truth": (
        "faults/test_yes_ratio_of_the_truth.py",
        "test_the_ratio_of_the_truth_is_noticed",
    ),
    "the image list follows a directory listing": (
        "faults/test_listed_directory.py",
        "test_a_shuffled_listing_is_noticed",
    ),
}
"""Fault -> (file, test) in which the faulty variant stands and is found."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_has_a_test(fault: str) -> None:
    file, name = FAULTS[fault]
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert name in found, f"{fault}: {file} has no {name}"
