"""The comparison of a batch with its prompts sees answers that depend on neighbours."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .modes import MODES, STEPS, check_batch


def answers(prompts: Sequence[int], *, optimize: bool, fault: str = "", **how: Any) -> Any:
    """Tokens and first logits that belong to a prompt alone, but for the fault."""
    rows = torch.tensor(prompts)[:, None].expand(-1, STEPS).clone()
    logits = torch.tensor(prompts).double()[:, None]
    if fault == "neighbour's tokens" and len(prompts) > 1:
        rows[1, -1] += 1
    if fault == "neighbour's logits" and len(prompts) > 1:
        logits[1] += 1e-3
    if fault == "unoptimised tokens" and not optimize:
        rows[1, -1] += 1
    if fault == "unoptimised logits" and not optimize:
        logits[1] += 1e-3
    return SimpleNamespace(sequences=rows, logits=[logits])


@pytest.mark.parametrize("mode", MODES)
def test_equal_answers_pass(mode: str) -> None:
    check_batch(answers, (3, 5), mode)


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("greedy", "neighbour's tokens"),
        ("beams", "neighbour's tokens"),
        ("greedy", "neighbour's logits"),
        ("sampling", "neighbour's logits"),
        ("greedy", "unoptimised logits"),
        ("sampling", "unoptimised logits"),
        *((mode, "unoptimised tokens") for mode in MODES),
    ],
)
def test_faults_are_seen(mode: str, fault: str) -> None:
    def run(prompts: Sequence[int], **how: Any) -> Any:
        return answers(prompts, fault=fault, **how)

    with pytest.raises(AssertionError):
        check_batch(run, (3, 5), mode)
