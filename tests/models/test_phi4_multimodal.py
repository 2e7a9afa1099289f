"""Phi-4 multimodal: its decoder encodes images itself, its frequencies change with the length."""

import functools
from dataclasses import replace
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.models.layouts.standard import flat
from cdkit.testing import check_adapter

from . import tiny as families
from .modes import CLOSE, MODES, answered, check_batch, check_off_and_identical, generated
from .plain_cmac import check_cmac
from .tiny import IMAGE, QUESTIONS, Inputs, of_pictures

NAME = "phi4_multimodal"
LIMIT = 512
PICTURES = ((0, 1), (1,))
"""Of each of two prompts: two unequal ones, and the second of them alone."""


def model() -> Any:
    return families.tiny(NAME)


def several(*rows: int) -> Inputs:
    """Prompts of these pictures, a token of text between two."""
    return families.laid_out(replace(families.FAMILIES[NAME], prompt=_pictures), *rows)


def _pictures(row: int) -> tuple[list[int], Inputs]:
    parts = [families.FAMILIES[NAME].prompt(picture) for picture in PICTURES[row]]
    runs = [[IMAGE] * ids.count(IMAGE) for ids, _ in parts]
    image = [token for run in runs for token in (*run, 12)]
    return [1, 10, *image, *QUESTIONS[row]], of_pictures([image for _, image in parts])


