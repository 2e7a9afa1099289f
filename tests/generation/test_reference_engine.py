"""`optimize=False` is the plain algorithm: its own code, and what every faster way computes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from parity.against import assert_close, tolerance
from torch import Tensor

import cdkit
from cdkit import CACHE
from cdkit.generation import reference_inputs
from cdkit.generation.branch_prompts import BranchPrompts, branch_rows
from cdkit.generation.call_compatibility import mode_of
from cdkit.generation.reference import ReferenceEngine
from cdkit.generation.reference_cache import ReferenceCache

from .presets import ALL, in_turn

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True},
    "beam": {"do_sample": False, "num_beams": 3},
}
CASES = [
    (name, mode)
    for name in ALL
    for mode, asked in MODES.items()
    if mode_of(asked, []) in cdkit.load(name).modes
]
QUESTIONS = ("before <image> after ?", "<image> w3 <image> w4 in the image ?", "<image> ?")
"""Of unequal lengths, so that two are padded on the left; one has two images."""
FORBIDDEN = (
    "cdkit.execution",
    "cdkit.attention",
    *(f"cdkit.branches.{name}" for name in ("state", "cache")),
    *(f"cdkit.generation.{name}" for name in ("engine", "step", "decode", "start")),
)
"""What decides how to save time, and what does it."""


def answer(
    model: Any, processor: Any, name: str, inputs: dict[str, Tensor], *, optimize: bool, **how: Any
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The new tokens, and each step's logits: those of every branch, and the combined ones."""
    torch.manual_seed(0)
    with cdkit.attach(
        model, cdkit.load(name), processor=processor, trace=("logits",), optimize=optimize
    ) as run:
        out = model.generate(**inputs, max_new_tokens=4, **how)
    steps: Sequence[Any] = run.trace.steps
    logits = [{**step.logits, "combined": step.combined} for step in steps]
    return out[:, inputs["input_ids"].shape[1] :], logits


@pytest.mark.parametrize(("name", "mode"), in_turn(CASES, 2))
def test_the_faster_way_computes_the_same(
    name: str,
    mode: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
) -> None:
    inputs, within = make_inputs(*QUESTIONS), tolerance(cdkit.load(name), 1e-9)
    tokens, logits = answer(model, processor, name, inputs, optimize=False, **MODES[mode])
    found, faster = answer(model, processor, name, inputs, optimize=True, **MODES[mode])
    assert found.equal(tokens)
    if cdkit.load(name).is_identity and not faster:
        return
    assert len(logits) == len(faster) > 0
    for one, other in zip(logits, faster, strict=True):
        assert all(own.dtype == torch.float64 for own in one.values())
        assert_close(other, one, within=within)


@pytest.mark.parametrize("name", ["cmac", "vcd", "icd"])
def test_a_fault_is_seen(
    name: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison above can fail: branches that are not distorted."""
    inputs = make_inputs(*QUESTIONS)
    _, logits = answer(model, processor, name, inputs, optimize=False, do_sample=False)

    def undistorted(attached: Any, session: Any, first: Any, branches: Any) -> BranchPrompts:
        original = branch_rows(attached, session, first, ())
        return BranchPrompts(original.blocks * (1 + len(branches)), 1, 0)

    monkeypatch.setattr(reference_inputs, "branch_rows", undistorted)
    monkeypatch.setattr(ReferenceEngine, "_changes", lambda *a: [])
    _, wrong = answer(model, processor, name, inputs, optimize=False, do_sample=False)
    with pytest.raises(AssertionError):
        assert_close(logits[0], wrong[0], within=1e-6)


def test_each_branch_runs_by_itself(
    model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """A prefill and a step a token for each branch, with its own number of columns."""
    inputs, calls = make_inputs(*QUESTIONS), list[tuple[int, int]]()
    layer = model.model.language_model.layers[0]

    def see(module: object, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append((hidden.shape[0], hidden.shape[1]))

    hook = layer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        answer(model, processor, "icd", inputs, optimize=False, do_sample=False)
    finally:
        hook.remove()
    first, second, *steps = calls
    assert first == (3, inputs["input_ids"].shape[1]) and second[1] > first[1]
    assert steps == [(3, 1)] * 6


def test_a_cache_belongs_to_its_own_attachment(
    model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    inputs, method = make_inputs(QUESTIONS[0]), cdkit.load("vcd")
    with torch.no_grad():
        with cdkit.attach(model, method, processor=processor, optimize=False):
            cache = getattr(model(**inputs), CACHE)
        assert isinstance(cache, ReferenceCache)
        for optimize in (False, True):
            with cdkit.attach(model, method, processor=processor, optimize=optimize):
                with pytest.raises(cdkit.CdkitError, match="under another"):
                    model(input_ids=inputs["input_ids"][:, -1:], **{CACHE: cache})


def test_it_shares_nothing_of_the_plan() -> None:
    code = "import sys, cdkit.generation.reference\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded = ran.stdout.split()
    assert "cdkit.generation.reference_attention" in loaded
    for name in loaded:
        assert not any(f"{name}.".startswith(f"{own}.") for own in FORBIDDEN), name
