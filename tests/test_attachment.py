"""Attaching and leaving: the model is the stock model again, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from generation.presets import RUNNABLE, in_turn, takes_plain_calls
from torch import Tensor

import cdkit

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]


def state_of(model: Any) -> dict[str, Any]:
    """Weights, the attributes of every module (by identity), and the configs."""
    containers = (dict, set, list)
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "attributes": {
            name: {
                key: (id(value), len(value) if isinstance(value, containers) else None)
                for key, value in vars(module).items()
            }
            for name, module in model.named_modules()
        },
        "hooks": {
            name: [list(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "configs": [
            dict(vars(config))
            for config in (
                model.config,
                model.config.text_config,
                model.config.vision_config,
                model.generation_config,
            )
        ],
    }


def assert_restored(model: Any, before: dict[str, Any]) -> None:
    after = state_of(model)
    weights = before.pop("weights"), after.pop("weights")
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert tensor.equal(weights[1][name]), name
    assert after == before


@pytest.fixture
def own(make_model: Callable[..., Any]) -> Any:
    return make_model()


@pytest.mark.parametrize("name", in_turn(RUNNABLE, 3))
def test_leaving_restores_everything(
    name: str, own: Any, processor: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    stock = logits_of(own, inputs)  # the first call may fill caches of the model's own
    before = state_of(own)
    with cdkit.attach(own, cdkit.load(name), processor=processor, trace=("mask", "logits")):
        assert state_of(own)["attributes"] != before["attributes"]
        own.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)
        if takes_plain_calls(cdkit.load(name)):
            with torch.no_grad():
                own(**inputs, logits_to_keep=1)
    assert_restored(own, before)
    assert logits_of(own, inputs).equal(stock)


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["block", "generate", "forward"])
def test_exceptions_restore_too(
    where: str, own: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    stock = logits_of(own, inputs)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise Broken

    handle = None
    if where == "forward":
        handle = own.model.language_model.layers[1].mlp.register_forward_hook(fail)
    before = state_of(own)
    with pytest.raises(Broken):
        with cdkit.attach(own, cdkit.load("cmac")):
            if where == "block":
                raise Broken
            own.generate(**inputs, max_new_tokens=3, logits_processor=[fail])
    assert_restored(own, before)
    if handle is not None:
        handle.remove()
    assert logits_of(own, inputs).equal(stock)


def test_a_failed_generate_does_not_harm_the_next(
    own: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    def fail(*args: Any) -> Any:
        raise Broken

    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(own, cdkit.load("cmac")):
        wanted = logits_of(own, inputs)
        inside = state_of(own)
        with pytest.raises(Broken):
            own.generate(**inputs, max_new_tokens=3, logits_processor=[fail])
        assert state_of(own)["attributes"] == inside["attributes"]  # still attached, no guard left
        assert logits_of(own, inputs).equal(wanted)


def test_attaching_again_replaces(
    own: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    stock = logits_of(own, inputs)
    with cdkit.attach(own, cdkit.load("vcd"), sample_ids=["a", "b"]):
        vcd = logits_of(own, inputs)
    before = state_of(own)
    with cdkit.attach(own, cdkit.load("cmac")):
        with cdkit.attach(own, cdkit.load("vcd"), sample_ids=["a", "b"]):
            assert logits_of(own, inputs).equal(vcd)
        assert logits_of(own, inputs).equal(stock)  # the outer one was replaced, not stacked
    assert_restored(own, before)


def test_an_idle_method_replaces_too(
    own: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    stock = logits_of(own, inputs)
    with cdkit.attach(own, cdkit.load("cmac")):
        with cdkit.attach(own, cdkit.load("plain")):
            assert logits_of(own, inputs).equal(stock)


def test_one_attachment_can_be_entered_again(
    own: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    logits_of(own, inputs)  # the first call may fill caches of the model's own
    before = state_of(own)
    attached = cdkit.attach(own, cdkit.load("cmac"))
    runs = []
    for _ in range(2):
        with attached:
            runs.append(logits_of(own, inputs))
        assert_restored(own, before)
        before = state_of(own)
    assert runs[0].equal(runs[1])


def test_detach_ends_it_early(
    own: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    stock = logits_of(own, inputs)
    with cdkit.attach(own, cdkit.load("cmac")) as run:
        run.detach()
        assert logits_of(own, inputs).equal(stock)


def test_two_models_at_once(
    make_model: Callable[..., Any], make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    first, second, third = (make_model(seed) for seed in (1, 2, 3))
    stock = logits_of(third, inputs)
    wanted = []
    for model, name in ((first, "cmac"), (second, "attention_mask")):
        with cdkit.attach(model, cdkit.load(name)):
            wanted.append(logits_of(model, inputs))
    with cdkit.attach(first, cdkit.load("cmac")):
        with cdkit.attach(second, cdkit.load("attention_mask")):
            given = [logits_of(model, inputs) for model in (first, second)]
            assert logits_of(third, inputs).equal(stock)
    assert given[0].equal(wanted[0]) and given[1].equal(wanted[1])


def test_the_method_runs_whatever_attention_the_model_was_loaded_with(
    make_model: Callable[..., Any], make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    runs = []
    for implementation in ("sdpa", "eager"):
        model = make_model()
        model.set_attn_implementation(implementation)
        with cdkit.attach(model, cdkit.load("cmac")):
            runs.append(logits_of(model, inputs))
        assert model.config.text_config._attn_implementation == implementation
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-5)


def test_train_mode_is_refused(own: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(own, cdkit.load("cmac")):
        own.train()
        with pytest.raises(cdkit.CdkitError, match=r"inference only: call model\.eval\(\) first"):
            own.generate(**inputs, max_new_tokens=1)
        own.eval()
    own.train()
    with pytest.raises(cdkit.CdkitError, match=r"inference only: call model\.eval\(\) first"):
        with cdkit.attach(own, cdkit.load("cmac")):
            pass
    assert "generate" not in vars(own)


def test_gradients_are_refused(own: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(own, cdkit.load("cmac")):
        with pytest.raises(cdkit.CdkitError, match=r"without gradients: .*inference_mode"):
            own(**make_inputs(QUESTIONS[0]))
        with torch.inference_mode():
            own(**make_inputs(QUESTIONS[0]))


def test_the_signatures_stay(own: Any) -> None:
    """Hugging Face's generate looks at them, and so does an editor."""
    import inspect

    before = [inspect.signature(own.generate), inspect.signature(own.forward)]
    with cdkit.attach(own, cdkit.load("cmac")):
        assert [inspect.signature(own.generate), inspect.signature(own.forward)] == before