def run(preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names = [f"prompt {row}" for row in rows]
    kept: dict[str, Any] = {"words": families.Words(), "names": names, "optimize": optimize}
    return answered(model(), preset, several(*rows), **kept, **how)


def first_states(given: Inputs, preset: str | None = None) -> list[Tensor]:
    """What goes into the first layer at each call of the decoder."""
    seen: list[Tensor] = []
    layer = adapter_for(model()).layers(model())[0]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        if preset is None:
            generated(model(), given)
        else:
            with cdkit.attach(model(), cdkit.load(preset), optimize=False):
                generated(model(), given)
    finally:
        handle.remove()
    return seen


def refused(given: Inputs, words: str, preset: str = "vcd", **how: Any) -> None:
    before = torch.stack(generated(model(), several(0)).logits)
    attached = cdkit.attach(model(), cdkit.load(preset), processor=families.Words())
    with attached, pytest.raises(cdkit.CdkitError, match=words):
        generated(model(), given, **how)
    assert torch.stack(generated(model(), several(0)).logits).equal(before)


# ---- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["greedy", "sampling"])
def test_off_is_stock_and_an_identical_branch_too(mode: str) -> None:
    check_off_and_identical(model(), several(0, 1), **MODES[mode])


def test_the_decoder_gets_what_it_would_make_itself() -> None:
    """To the bit: the embeddings of the text and the features of the images."""
    wanted = first_states(several(0, 1))[0]
    original, branch = first_states(several(0, 1), "identical")[:2]
    assert original.equal(wanted) and branch.equal(wanted)
    original, branch = first_states(several(0, 1), "vcd")[:2]
    on_image = several(0, 1)["input_ids"] == IMAGE
    assert original.equal(wanted) and branch[~on_image].equal(wanted[~on_image])
    assert not branch[on_image].allclose(wanted[on_image], atol=1e-2)


@pytest.mark.parametrize(
    ("preset", "mode"), [("cmac", "greedy"), ("vcd", "sampling"), ("icd", "greedy")]
)
def test_a_batch_of_several_images_is_each_prompt_alone(preset: str, mode: str) -> None:
    check_batch(functools.partial(run, preset), (0, 1), mode, CLOSE)


@pytest.mark.parametrize("optimize", [True, False])
def test_cmac_is_its_definition(optimize: bool) -> None:
    close = {"rtol": 0, "atol": 2e-5}
    check_cmac(model(), several, (0, 1), optimize=optimize, close=close, seen=1e-3)


@pytest.mark.parametrize("optimize", [True, False])
def test_noise_on_every_crop(optimize: bool) -> None:
    """The branch of VCD is the stock model on the noised pictures."""
    given, seen = several(0, 1), list[Tensor]()
    encoder: Any = adapter_for(model()).encoder(model())[0]
    embed = encoder.img_processor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    method = cdkit.load("vcd")
    try:
        with cdkit.attach(model(), method, trace=("logits",), optimize=optimize) as attached:
            generated(model(), given, max_new_tokens=2)
    finally:
        embed.remove()
    stock, noised = (own.view_as(given["image_pixel_values"]) for own in seen)
    assert stock.equal(given["image_pixel_values"])
    moved = (noised != stock).flatten(2).any(dim=-1)
    assert moved.tolist() == [[True, True, False], [True] * 3, [True] * 3]
    other = generated(model(), given | {"image_pixel_values": noised}, max_new_tokens=1).logits[0]
    found = attached.trace.steps[0].logits[method.branches[0].name].float()
    torch.testing.assert_close(found, other, rtol=0, atol=2e-5)


def test_the_images_of_a_prompt_are_told_apart() -> None:
    adapter, given = adapter_for(model()), several(0, 1)
    index = adapter.image_index(model(), given["input_ids"])
    tokens = [int(n) for row in index for n in row[row >= 0].bincount()]
    assert tokens == [13, 15, 15]
    pictures = adapter.split_pixels(model(), given, tokens)
    assert [len(own) for own in pictures] == [2, 3, 3] and pictures[1].equal(pictures[2])
    joined = adapter.join_pixels(model(), pictures, given)
    assert joined.equal(given["image_pixel_values"])
    side_by_side = given | {"input_ids": given["input_ids"][given["input_ids"] != 12][None]}
    words = r"image_pixel_values has shape \(3, 3, 3, 8, 8\) .* put text, as a line break, between"
    with pytest.raises(cdkit.CdkitError, match=words):
        adapter.split_pixels(model(), side_by_side, [13 + 15, 15])


@pytest.mark.parametrize("how", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_what_generate_would_mix_up_is_refused(how: dict[str, Any]) -> None:
    """It repeats each of two images, so the rows of a prompt get the first one twice."""
    words = "a prompt has 2 images, and Hugging Face's generate repeats each .* leave both at 1"
    refused(several(0, 1), words, **how)


def test_without_a_cache() -> None:
    """The prompts come again at each step, with what was generated behind them."""
    for preset in ("plain", "vcd"):
        cached, not_cached = (
            torch.stack(run(preset, (0, 1), optimize=True, use_cache=own).logits)
            for own in (True, False)
        )
        torch.testing.assert_close(not_cached, cached, **CLOSE)


@pytest.mark.parametrize("name", ["image_sizes", "image_attention_mask"])
def test_what_comes_with_the_pixels_is_asked_for(name: str) -> None:
    given = several(0)
    del given[name]
    refused(given, f"needs {name} beside image_pixel_values")


def test_sounds_are_refused() -> None:
    given = several(0) | {"audio_input_features": torch.zeros(1, 16, 16)}
    refused(given, "audio_input_features came with the prompts, and .* read no sounds")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_picture_without_padding(kernel: str) -> None:
    """By sdpa the stock encoder is causal where no crop of a batch has padding."""
    own = families.made(families.FAMILIES[NAME])
    own.set_attn_implementation({"vision_config": kernel})
    adapter, features = adapter_for(own), list[Tensor]()
    owner, name = adapter.encoder(own)
    for rows in ((0,), (0, 1)):
        given = families.inputs(NAME, *rows)
        given["image_attention_mask"][0] = 1
        asked = adapter.encoder_kwargs(own, given)
        assert asked is not None
        features.append(adapter.features(getattr(owner, name)(**asked))[:13])
        check_off_and_identical(own, given)
    alone, beside = features
    same = torch.allclose(alone, beside, rtol=1e-6)
    assert same == (kernel == "eager"), "the adapter need not warn of it any more"


# ---- positions -----------------------------------------------------------------------------------


def test_an_answer_ends_before_the_frequencies_change() -> None:
    given = several(0)
    new = LIMIT - given["input_ids"].shape[1]
    words = f"runs up to {LIMIT} tokens here, as all rotary frequencies .* may reach {LIMIT + 1}"
    refused(given, words, max_new_tokens=new + 1)
    refused(given, words, preset="cmac", max_new_tokens=new + 1)
    with cdkit.attach(model(), cdkit.load("cmac")):
        generated(model(), given, max_new_tokens=new, stop_strings=None, max_time=0.0)


def test_a_longer_prompt_of_a_branch_counts_too() -> None:
    """The instruction of ICD's branch ends behind the last token that all frequencies are for."""
    given = several(0)
    new = LIMIT - given["input_ids"].shape[1]
    refused(given, f"runs up to {LIMIT} tokens here", preset="icd", max_new_tokens=new)


def test_a_long_text_changes_nothing_for_the_next() -> None:
    """The model keeps the frequencies of its latest call; the method has its own."""
    given, method = several(0, 1), cdkit.load("cmac")
    with cdkit.attach(model(), method):
        wanted = torch.stack(generated(model(), given).logits)
        rotary: Any = model().model.rotary_emb
        before = rotary.inv_freq.clone()
        rotary(torch.zeros(1), torch.tensor([[LIMIT + 1]]))
        assert not rotary.inv_freq.equal(before)
        found = torch.stack(generated(model(), given).logits)
    assert found.equal(wanted)


# ---- weights beside the checkpoint ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is dep:DeprecationWarning")
def test_with_the_weights_for_pictures() -> None:
    """LoRA in the fused layers, as the checkpoint's folder `vision-lora` has it."""
    own, given = families.made(families.FAMILIES[NAME]), several(0, 1)
    plain = torch.stack(generated(own, given).logits)
    layers = r"model\.layers.*(qkv_proj|o_proj|gate_up_proj|down_proj)"
    lora = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
    peft.inject_adapter_in_model(lora, own, "vision")  # as `load_adapter` does
    own.eval().double()
    assert not torch.stack(generated(own, given).logits).allclose(plain, atol=1e-2)
    check_off_and_identical(own, given)
    check_cmac(own, several, (0, 1), optimize=True, close={"rtol": 0, "atol": 2e-5}, seen=1e-3)


# ---- an adapter that is wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"features": lambda self, output: flat(output).flip(0)},
            "the decoder gets the features in the places of image_index",
        ),
        ({"rope_limit": lambda self, model: 2 * LIMIT}, "that of all tokens up to rope_limit"),
        ({"rope_limit": lambda self, model: None}, "rotary is None where the frequencies change"),
    ],
)
def test_it_is_found_out(wrong: dict[str, Any], words: str) -> None:
    right = ADAPTERS[NAME]().rotary(model())
    wrong = {"rotary": lambda self, model: right} | wrong
    with (
        mock.patch.multiple(ADAPTERS[NAME], **wrong),
        pytest.raises(AssertionError, match=words),
    ):
        check_adapter(model(), inputs=several(0))
