"""The static cache: the answers of the dynamic one, for every method in every decode mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from generation.presets import ACTIVE, by_row, in_turn
from generation.test_modes import MODES, QUESTIONS, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import DynamicLayer

import cdkit
from cdkit.execution.static_cache import STEP, FixedLayer, fixed_cache, is_fixed
from cdkit.interfaces.cache_names import CACHE

hf: Any = transformers

STATIC: dict[str, Any] = {"cache_implementation": "static"}
EVERYWHERE = ("cmac", "icd")
"""Attention, prompts of their own: in all modes; the other methods in one."""
CASES = [
    (name, mode)
    for name in ACTIVE
    for mode in MODES
    if runs(name, mode)
    and mode != "no cache"
    and (name in EVERYWHERE or mode == ("greedy" if runs(name, "greedy") else "beams"))
]
MakeInputs = Callable[..., dict[str, Tensor]]


def answers(
    model: Any, method: cdkit.Method, inputs: Any, *, optimize: bool = True, **asked: Any
) -> Any:
    """What `generate` gives; as `steps` all branches' logits, where the loop is Hugging Face's."""
    own = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    trace = ("logits",) if method.loop is None else ()  # Hugging Face's are in float32
    processor = asked.pop("processor")
    torch.manual_seed(0)
    with cdkit.attach(model, method, processor=processor, optimize=optimize, trace=trace) as run:
        out = model.generate(**inputs, **own | asked)
    out.steps = [x for step in run.trace.steps for x in step.logits.values()]
    return out


def assert_same(one: Any, other: Any) -> None:
    assert one.sequences.equal(other.sequences)
    assert len(one.steps) == len(other.steps)
    for a, b in zip(one.steps, other.steps, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "mode"), in_turn(CASES, 1))
def test_same_answers(
    name: str, mode: str, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(*QUESTIONS)
    method = by_row(name) if mode == "chunked prefill" else cdkit.load(name)
    asked = MODES[mode] | {"processor": processor}
    assert_same(
        answers(model, method, inputs, **asked), answers(model, method, inputs, **asked, **STATIC)
    )


@pytest.mark.parametrize("name", EVERYWHERE)
def test_same_answers_without_optimisations(
    name: str, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """Each branch has a cache of its own then."""
    inputs, method = make_inputs(*QUESTIONS), cdkit.load(name)
    asked: dict[str, Any] = {"processor": processor, "optimize": False}
    assert_same(
        answers(model, method, inputs, **asked), answers(model, method, inputs, **asked, **STATIC)
    )


def test_a_column_that_is_not_shown_is_found(
    model: Any, processor: Any, make_inputs: MakeInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above fails where a layer writes its new columns into the wrong place."""
    write = FixedLayer.ensure_capacity

    def wrong(self: FixedLayer, stop: int) -> tuple[Tensor, Tensor]:
        keys, values = write(self, stop)
        return keys, values.clone()

    inputs, method = make_inputs(*QUESTIONS), cdkit.load("cmac")
    plain = answers(model, method, inputs, processor=processor)
    monkeypatch.setattr(FixedLayer, "ensure_capacity", wrong)
    with pytest.raises(AssertionError):
        assert_same(plain, answers(model, method, inputs, processor=processor, **STATIC))


