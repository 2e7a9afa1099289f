"""Gemma 3n: several states of a token, inputs of each layer, shared keys, marks like features.

Its image encoder is of the package timm; `every_type.py` runs that one, where it is installed.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from covers import covering
from torch import Tensor, nn

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.testing import check_adapter

from .gemma3n_tiny import FAMILY, SOUND, given, model_of, stock_embeds
from .modes import (
    MODES,
    PRESETS,
    answered,
    check_batch,
    check_off_and_identical,
    generated,
)
from .plain_cmac import Plain, check_cmac
from .tiny import END, IMAGE, Words, laid_out

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-5}
"""Its routers and its sparse layers compute in float32."""


def run(preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names = [f"prompt {row}" for row in rows]
    return answered(
        model_of(), preset, given(*rows), words=Words(), names=names, optimize=optimize, **how
    )


def test_the_contract() -> None:
    check_adapter(model_of(), inputs=given(1))


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_off_is_stock_and_an_identical_branch_too(how: dict[str, Any]) -> None:
    check_off_and_identical(model_of(), given(0, 1), close=CLOSE, **how)


@pytest.mark.parametrize(("mode", "preset"), covering([*MODES], [*PRESETS, "dola"]))
def test_a_batch_of_unequal_images_is_each_prompt_alone(preset: str, mode: str) -> None:
    check_batch(functools.partial(run, preset), (0, 1), mode, CLOSE)


def test_a_static_cache() -> None:
    dynamic, static = (
        torch.stack(run("cmac", (0, 1), optimize=True, **how).logits)
        for how in ({}, {"cache_implementation": "static"})
    )
    torch.testing.assert_close(static, dynamic, **CLOSE)


# ---- what differs from other families ------------------------------------------------------------


@torch.no_grad()
def test_marks_have_the_embeddings_that_the_stock_model_gives_them() -> None:
    """Of text, of the mark after an image, and of a sound's side."""
    ids = torch.tensor([[1, 20, END, END + 1, SOUND, SOUND + 4, 21]])
    model = model_of()
    assert adapter_for(model).embed(model, ids).equal(stock_embeds(ids))
    assert not model.get_input_embeddings()(ids[:, 2:3]).allclose(stock_embeds(ids)[:, 2:3])


@torch.no_grad()
@pytest.mark.parametrize(("preset", "optimize"), [("deco", True), ("deco", False), ("dola", True)])
def test_a_layer_is_read_out_as_the_last_one(preset: str, optimize: bool) -> None:
    """Its logits are those of the stock model without the layers above, and its norm if so said."""
    model, alone, method = model_of(), given(0), cdkit.load(preset)
    decoder: Any = model.model.language_model
    with cdkit.attach(model, method, trace=("logits",), optimize=optimize) as attached:
        generated(model, alone, max_new_tokens=1)
    readout: Any = method.readout
    for name, passed in readout.layers(len(decoder.layers)).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(decoder._modules, "layers", decoder.layers[:passed])
            if not readout.norm:
                patch.setitem(decoder._modules, "norm", nn.Identity())
            wanted = generated(model, alone, max_new_tokens=1).logits[0]
        found = attached.trace.steps[0].logits[name].float()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# ---- CMAC against a plain recomputation ----------------------------------------------------------


@dataclass(eq=False)
class PlainShared(Plain):
    """Each of its tensors turns by itself; the last layers use keys of layers below them."""

    keys: dict[str, Tensor] = field(default_factory=dict)
    """Kind of layer -> the keys of its last layer with keys of its own, before they are turned."""

    def noted(self, x: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.raw.append(x)
        return self.turn(x, *args, **kwargs)

    @staticmethod
    def embedded(model: Any, ids: Tensor) -> Tensor:
        return stock_embeds(ids)

    def moved(self, module: Any, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        plain_query, *own = self.raw
        self.raw.clear()
        if own:
            self.keys[module.layer_type] = own[0]  # type: ignore[assignment]
        rotary = self.model.model.language_model.rotary_emb
        cos, sin = rotary(value, self.calibrated()[0], module.layer_type)
        return [
            self.turn(x, cos, sin, unsqueeze_dim=2).transpose(1, 2)
            for x in (plain_query, self.keys[module.layer_type])
        ]


@pytest.mark.parametrize("optimize", [True, False])
def test_cmac_is_its_definition(optimize: bool) -> None:
    def other_marks(alone: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = alone["input_ids"]
        return alone | {"input_ids": ids.masked_fill(ids == END, END + 1)}

    check_cmac(
        model_of(), given, (0, 1), optimize=optimize, close=CLOSE, others=[other_marks],
        kind=PlainShared,
    )  # fmt: skip


def test_a_prompt_without_its_image_keeps_the_marks() -> None:
    """The branch of no_image is the stock model without the image's tokens."""
    model, alone = model_of(), given(0)
    with cdkit.attach(model, cdkit.load("no_image"), trace=("logits",)) as attached:
        generated(model, alone, max_new_tokens=1)
    ids = alone["input_ids"][:, alone["input_ids"][0] != IMAGE]
    wanted = generated(model, {"input_ids": ids}, max_new_tokens=1).logits[0]
    (branch,) = cdkit.load("no_image").branches
    found = attached.trace.steps[0].logits[branch.name].float()
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_the_prompt_of_two_pictures_has_two_images() -> None:
    model, both = model_of(), laid_out(FAMILY, 1)
    index = adapter_for(model).image_index(model, both["input_ids"])[0]
    assert index[index >= 0].bincount().tolist() == [16, 16]
