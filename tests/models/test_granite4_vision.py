"""Granite 4 Vision: features of several encoder layers, added in several layers of the decoder."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.models.granite4_vision import Granite4Vision

from . import tiny as families
from .modes import CLOSE, MODES, answered, check_batch, generated
from .plain_cmac import check_cmac

NAME = "granite4_vision"


def run(preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names, given = [f"prompt {row}" for row in rows], families.inputs(NAME, *rows)
    words = families.Words()
    return answered(
        families.tiny(NAME), preset, given, words=words, names=names, optimize=optimize, **how
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preset", ["cmac", "vcd", "icd"])
def test_a_batch_of_unequal_images_is_each_prompt_alone(preset: str, mode: str) -> None:
    check_batch(functools.partial(run, preset), (0, 1), mode, CLOSE)


@pytest.mark.parametrize("optimize", [True, False])
def test_cmac_is_its_definition(optimize: bool) -> None:
    prompts = functools.partial(families.inputs, NAME)
    close = {"rtol": 0, "atol": 2e-5}
    check_cmac(families.tiny(NAME), prompts, (0, 1), optimize=optimize, close=close)


@pytest.mark.parametrize("optimize", [True, False])
def test_noise_reaches_every_layer(optimize: bool) -> None:
    """The branch of VCD is the stock model on the noised picture, in each layer's features."""
    model, given = families.tiny(NAME), families.inputs(NAME, 0)
    seen: list[Tensor] = []
    encoder = adapter_for(model).encoder(model)[0]
    encode: Any = encoder.get_image_features

    @functools.wraps(encode)  # generate reads its arguments
    def noted(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(pixel_values)
        return encode(pixel_values, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "get_image_features", noted)
        method = cdkit.load("vcd")
        with cdkit.attach(model, method, trace=("logits",), optimize=optimize) as attached:
            generated(model, given, max_new_tokens=1)
    stock, noised = seen
    assert stock.equal(given["pixel_values"]) and not noised.allclose(stock, atol=0.1)
    other = generated(model, given | {"pixel_values": noised}, max_new_tokens=1).logits[0]
    (branch,) = method.branches
    found = attached.trace.steps[0].logits[branch.name].float()
    torch.testing.assert_close(found, other, rtol=0, atol=2e-5)


def test_each_layer_gets_its_own_features() -> None:
    model = families.tiny(NAME)
    mask, added = (
        torch.ones(1, 2, dtype=torch.bool),
        [torch.full((2, 3), float(i)) for i in range(6)],
    )
    given = Granite4Vision().deepstack_kwargs(model, (mask, added))
    # layer 4 is named twice: the later features stand, as in transformers
    assert {n: float(own[0, 0]) for n, own in given["deepstack_features"].items()} == {
        1: 0.0, 4: 5.0, 0: 2.0, 2: 3.0, 3: 4.0,
    }  # fmt: skip


def test_methods_that_change_features_are_refused_at_once() -> None:
    words = "attended_image distorts the image features .*Granite4VisionTextModel gets zeros there"
    with pytest.raises(cdkit.CdkitError, match=words):
        cdkit.attach(families.tiny(NAME), cdkit.load("attended_image"))
