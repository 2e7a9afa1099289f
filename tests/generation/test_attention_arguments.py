"""What a decoder passes to its attention is honoured, or refused by name before the first token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.generation.model_compatibility import ATTENTION_ARGUMENTS

MakeInputs = Callable[..., dict[str, Tensor]]


def passing(model: Any, name: str, value: Any) -> Any:
    """The model, with an argument more for the attention of its second layer."""

    def add(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {name: value}

    layer = model.model.language_model.layers[1].self_attn
    return layer.register_forward_pre_hook(add, with_kwargs=True)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", ["position_bias", "indices", "sinks"])
def test_an_unknown_argument(
    name: str, optimize: bool, model: Any, make_inputs: MakeInputs
) -> None:
    cdkit.attach(model, cdkit.load("cmac"))  # looks at the keys of the stock model, once
    handle = passing(model, name, torch.ones(4))
    try:
        for method in ("cmac", "pai", "identical"):
            with cdkit.attach(model, cdkit.load(method), optimize=optimize):
                with pytest.raises(cdkit.CdkitError, match=rf"Attention passes {name} to its att"):
                    model.generate(**make_inputs("w1"), max_new_tokens=1)
    finally:
        handle.remove()


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(("name", "value"), [("s_aux", None), ("sliding_window", 4096)])
def test_a_known_argument_or_none(
    name: str, value: Any, optimize: bool, model: Any, make_inputs: MakeInputs
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    with cdkit.attach(model, cdkit.load("cmac"), optimize=optimize):
        wanted = model.generate(**make_inputs("w1"), **asked)
        handle = passing(model, name, value)
        try:
            assert model.generate(**make_inputs("w1"), **asked).equal(wanted)
        finally:
            handle.remove()


def test_the_list_holds_nothing_that_would_be_dropped() -> None:
    assert not ATTENTION_ARGUMENTS & {"sinks", "position_bias", "indices"}
