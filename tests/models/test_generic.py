"""Families that no file in models/ knows, under the generic adapter, which is tried out first."""

import copy
import gc
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import cdkit
from cdkit import selfcheck
from cdkit.adapter import ADAPTERS, GENERIC_ADAPTERS, Rotary, adapter_for
from cdkit.models.generic import Generic
from cdkit.models.standard import StandardAdapter, runs
from cdkit.testing import check_adapter
from cdkit.testing.tools import tolerance

from . import tiny as known
from .generic_tiny import FULL, UNKNOWN, UNMATCHED, inputs, tiny
from .tiny import IMAGE, Inputs, Words, made

STEPS = 3
PRESETS = ("cmac", "vcd", "icd", "pai")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"num_beams": 2},
}
IN_USE = "has no adapter of its own, a generic one is in use"
QUICK = [
    *((name, preset) for name in ("cohere2_vision", "lighton_ocr") for preset in PRESETS),
    *((name, "cmac") for name in ("got_ocr2", "aria", "tiles", "paddleocr_vl")),
    ("got_ocr2", "vcd"),
    ("video_llama_3", "icd"),
    ("deepseek_vl_hybrid", "pai"),
]
CASES = [
    pytest.param(name, preset, marks=() if (name, preset) in QUICK else pytest.mark.slow)
    for name in FULL + UNMATCHED
    for preset in PRESETS
    if name in FULL or preset != "vcd"
]
"""The slow ones: `pytest -m slow`."""


@pytest.fixture(autouse=True)
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and other test files register adapters of their own."""
    ours = {n: a for n, a in ADAPTERS.items() if a.__module__.startswith("cdkit.models.")}
    monkeypatch.setattr(ADAPTERS, "_classes", ours)


def generated(model: Any, given: Inputs, **how: Any) -> Any:
    """Exactly so many tokens, by the model's own `generate`."""
    asked = {"max_new_tokens": STEPS, "do_sample": False, "num_beams": 1} | how
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model.generate(
            **given, **asked, output_logits=True, output_scores=True, return_dict_in_generate=True
        )


