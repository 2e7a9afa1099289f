"""LLaVA's kin: pictures as tiles, of any shape, with marks inside; layers without RoPE."""

import copy
import functools
import re
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from covers import a_third, covering
from torch import Tensor

import cdkit
from cdkit.branches.layout import make_layout
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.models.aya_vision import AyaVision
from cdkit.models.layouts.standard import StandardAdapter
from cdkit.models.ovis2 import Ovis2
from cdkit.testing import check_adapter

from .kin_tiny import (
    ANY_SHAPE,
    ANY_SIZE,
    BOS,
    IMAGE,
    KIN,
    ONE,
    PAIR,
    TILES,
    TWO,
    Prompt,
    Words,
    inputs,
    pictures,
    tiny,
    written,
)
from .modes import CLOSE, PRESETS, answered, check_batch, generated

NAMES = {ONE: "one", TWO: "two", PAIR: "pair"}
STOCK_REFUSES = (("ovis2", "prefill_chunk_size"), ("janus", "use_cache"))
"""What raises without cdkit, too."""


def run(
    name: str,
    preset: str,
    prompts: Sequence[Prompt],
    *,
    optimize: bool = True,
    named: bool = True,
    **how: Any,
) -> Any:
    names = [NAMES[prompt] for prompt in prompts] if named else None
    given = inputs(name, *prompts)
    return answered(tiny(name), preset, given, words=Words(), names=names, optimize=optimize, **how)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, **CLOSE)


# ---- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", a_third(KIN))
def test_the_contract(name: str) -> None:
    check_adapter(tiny(name), inputs=inputs(name, ONE))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in KIN
        for how in ({}, {"prefill_chunk_size": 5}, {"use_cache": False})
        if not any((name, asked) in STOCK_REFUSES for asked in how)
    ],
)
def test_off_is_stock(name: str, how: dict[str, Any]) -> None:
    given = inputs(name, ONE, TWO)
    stock = torch.stack(generated(tiny(name), given, **how).logits)
    with cdkit.attach(tiny(name), cdkit.load("vcd", alpha=0.0, beta=0.0)):
        off = torch.stack(generated(tiny(name), given, **how).logits)
    assert off.equal(stock)


@functools.cache
def stock_logits(name: str) -> Tensor:
    """Of the first token after ONE."""
    logits: Tensor = generated(tiny(name), inputs(name, ONE)).logits[0][0]
    return logits


@pytest.mark.parametrize(("name", "preset"), covering(KIN, PRESETS))
def test_a_batch_of_unequal_images_is_each_prompt_alone(name: str, preset: str) -> None:
    """A prompt with two images, and images of three sizes; test_admission has the other modes."""
    both = check_batch(functools.partial(run, name, preset), (PAIR, ONE, TWO), "greedy")
    stock = stock_logits(name)
    assert not torch.allclose(both.logits[0][1], stock, rtol=0, atol=1e-3), "nothing is changed"


@pytest.mark.parametrize("name", KIN)
def test_without_names_a_sample_draws_the_same_noise_beside_any_other(name: str) -> None:
    """The padding that a batch mate causes, of tiles or of pixels, is none of the sample's."""
    both = run(name, "vcd", [ONE, TWO], named=False).logits[0]
    for row, prompt in enumerate((ONE, TWO)):
        alone = run(name, "vcd", [prompt], named=False).logits[0]
        close(both[row], alone[0])


# ---- where the images are ------------------------------------------------------------------------


@pytest.mark.parametrize("name", KIN)
def test_images_are_told_apart_and_keep_their_pixels(name: str) -> None:
    given = inputs(name, PAIR, ONE)
    adapter = adapter_for(tiny(name))
    index = adapter.image_index(tiny(name), given["input_ids"])
    assert (index >= 0).equal(given["input_ids"] == IMAGE)
    counts = [
        int((row == image).sum()) for row, image in ((index[0], 0), (index[0], 1), (index[1], 0))
    ]
    own = [written(name, *size).count(IMAGE) for size in ((2, 1), (1, 2), (1, 2))]
    assert counts == own and int(index.max()) == 1
    images = adapter.split_pixels(tiny(name), given, counts)
    for image, size in zip(images, ((2, 1), (1, 2), (1, 2)), strict=True):
        assert image.equal(pictures(name, *size))
    joined = adapter.join_pixels(tiny(name), images, given)
    assert joined.equal(given["pixel_values"])


@pytest.mark.parametrize("name", (*TILES, *ANY_SIZE))
def test_images_side_by_side(name: str) -> None:
    """Their own marks tell them apart."""
    ids = torch.tensor([[BOS, *written(name, 2, 1), *written(name, 1, 2), 20, 21]])
    index = adapter_for(tiny(name)).image_index(tiny(name), ids)[0]
    first = written(name, 2, 1)
    assert (index[1 : 1 + len(first)] <= 0).all()
    assert int((index == 0).sum()) == first.count(IMAGE)
    assert int((index == 1).sum()) == written(name, 1, 2).count(IMAGE)


@pytest.mark.parametrize("name", ANY_SHAPE)
def test_images_side_by_side_are_refused_where_nothing_tells_them_apart(name: str) -> None:
    side_by_side = (BOS, (2, 1), (1, 2), 20, 21)
    words = "the prompts have 1 images, each a run of image tokens, but pixel_values has shape "
    with (
        cdkit.attach(tiny(name), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words + r".*put text, as a line break, between"),
    ):
        tiny(name).generate(**inputs(name, side_by_side), max_new_tokens=1)