@pytest.mark.usefixtures("as_for_a_user")
def test_without_a_block_the_first_generate_warns(own: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    stock = own.generate(**inputs, max_new_tokens=3)
    before = state_of(own)
    kept = [cdkit.attach(own, cdkit.load(name)) for name in ("cmac", "vcd")]
    with pytest.warns(cdkit.CdkitWarning, match="acts in its block alone, and no block was ent"):
        assert own.generate(**inputs, max_new_tokens=3).equal(stock)
    own.generate(**inputs, max_new_tokens=3)  # told once
    assert_restored(own, before)
    with kept[0]:
        own.generate(**inputs, max_new_tokens=3)


def test_an_attachment_that_is_dropped_leaves_nothing(own: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    own.generate(**inputs, max_new_tokens=3)
    before = state_of(own)
    cdkit.attach(own, cdkit.load("cmac"))
    assert_restored(own, before)
    runs = [cdkit.attach(own, cdkit.load(name)) for name in ("cmac", "vcd")]
    for run in runs:
        with run:
            own.generate(**inputs, max_new_tokens=3)
    own.generate(**inputs, max_new_tokens=3)
    before = state_of(own)
    idle = cdkit.attach(own, cdkit.load("plain"))  # it has nothing to do
    assert_restored(own, before)
    del runs, idle