def told(model: Any, given: Inputs, method: str = "pai") -> list[str]:
    """What the warnings say while a method answers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with cdkit.attach(model, cdkit.load(method), processor=Words()):
            generated(model, given)
    return [str(warning.message) for warning in caught if IN_USE in str(warning.message)]


def checked(name: str) -> Any:
    """The model, which was tried out: now or by a test before."""
    told(tiny(name), inputs(name, 0, 1))
    return tiny(name)


def answered(
    name: str, preset: str, *rows: int, mode: str = "greedy", optimize: bool = True
) -> Any:
    attached = cdkit.attach(
        checked(name),
        cdkit.load(preset),
        processor=Words(),
        sample_ids=[f"prompt {row}" for row in rows],
        optimize=optimize,
    )
    with attached:
        return generated(tiny(name), inputs(name, *rows), **MODES[mode])


def same_answer(one: Any, other: Any, row: int | None = None) -> None:
    """`one` is this row of `other`, or all of it: its new tokens and what they are drawn from."""
    rows = slice(None) if row is None else slice(row, row + 1)
    assert one.sequences[:, -STEPS:].equal(other.sequences[rows, -STEPS:])
    if one.get("sequences_scores") is not None:  # the rows of its logits are beams
        scores = one.sequences_scores, other.sequences_scores[rows]
        assert torch.allclose(*scores, atol=tolerance(scores[0]))
        return
    for own, whole in zip(one.logits, other.logits, strict=True):
        finite = own[own.isfinite()]
        assert torch.allclose(own, whole[rows], atol=1e-4 * (1 + float(finite.abs().max())))


# ---- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FULL + UNMATCHED)
def test_off_is_the_stock_model(name: str, mode: str) -> None:
    """And nothing is tried out for it."""
    model, given = tiny(name), inputs(name, 0, 1)
    stock = generated(model, given, **MODES[mode])
    with cdkit.attach(model, cdkit.load("plain"), processor=Words()):
        off = generated(model, given, **MODES[mode])
    assert off.sequences.equal(stock.sequences)
    assert all(a.equal(b) for a, b in zip(off.logits, stock.logits, strict=True))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_method(name: str, preset: str) -> None:
    """Unequal prompts side by side answer as alone; faster or not, in every mode."""
    stock = generated(checked(name), inputs(name, 0, 1)).logits[0]
    greedy = answered(name, preset, 0, 1)
    assert bool((greedy.logits[0] != stock).any(-1).all())
    for row in (0, 1):
        same_answer(answered(name, preset, row), greedy, row)
    same_answer(answered(name, preset, 0, 1, optimize=False), greedy)
    for mode in ("sampling", "beams"):
        fast = answered(name, preset, 0, 1, mode=mode)
        same_answer(answered(name, preset, 0, 1, mode=mode, optimize=False), fast)
        if mode == "beams":
            same_answer(answered(name, preset, 1, mode=mode), fast, 1)
    after = generated(tiny(name), inputs(name, 0, 1)).logits[0]
    assert after.equal(stock)


def test_a_method_that_changes_nothing_is_noticed() -> None:
    """The mutation of the comparison above: another row, another method."""
    greedy = answered("got_ocr2", "cmac", 0, 1)
    for wrong in (answered("got_ocr2", "cmac", 1), answered("got_ocr2", "pai", 0)):
        with pytest.raises(AssertionError):
            same_answer(wrong, greedy, 0)


@pytest.mark.parametrize("name", ["got_ocr2", pytest.param("lighton_ocr", marks=pytest.mark.slow)])
def test_the_contract(name: str) -> None:
    checked(name)
    check_adapter(tiny(name), inputs=inputs(name, 0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiles", r"pixel_values has shape \(3, 3, 32, 32\), not \(2, 3, height, width\), for 2"),
        ("video_llama_3", r"pixel_values has shape \(56, 12\)"),
        ("paddleocr_vl", r"pixel_values has shape \(56, 3, 2, 2\)"),
        ("deepseek_vl_hybrid", "pixels come in high_res_pixel_values as well"),
    ],
)
def test_methods_that_change_pixels_need_to_know_whose_they_are(name: str, words: str) -> None:
    words = f"vcd changes pixels, but which are an image's is not known: .*{words}.*own_model"
    with (
        cdkit.attach(checked(name), cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        generated(tiny(name), inputs(name, 0, 1))


def test_padding_of_a_batch_is_no_images_own() -> None:
    """LightOnOCR's images have sizes: what the batch adds to them is cut off again."""
    given = inputs("lighton_ocr", 0, 1)
    images = Generic().split_pixels(tiny("lighton_ocr"), given, [8, 10])
    assert [tuple(image.shape) for image in images] == [(1, 3, 8, 16), (1, 3, 20, 8)]
    given["image_sizes"] = given["image_sizes"] * 100  # of the picture before it was resized
    images = Generic().split_pixels(tiny("lighton_ocr"), given, [8, 10])
    assert [tuple(image.shape) for image in images] == [(1, 3, 20, 16)] * 2


# ---- what the user is told, and when -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("got_ocr2", r"each run of image tokens is an image \(16, 16 tokens\)"),
        ("tiles", r"\(32, 16 tokens\).* Methods that change pixels are refused: pixel_values"),
        ("aria", r"an identical branch gives the stock logits within 0\.001\. See docs/models"),
    ],
)
def test_one_message_a_model(name: str, words: str) -> None:
    model, given = made(UNKNOWN[name]), inputs(name, 0, 1)
    with cdkit.attach(model, cdkit.load("cmac")), pytest.warns(UserWarning, match=words) as caught:
        first = generated(model, given)
    assert [IN_USE in str(warning.message) for warning in caught] == [True]
    assert told(model, given) == told(model, given, "cmac") == []
    with cdkit.attach(model, cdkit.load("cmac")):
        again = generated(model, given)
    same_answer(first, again)
    assert len(told(copy.deepcopy(model), given)) == 1


def test_half_precision_has_a_tolerance_of_its_own() -> None:
    """PaddleOCR-VL's first token is a near-tie here, which one row and two decide differently."""
    model = made(UNKNOWN["paddleocr_vl"]).to(torch.bfloat16)
    given = inputs("paddleocr_vl", 0, 1)
    given["pixel_values"] = given["pixel_values"].to(torch.bfloat16)
    (message,) = told(model, given)
    assert "an identical branch gives the stock logits within 0.05. " in message


