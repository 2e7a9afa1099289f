"""Steps behind a packed prompt: where they run, and what happens when the buffers are full."""

from typing import Any

import pytest
import torch
from covers import covering
from parity.against import assert_close, generate, tolerance
from parity.tiny import Sample, sample, tiny

import cdkit
from cdkit.branches.state import BranchState
from cdkit.execution import packing
from cdkit.execution.packing import Packing
from cdkit.generation import decode

TWO_IMAGES = (sample(2, 3, 6, seed=3),)
PADDED = (sample(3, 5, seed=1), sample(0, 4, seed=2, bos=False))
EQUAL = (sample(3, 5, seed=1), sample(3, 5, seed=7))


@pytest.fixture
def packed_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the decoder that are packed."""
    calls = list[str]()
    for name in ("packed_prompt", "packed_step"):
        before = getattr(decode, name)

        def note(*args: Any, name: str = name, before: Any = before) -> Any:
            calls.append(name)
            return before(*args)

        monkeypatch.setattr(decode, name, note)
    return calls


@pytest.mark.parametrize(("samples", "kv_heads"), covering([EQUAL, PADDED, TWO_IMAGES], [1, 2, 4]))
@pytest.mark.parametrize("name", ["cmac", "value_noise", "attention_mask", "pai"])
def test_full_buffers_grow(
    name: str,
    samples: tuple[Sample, ...],
    kv_heads: int,
    packed_calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "ROOM", 4)
    method = cdkit.load(name)
    own = generate(tiny(kv_heads), method, samples, steps=8)
    packs = name != "pai" and samples is not TWO_IMAGES
    assert packed_calls.count("packed_step") == (7 if name != "pai" else 0), packed_calls
    assert packed_calls.count("packed_prompt") == (packs and samples is EQUAL)
    wanted = generate(tiny(kv_heads), method, samples, steps=8, optimize=False)
    assert own.tokens.equal(wanted.tokens)
    assert_close(own.logits, wanted.logits, within=tolerance(method))


@pytest.mark.parametrize("samples", [EQUAL, PADDED], ids=["equal", "padded"])
def test_a_branch_alone(samples: tuple[Sample, ...], packed_calls: list[str]) -> None:
    """Calibration without a distorted branch: packed where text can be, else in rows."""
    method = cdkit.load("cmac_cmpc")
    own = generate(tiny(2), method, samples, steps=4)
    packs = ["packed_prompt", "packed_step", "packed_step", "packed_step"]
    assert packed_calls == (packs if samples is EQUAL else [])
    wanted = generate(tiny(2), method, samples, steps=4, optimize=False)
    assert own.tokens.equal(wanted.tokens)
    assert_close(own.logits, wanted.logits, within=tolerance(method))


def test_rows_of_their_own_after_a_packed_step(
    packed_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What chooses rows may come in the midst of an answer."""
    method, steps = cdkit.load("cmac"), list[int]()
    stays = BranchState.stays_packed

    def twice(state: BranchState, new: int, **how: Any) -> bool:
        steps.append(new)
        return len(steps) < 3 and stays(state, new, **how)

    monkeypatch.setattr(BranchState, "stays_packed", twice)
    own = generate(tiny(2), method, EQUAL, steps=6)
    assert packed_calls == ["packed_prompt", "packed_step", "packed_step"]
    wanted = generate(tiny(2), method, EQUAL, steps=6, optimize=False)
    assert own.tokens.equal(wanted.tokens)
    assert_close(own.logits, wanted.logits, within=tolerance(method))


def test_columns_of_branches() -> None:
    """Shared ones first, then each branch's, then one of each branch in turn."""
    packed = Packing(shared=2, suffix=3, branches=2)
    columns = [packed.columns_of(branch, torch.arange(7)).tolist() for branch in range(2)]
    assert columns == [[0, 1, 2, 3, 4, 8, 10], [0, 1, 5, 6, 7, 9, 11]]
