"""`output_hidden_states` and `output_attentions` give the original branch's, as stock does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.cache_names import CACHE

from .presets import ACTIVE_GREEDY, in_turn

Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
STATES = {"output_hidden_states": True, "return_dict_in_generate": True}
BOTH = STATES | {"output_attentions": True}
MODES: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2},
    {"do_sample": True, "num_beams": 2},
    {"do_sample": False, "use_cache": False},
    {"do_sample": False, "prefill_chunk_size": 4},
    {"do_sample": False, "cache_implementation": "static"},
]
INPUTS_ONLY = ("identical", "vcd", "icd", "no_image")


@pytest.fixture(scope="module")
def eager(make_model: Callable[..., Any]) -> Any:
    """In float32: in float64 stock eager attention makes NaN of padding."""
    model = make_model(dtype=torch.float32)
    model.set_attn_implementation("eager")
    return model


def generate(model: Any, inputs: Inputs, **asked: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**inputs, **{"max_new_tokens": 4, **asked})


def check_equal(given: Any, wanted: Any, *, exact_to: float = 2e-5) -> None:
    """Both are tuples of tuples (step, layer) of tensors."""
    assert type(given) is type(wanted) is tuple and len(given) == len(wanted)
    for ours, stock in zip(given, wanted, strict=True):
        assert type(ours) is type(stock) is tuple and len(ours) == len(stock) > 0
        for own, other in zip(ours, stock, strict=True):
            assert own.dtype == other.dtype
            torch.testing.assert_close(own, other, rtol=0, atol=exact_to)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_those_of_an_identical_branch_are_the_stock_models(
    mode: dict[str, Any], optimize: bool, eager: Any, make_inputs: MakeInputs
) -> None:
    inputs, method = make_inputs(*QUESTIONS), cdkit.load("identical", beta=0.0)
    wanted = generate(eager, inputs, **BOTH, **mode)
    with cdkit.attach(eager, method, optimize=optimize):
        given = generate(eager, inputs, **BOTH, **mode)
    assert type(given) is type(wanted) and given.keys() == wanted.keys()
    assert given.sequences.equal(wanted.sequences)
    if "num_beams" in mode:
        assert given.beam_indices.equal(wanted.beam_indices)
    real = inputs["attention_mask"].bool()
    rows, columns = wanted.hidden_states[0][0].shape[:2]
    real = real.repeat_interleave(rows // len(real), dim=0)
    for own, stock in zip(given.hidden_states, wanted.hidden_states, strict=True):
        new = stock[0].shape[1]  # of the whole text without a cache, or of the prompt's last chunk
        kept = torch.cat((real, real.new_ones(rows, 4)), dim=1)[..., None]
        last = real.shape[1] if new <= columns else new
        kept = kept[:, max(0, last - new) : max(new, last)]
        check_equal((tuple(x * kept for x in own),), (tuple(x * kept for x in stock),))
    static = "cache_implementation" in mode  # there stock's columns are those of the whole cache
    for own, stock in zip(given.attentions, wanted.attentions, strict=True):
        for x, y in zip(own, stock, strict=True):
            other = y[..., : x.shape[-1]] if static else y
            assert x.shape == other.shape and x.dtype == other.dtype
            seen = other.amax(dim=(1, 3)) > 1.5 / other.shape[-1]  # a row of padding is uniform
            kept = seen[:, None, :, None]
            torch.testing.assert_close(x * kept, other * kept, rtol=0, atol=2e-5)
            assert kept.any()


@pytest.mark.parametrize("name", in_turn(ACTIVE_GREEDY, 0))
def test_states_are_those_of_the_plain_algorithm(
    name: str, eager: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """Rows, columns, layers; only where the text after the image is not changed are they stock."""
    inputs, method, found = make_inputs(*QUESTIONS), cdkit.load(name), []
    for optimize in (True, False):
        with cdkit.attach(eager, method, processor=processor, optimize=optimize):
            found.append(generate(eager, inputs, do_sample=False, **STATES))
    fast, plain = found
    stock = generate(eager, inputs, do_sample=False, **STATES)
    assert fast.sequences.equal(plain.sequences)
    real = inputs["attention_mask"].bool()
    for step, (own, other, shape) in enumerate(
        zip(fast.hidden_states, plain.hidden_states, stock.hidden_states, strict=True)
    ):
        assert [x.shape for x in own] == [x.shape for x in other] == [x.shape for x in shape]
        kept = real[..., None] if step == 0 else torch.ones(2, 1, 1).bool()
        check_equal((tuple(x * kept for x in own),), (tuple(x * kept for x in other),))


@pytest.mark.parametrize("name", INPUTS_ONLY)
@pytest.mark.parametrize("optimize", [True, False])
def test_those_of_the_prompt_are_stock_where_inputs_alone_change(
    name: str, optimize: bool, eager: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """Also where a branch's prompt is longer, or shorter, than the original one."""
    inputs, method = make_inputs(*QUESTIONS), cdkit.load(name)
    wanted = generate(eager, inputs, do_sample=False, **BOTH)
    with cdkit.attach(eager, method, processor=processor, optimize=optimize):
        given = generate(eager, inputs, do_sample=False, **BOTH)
    real = inputs["attention_mask"].bool()
    pairs = (
        (given.hidden_states, wanted.hidden_states, real[..., None]),
        (given.attentions, wanted.attentions, real[:, None, :, None]),
    )
    for own, stock, kept in pairs:
        check_equal((tuple(x * kept for x in own[0]),), (tuple(x * kept for x in stock[0]),))
        assert [[x.shape for x in step] for step in own] == [
            [x.shape for x in step] for step in stock
        ]
    # rows keep nothing of the other branches alive
    assert all(x.untyped_storage().nbytes() <= x.numel() * 8 for x in given.hidden_states[0])