def test_without_a_rotary_embedding_that_is_understood_positions_stay() -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0, 1)
    with mock.patch.object(Generic, "rotary", lambda adapter, model: None):
        (message,) = told(model, given)
        assert (
            "in a way that was not found out, so methods with a calibrator are refused" in message
        )
        with pytest.raises(cdkit.CdkitError, match="cmac moves positions by RoPE, but Qwen2Model"):
            cdkit.attach(model, cdkit.load("cmac"))


def test_a_plain_call_is_tried_out_as_well() -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0)
    with torch.no_grad():
        stock = model(**given).logits
        with cdkit.attach(model, cdkit.load("cmac")), pytest.warns(UserWarning, match=IN_USE):
            first = model(**given).logits
        with cdkit.attach(model, cdkit.load("cmac")):
            again = model(**given).logits
        assert first.equal(again) and not torch.allclose(first, stock)
        assert model(**given).logits.equal(stock)


def test_what_was_found_out_goes_with_the_model() -> None:
    model = made(UNKNOWN["got_ocr2"])
    told(model, inputs("got_ocr2", 0))
    gc.collect()
    before = len(selfcheck._passed)
    del model
    gc.collect()
    assert len(selfcheck._passed) == before - 1


def test_the_users_random_numbers_are_left_alone() -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0)
    drawn = []
    for _ in range(2):  # with the trial, and without
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with cdkit.attach(model, cdkit.load("pai")):
                drawn.append(model.generate(**given, max_new_tokens=8, do_sample=True))
    assert drawn[0].equal(drawn[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": torch.full((1, 25), 20)}, "give it some with an image token and"),
        ({"pixel_values": None}, "give it some with an image token and pixel_values first"),
    ],
)
def test_the_first_prompts_must_have_an_image(change: Any, words: str) -> None:
    given = inputs("got_ocr2", 0) | change
    with pytest.raises(cdkit.CdkitError, match=words):
        selfcheck.self_check(Generic(), made(UNKNOWN["got_ocr2"]), given)