@pytest.mark.parametrize("name", ("aya_vision", "ovis2", "pixtral", "mistral3"))
def test_marks_inside_an_image_are_no_text(name: str) -> None:
    ids = inputs(name, TWO)["input_ids"]
    index = adapter_for(tiny(name)).image_index(tiny(name), ids)
    layout = make_layout(index, torch.ones_like(ids, dtype=torch.bool))
    last = int((index[0] >= 0).nonzero()[-1])
    assert layout.first_text == last + 1 and not layout.is_text[0, : last + 1].any()


def test_one_line_is_an_image_too() -> None:
    model = tiny("pixtral")
    for ids in ([BOS, IMAGE, IMAGE, 84, 20], [BOS, IMAGE, 84, IMAGE, 84, 20], [BOS, 20, 21]):
        index = adapter_for(model).image_index(model, torch.tensor([ids]))[0]
        images = 0 if IMAGE not in ids else ids.count(84)
        assert int(index.max()) + 1 == images


# ---- layers without a rotary embedding -----------------------------------------------------------


def test_layers_without_rope_are_found_out() -> None:
    rotary = adapter_for(tiny("aya_vision")).rotary(tiny("aya_vision"))
    assert rotary is not None and [own is None for own in rotary] == [False, False, False, True]
    assert all(own.interleaved for own in rotary if own is not None)


@pytest.mark.parametrize("name", KIN)
def test_elsewhere_every_layer_turns(name: str) -> None:
    rotary = adapter_for(tiny(name)).rotary(tiny(name))
    assert rotary is not None and (None in rotary) == (name == "aya_vision")


def test_bfloat16_and_an_attachment_in_force_do_not_matter() -> None:
    model = copy.deepcopy(tiny("aya_vision")).to(torch.bfloat16)
    with cdkit.attach(model, cdkit.load("cmac")):
        rotary = adapter_for(model).rotary(model)
    assert rotary is not None and [own is None for own in rotary] == [False, False, False, True]


def test_the_contract_sees_a_layer_that_does_not_turn() -> None:
    def everywhere(adapter: AyaVision, model: Any) -> Any:
        found = StandardAdapter.rotary(adapter, model)
        assert found is not None
        return [found[0]] * len(found)

    with (
        mock.patch.object(AyaVision, "rotary", everywhere),
        pytest.raises(AssertionError, match="rotating keys by rotary gives the model's keys"),
    ):
        check_adapter(tiny("aya_vision"), inputs=inputs("aya_vision", ONE))


def test_the_contract_sees_marks_that_the_image_side_embeds() -> None:
    with (
        mock.patch.object(Ovis2, "embed", StandardAdapter.embed),
        pytest.raises(AssertionError, match="embed returns what the decoder gets for text tokens"),
    ):
        check_adapter(tiny("ovis2"), inputs=inputs("ovis2", ONE))


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", (*ANY_SHAPE, "mistral3"))
def test_sizes_must_be_given(name: str) -> None:
    given = {key: value for key, value in inputs(name, ONE).items() if key != "image_sizes"}
    words = f"{type(tiny(name)).__name__} needs image_sizes beside pixel_values"
    with (
        cdkit.attach(tiny(name), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny(name).generate(**given, max_new_tokens=1)


@pytest.mark.parametrize("name", TILES)
def test_tiles_must_be_those_of_the_prompts(name: str) -> None:
    given = inputs(name, ONE)
    given["pixel_values"] = given["pixel_values"][:-1]
    words = "image tokens for 3 tiles, 4 tokens each, but pixel_values holds 2 tiles"
    with (
        cdkit.attach(tiny(name), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny(name).generate(**given, max_new_tokens=1)


def test_sizes_must_be_as_many_as_images() -> None:
    given = inputs("mistral3", ONE)
    given["image_sizes"] = given["image_sizes"].repeat(2, 1)
    with (
        cdkit.attach(tiny("mistral3"), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match="image_sizes has 2 sizes for 1 images; give each"),
    ):
        tiny("mistral3").generate(**given, max_new_tokens=1)


def test_janus_draws_no_picture_with_a_method() -> None:
    words = re.escape("cannot run with generation_mode='image': methods need an answer of text")
    with (
        cdkit.attach(tiny("janus"), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        tiny("janus").generate(**inputs("janus", ONE), generation_mode="image", max_new_tokens=1)


def test_other_towers_are_refused() -> None:
    model = tiny("llava")
    with (
        mock.patch.object(model.config.vision_config, "model_type", "dinov2"),
        pytest.raises(cdkit.CdkitError, match="LLaVA with a dinov2 tower is not supported yet"),
    ):
        adapter_for(model)


def test_several_images_a_prompt_have_one_tile_each() -> None:
    """As LLaVA-OneVision's processor lays them out, counted by batch_num_images."""
    given = inputs("llava_onevision", PAIR, ONE) | {"batch_num_images": torch.tensor([2, 1])}
    model = tiny("llava_onevision")
    images = adapter_for(model).split_pixels(model, given, [1, 1, 1])
    assert [len(image) for image in images] == [1, 1, 3]
