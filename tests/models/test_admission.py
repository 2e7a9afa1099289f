"""What every registered family must do under the four chief methods, and one of each kind all."""

from typing import Any

import pytest
import torch
from covers import covering
from generation.presets import RUNNABLE
from parity.against import assert_close
from torch import Tensor

import cdkit
from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.probing.promises import tolerance as precision
from cdkit.testing import check_adapter

from .modes import MODES, PRESETS, STEPS, generated
from .tiny import FAMILIES, Words, inputs, tiny

ELSEWHERE = ("qwen_vl", "fuyu", "llama4", "gemma3n")
"""Their tests hold an admission of their own: cdkit's own model, one whose stock beam search fails,
one that this transformers cannot run without help, and one whose image encoder needs timm."""
TRIED = {family.model_type: name for name, family in FAMILIES.items()}
ADMITTED = [
    *(name for name, family in FAMILIES.items() if family.model_type in ADAPTERS),
    # without a recipe in tiny.py all tests of it fail
    *(name for name in ADAPTERS if name not in (*TRIED, *ELSEWHERE)),
]


def answered(
    name: str, preset: str, *rows: int, optimize: bool = True, mode: str = "greedy"
) -> tuple[dict[str, Tensor], Any]:
    """Each branch's logits (rows, steps, vocab), and the answer."""
    method = cdkit.load(preset)
    # a loop of the method's own keeps no scores
    more = {} if method.loop is None else {"output_logits": False, "output_scores": False}
    attached = cdkit.attach(
        tiny(name),
        method,
        processor=Words(),
        sample_ids=[f"prompt {row}" for row in rows],
        optimize=optimize,
        trace=("logits",),
    )
    with attached as ran:
        output = generated(tiny(name), inputs(name, *rows), **MODES[mode], **more)
    steps = ran.trace.steps if method.loop is None else ()  # a loop's steps differ in rows
    names = steps[0].logits if steps else ()
    return {n: torch.stack([step.logits[n] for step in steps], 1) for n in names}, output


def same_answer(one: Any, other: Any, rows: slice = slice(None)) -> None:
    """`one` is these rows of `other`: its new tokens, its beams' scores."""
    new = [out.sequences[:, -STEPS:] for out in (one, other)]
    assert new[0].equal(new[1][rows])
    if one.get("sequences_scores") is not None:
        scores = one.sequences_scores, other.sequences_scores[rows]
        assert torch.allclose(*scores, atol=precision(scores[0]))


# ---- all families --------------------------------------------------------------------------------


@pytest.mark.slow  # each family's own file checks it, on prompts of its own
@pytest.mark.parametrize("name", ADMITTED)
def test_the_contract(name: str) -> None:
    check_adapter(tiny(name), inputs=inputs(name, 0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ADMITTED)
def test_off_is_the_stock_model(name: str, mode: str) -> None:
    model, given = tiny(name), inputs(name, 0, 1)
    stock = generated(model, given, **MODES[mode])
    with cdkit.attach(model, cdkit.load("plain"), processor=Words()):
        off = generated(model, given, **MODES[mode])
    after = generated(model, given, **MODES[mode])
    for out in (off, after):
        assert out.sequences.equal(stock.sequences)
        assert all(a.equal(b) for a, b in zip(out.logits, stock.logits, strict=True))


@pytest.mark.parametrize(("name", "preset"), covering(ADMITTED, PRESETS))
def test_a_method(name: str, preset: str) -> None:
    """Unequal prompts side by side answer as alone; faster or not, in every mode."""
    logits, greedy = answered(name, preset, 0, 1)
    within = precision(logits["original"]) * 10
    assert all(branch.isfinite().all() for branch in logits.values())
    for branch in set(logits) - {"original"}:
        assert bool((logits[branch] != logits["original"]).any(-1).all()), f"{branch} is no other"
    for row in (0, 1):
        own, answer = answered(name, preset, row)
        same_answer(answer, greedy, slice(row, row + 1))
        beside = {branch: rows[row : row + 1] for branch, rows in logits.items()}
        assert_close(own, beside, within=within)
    slow, answer = answered(name, preset, 0, 1, optimize=False)
    same_answer(answer, greedy)
    assert_close(slow, logits, within=within)
    for mode in ("sampling", "beams"):
        _, fast = answered(name, preset, 0, 1, mode=mode)
        same_answer(answered(name, preset, 0, 1, mode=mode, optimize=False)[1], fast)
        if mode == "beams":
            _, alone = answered(name, preset, 1, mode=mode)
            same_answer(alone, fast, slice(1, 2))
        else:  # the draws of a batch are others, what they are drawn from is not
            assert torch.allclose(fast.logits[0], greedy.logits[0], atol=within)


# ---- all methods ---------------------------------------------------------------------------------

LINE_AND_GRID = [name for name in ("llava", "qwen2_vl") if name in ADMITTED]
"""Positions with one axis, and with three."""


OTHERS = [name for name in RUNNABLE if name not in PRESETS]


@pytest.mark.parametrize(("preset", "name"), covering(OTHERS, LINE_AND_GRID))
def test_every_other_method(name: str, preset: str) -> None:
    """Greedily, or with beams where the method has its own."""
    mode = "greedy" if "greedy" in cdkit.load(preset).modes else "beams"
    fast, answer = answered(name, preset, 0, 1, mode=mode)
    slow, other = answered(name, preset, 0, 1, mode=mode, optimize=False)
    same_answer(other, answer)
    if mode == "greedy":
        assert_close(slow, fast, within=1e-4)
    same_answer(answered(name, preset, 1, mode=mode)[1], answer, slice(1, 2))