def test_the_first_prompts_must_fit_into_the_window() -> None:
    model, given = made(UNKNOWN["cohere2_vision"]), inputs("cohere2_vision", 0)
    filler = torch.full((1, 60), 20)
    given["input_ids"] = torch.cat((given["input_ids"], filler), dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    words = "give it some that fit into its sliding window of 64 tokens first, not 73"
    with cdkit.attach(model, cdkit.load("vcd")), pytest.raises(cdkit.CdkitError, match=words):
        generated(model, given)


@pytest.mark.usefixtures("as_for_a_user")
def test_prompts_are_written_by_a_chat_template_alone() -> None:
    with pytest.raises(cdkit.CdkitError, match="Words has no chat template, and how this family"):
        Generic().prompt("is it?", images=1, processor=Words())


# ---- what it does not take -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lfm2_vl", "layers of its decoder Lfm2Model keep a recurrent state"),
        ("mllama", "layer MllamaCrossAttentionDecoderLayer .* takes the image in by cross-att"),
        ("florence2", "florence2 is an encoder-decoder: its answer attends to the image by cross"),
        ("blip-2", "its decoder OPTDecoder has no rotary embedding called rotary_emb"),
        ("fuyu", "its decoder PersimmonModel has no final norm called norm"),
        ("chameleon", "its decoder encodes the image itself: image tokens are words of its voc"),
        pytest.param(
            "llama4", "Llama4ForConditionalGeneration has no output head called lm_head",
            marks=pytest.mark.filterwarnings("ignore:Casting complex"),
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, words: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=words) as error:
        cdkit.attach(made(UNKNOWN[name]), cdkit.load("cmac"))
    if name != "florence2":
        assert f"no model adapter is called '{name}'" in str(error.value)
        assert "To add a family, subclass cdkit.models.standard.StandardAdapter" in str(error.value)


def test_nothing_without_an_encoder_an_image_token_or_text() -> None:
    model: Any = made(UNKNOWN["got_ocr2"])
    words = "its config has no image_token_id and no image_token_index"
    with (
        mock.patch.object(model, "config", SimpleNamespace(model_type="got_ocr2")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        adapter_for(model)
    with pytest.raises(cdkit.CdkitError, match="no module of it has get_image_features"):
        Generic().check(model.model.language_model)


# ---- mutations: an adapter that is wrong ---------------------------------------------------------


def one_layer_missing(adapter: Any, model: Any) -> list[nn.Module]:
    return list(adapter.decoder(model).layers)[:-1]


def marks_too(adapter: Any, model: Any, ids: Tensor) -> Tensor:
    return runs(ids >= IMAGE)


def turned_the_other_way(adapter: Any, model: Any) -> Any:
    found = StandardAdapter.rotary(adapter, model)
    assert found is not None
    return [own and Rotary(-own.inverse_frequencies, own.interleaved) for own in found]


def turned_round(adapter: Any, output: Any) -> Tensor:
    return StandardAdapter.features(adapter, output).flip(0)


def beside_the_attention(adapter: Any, layer: Any) -> nn.Module:
    module: nn.Module = layer.mlp
    return module


def without_its_norm(adapter: Any, model: Any, hidden: Tensor, *, norm: bool = True) -> Tensor:
    logits: Tensor = model.lm_head(hidden)
    return logits


def exchanged(adapter: Any, model: Any, given: Any, tokens: Any) -> list[Tensor]:
    return list(given["pixel_values"][:, None].flip(0))


def rejoined(adapter: Any, model: Any, images: Any, given: Any) -> Tensor:
    return torch.cat(list(images)).flip(0)


def nothing_found(adapter: Any, output: Any) -> Tensor:
    raise KeyError("pooler_output")


WRONG: list[tuple[dict[str, Callable[..., Any]], str]] = [
    ({"layers": one_layer_missing}, "layers are all 3 of the decoder, each once. Got: 2"),
    ({"image_index": marks_too}, r"there are as many features as image tokens. Got: \(32, "),
    ({"features": turned_round}, "the decoder gets the features in the places of image_index"),
    ({"rotary": turned_the_other_way}, "turning by rotary gives the model's own keys"),
    ({"attention": beside_the_attention}, "only 0 of 3 layers of Qwen2Model came through it"),
    ({"logits": without_its_norm}, "logits of the last layer's output are the model's next"),
    (
        {"split_pixels": exchanged, "join_pixels": rejoined},
        "pixels of an image make the features of its own tokens, and of no others",
    ),
    ({"features": nothing_found}, "a stock generate: KeyError: 'pooler_output'"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=[next(iter(w)) for w, _ in WRONG])
def test_a_wrong_adapter_is_found_out(wrong: dict[str, Any], words: str) -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0, 1)
    stock = generated(model, given)
    words = f"the generic one does not fit: .*{words}.* To add a family"
    with (
        mock.patch.multiple(Generic, **wrong),
        cdkit.attach(model, cdkit.load("pai")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        generated(model, given)
    assert generated(model, given).logits[0].equal(stock.logits[0])
    assert len(told(model, given)) == 1  # a failure is not kept


# ---- against the families that have an adapter ---------------------------------------------------

REFUSED = {
    "ovis2": "embed returns what the decoder gets for text tokens",
    "gemma3": "an identical branch gives the stock model's logits",
    "paligemma": "no state up to the image depends on the text after it",
    "instructblip": "has no rotary embedding|no output head|reads text, too",
}
"""Known families that need more than a generic adapter can find out, and what gives them away."""


@pytest.mark.filterwarnings("ignore:.*a generic one is in use")
@pytest.mark.parametrize("name", [n for n, f in known.FAMILIES.items() if f.model_type in ADAPTERS])
def test_known_families_are_found_out_or_refused(name: str) -> None:
    model, given = known.tiny(name), known.inputs(name, 0, 1)
    own, registered = adapter_for(model), dict(ADAPTERS.items())
    del registered[model.config.model_type]
    with mock.patch.object(ADAPTERS, "_classes", registered):
        if name in REFUSED:
            with pytest.raises(cdkit.CdkitError, match=REFUSED[name]):
                selfcheck.self_check(adapter_for(model), model, given)
            return
        generic = adapter_for(model)
        selfcheck.self_check(generic, model, given)
    assert type(generic) is GENERIC_ADAPTERS["generic"]
    assert generic.decoder(model) is own.decoder(model)
    assert generic.reader(model) is own.reader(model)
    assert generic.encoder(model)[0] is own.encoder(model)[0]
    assert generic.causal_prefix == own.causal_prefix
    found, wanted = generic.rotary(model), own.rotary(model)
    assert found is not None and wanted is not None
    assert [own is None for own in found] == [own is None for own in wanted]