@pytest.mark.parametrize("beams", [1, 3])
def test_room_is_made_once_an_answer(
    beams: int,
    model: Any,
    processor: Any,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer's keys stay where they are from the first new token to the last, beams too."""
    places: dict[int, list[int]] = {}
    write = FixedLayer.show_up_to

    def seen(self: FixedLayer, stop: int) -> None:
        write(self, stop)
        places.setdefault(id(self), []).append(self.keys.data_ptr())

    monkeypatch.setattr(FixedLayer, "show_up_to", seen)
    answers(
        model, cdkit.load("cmac"), make_inputs(*QUESTIONS), processor=processor, num_beams=beams,
        max_new_tokens=8, **STATIC,
    )  # fmt: skip
    assert len(places) == model.config.text_config.num_hidden_layers
    for own in places.values():
        assert len(own) == 8 and len(set(own)) == 1  # room, then 7 tokens


def test_the_returned_cache_is_a_plain_one(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs, method = make_inputs(*QUESTIONS), cdkit.load("cmac")
    one, other = (
        answers(model, method, inputs, processor=processor, **how)[CACHE] for how in ({}, STATIC)
    )
    assert type(one) is type(other) is hf.DynamicCache
    rows, columns = torch.nonzero(inputs["attention_mask"], as_tuple=True)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.keys.shape == b.keys.shape
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            torch.testing.assert_close(x[rows, :, columns], y[rows, :, columns], rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", [{}, {"max_new_tokens": 0}], ids=["whole", "failed"])
def test_the_model_makes_its_own_again(
    how: dict[str, Any], model: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(model, cdkit.load("cmac")):
        if how:
            with pytest.raises(ValueError, match="max_new_tokens"):
                model.generate(**inputs, **STATIC, **how)
        else:
            model.generate(**inputs, **STATIC, max_new_tokens=2)
        assert "_prepare_static_cache" not in vars(model)
    out = model.generate(**inputs, **STATIC, max_new_tokens=2, return_dict_in_generate=True)
    assert type(out[CACHE]) is hf.StaticCache


def test_a_static_cache_of_ones_own_is_refused(model: Any, make_inputs: MakeInputs) -> None:
    fixed = hf.StaticCache(config=model.config.text_config, max_cache_len=40)
    with cdkit.attach(model, cdkit.load("cmac")):
        with pytest.raises(cdkit.CdkitError, match="pass cache_implementation='static' to gen"):
            model.generate(**make_inputs(QUESTIONS[0]), max_new_tokens=2, **{CACHE: fixed})


# ---- its layers ----------------------------------------------------------------------------------

STEPS = st.lists(st.sampled_from([1, 1, 1, 2, 5, "reorder", "copy", "other"]), max_size=12)


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 8), STEPS)
def test_a_layer_holds_what_a_dynamic_one_holds(
    rows: int, ahead: int, steps: list[int | str]
) -> None:
    """Also where it runs out of room, is copied, or is given other keys."""
    random = torch.Generator().manual_seed(rows)
    fixed = FixedLayer(ahead)
    dynamic: Any = DynamicLayer()  # type: ignore[no-untyped-call]
    left: list[tuple[FixedLayer, Tensor]] = []
    for step in (3, *steps):
        if isinstance(step, int):
            new = torch.randn(2, rows, 2, step, 4, generator=random)
            for own, other in zip(fixed.update(*new), dynamic.update(*new), strict=True):
                assert own.equal(other)
        elif step == "reorder":
            order = torch.randint(rows, (rows,), generator=random)
            fixed.reorder_cache(order)
            dynamic.reorder_cache(order)
        elif step == "copy":
            left.append((fixed, fixed.keys.clone()))
            fixed = fixed.__copy__()
        else:
            fixed.keys = dynamic.keys = dynamic.keys * 2
        assert fixed.keys.equal(dynamic.keys) and fixed.values.equal(dynamic.values)
        assert fixed.get_seq_length() == dynamic.get_seq_length()
    for layer, keys in left:
        assert layer.keys.equal(keys), "a copy wrote into the layer that it was made of"


def test_room_is_a_multiple_of_64() -> None:
    layer = FixedLayer(ahead=60)
    new = torch.zeros(2, 1, 1, 10, 4)
    layer.update(*new)
    layer.update(*new[..., :1, :])
    assert layer.size == 2 * STEP == 128


def test_sliding_layers_stay_dynamic() -> None:
    config = hf.Gemma3TextConfig(num_hidden_layers=6, sliding_window=4)
    cache: Any = fixed_cache(config, ahead=3)
    slides = [layer.is_sliding for layer in cache.layers]
    assert any(slides) and not all(slides) and not is_fixed(cache)
    assert [isinstance(layer, FixedLayer) for layer in cache.layers] == [not s for s in slides]