@pytest.mark.parametrize("optimize", [True, False])
def test_a_plain_call(optimize: bool, eager: Any, processor: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    asked = {"output_hidden_states": True, "output_attentions": True, "logits_to_keep": 1}
    more = {"input_ids": torch.tensor([[7]])}
    with torch.no_grad():
        wanted = eager(**inputs, **asked)
        later = eager(**more, **{CACHE: wanted[CACHE]}, **asked)
    for name in INPUTS_ONLY:
        attached = cdkit.attach(eager, cdkit.load(name), processor=processor, optimize=optimize)
        with attached, torch.no_grad():
            given = eager(**inputs, **asked)
            check_equal((given.hidden_states,), (wanted.hidden_states,))
            check_equal((given.attentions,), (wanted.attentions,))
            given = eager(**more, **{CACHE: given[CACHE]}, **asked)
            check_equal((given.hidden_states,), (later.hidden_states,))
            check_equal((given.attentions,), (later.attentions,))


@pytest.mark.parametrize("flag", ["generation_config", "config"])
def test_flags_of_a_config(
    flag: str, make_model: Callable[..., Any], make_inputs: MakeInputs
) -> None:
    model, inputs = make_model(), make_inputs(*QUESTIONS)
    config = model.generation_config if flag == "generation_config" else model.config.text_config
    config.output_hidden_states = True
    asked = {"do_sample": False, "return_dict_in_generate": True}
    wanted = generate(model, inputs, **asked)
    with torch.no_grad():
        plain = model(**inputs).hidden_states
        with cdkit.attach(model, cdkit.load("identical", beta=0.0)):
            given, plainly = generate(model, inputs, **asked), model(**inputs).hidden_states
    assert (given.hidden_states is None) == (wanted.hidden_states is None) == (flag == "config")
    assert (plainly is None) == (plain is None) == (flag != "config")
    if flag == "config":
        check_equal((plainly,), (plain,))
    else:
        check_equal(given.hidden_states, wanted.hidden_states)


def test_some_layers_alone(eager: Any, make_inputs: MakeInputs) -> None:
    """An index, or indices: the others are None."""
    inputs, asked = make_inputs(*QUESTIONS), {"return_dict_in_generate": True, "do_sample": False}
    with cdkit.attach(eager, cdkit.load("vcd")):
        every = generate(eager, inputs, output_hidden_states=True, **asked).hidden_states
        last = generate(eager, inputs, output_hidden_states=[1, -1], **asked).hidden_states
    for all_of_step, some in zip(every, last, strict=True):
        assert [x is None for x in some] == [True, False, True, False]
        assert some[1].equal(all_of_step[1]) and some[3].equal(all_of_step[3])


def test_weights_of_a_method_that_acts_in_the_attention(
    eager: Any, make_inputs: MakeInputs
) -> None:
    """IMD leaves those of the original branch; every optimisation gives the same."""
    inputs, imd = make_inputs(QUESTIONS[0]), cdkit.load("cmac_imd")
    asked: dict[str, Any] = {**BOTH, "do_sample": False}
    wanted = generate(eager, inputs, **asked)
    found = []
    for optimize in (True, False, ["one_forward"], ["fast_kernels"]):
        with cdkit.attach(eager, imd, optimize=optimize):
            given = generate(eager, inputs, **asked)
        check_equal(given.attentions[:1], wanted.attentions[:1])
        found.append(given)
    for given in found:
        assert given.sequences.equal(found[0].sequences)
        check_equal(given.attentions, found[0].attentions)
        check_equal(given.hidden_states, found[0].hidden_states)


@pytest.mark.parametrize("optimize", [True, False])
def test_kernels_that_give_no_weights(optimize: bool, model: Any, make_inputs: MakeInputs) -> None:
    """As in stock: SDPA gives none, and a step has an empty tuple."""
    inputs = make_inputs(QUESTIONS[0])
    for name in ("identical", "vcd", "cmac_imd"):
        with cdkit.attach(model, cdkit.load(name), optimize=optimize):
            given = generate(model, inputs, do_sample=False, **BOTH)
        assert given.attentions == ((),) * 4


@pytest.mark.parametrize("name", ["pai", "cmac"])
@pytest.mark.parametrize("optimize", [True, False])
def test_weights_of_a_method_that_changes_the_original_branch(
    name: str, optimize: bool, eager: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(QUESTIONS[0])
    told = rf"{name} cannot run with output_attentions=True: .* changes the original.*trace="
    with cdkit.attach(eager, cdkit.load(name), optimize=optimize), torch.no_grad():
        for run in (eager.generate, eager):
            with pytest.raises(cdkit.CdkitError, match=told):
                run(**inputs, output_attentions=True)


def test_a_decoding_loop_gives_none(eager: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(eager, cdkit.load("opera"), optimize=True):
        with pytest.raises(cdkit.CdkitError, match=r"output_hidden_states.*brings its own loop"):
            generate(eager, make_inputs(QUESTIONS[0]), num_beams=3, **STATES)
