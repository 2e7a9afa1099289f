"""What the generic adapter refuses, and how a wrong one is found out; known families through it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import cdkit
from cdkit.functional.rope import Rotary
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.model_adapter import ADAPTERS, GENERIC_ADAPTERS
from cdkit.models.generic import Generic
from cdkit.models.layouts.standard import StandardAdapter, runs
from cdkit.probing import adapter_trial

from . import tiny as known
from .generic_tiny import (
    UNKNOWN,
    inputs,
    ours_alone,  # noqa: F401
    told,
)
from .modes import generated
from .tiny import IMAGE, made

# ---- what it does not take -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mllama", r"its text takes the image in by cross-attention \(.*cross_attn\)"),
        ("florence2", "florence2 is an encoder-decoder: its answer attends to the image by cross"),
        ("chameleon", "its decoder encodes the image itself: image tokens are words of its voc"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, words: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=words) as error:
        cdkit.attach(made(UNKNOWN[name]), cdkit.load("cmac"))
    said = str(error.value)
    assert "cdkit list models --all" in said
    assert not any(words in said for words in ("Did you mean", "Error", "has no attribute"))


def test_what_only_calibration_or_readouts_need_is_not_asked_for() -> None:
    """An absolute position, a norm of another name, a head further inside: the trial decides."""
    assert isinstance(adapter_for(made(UNKNOWN["blip-2"])), Generic)


def test_nothing_without_an_encoder_an_image_token_or_text() -> None:
    model: Any = made(UNKNOWN["got_ocr2"])
    words = "its config has no image_token_id and no image_token_index"
    with (
        mock.patch.object(model, "config", SimpleNamespace(model_type="got_ocr2")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        adapter_for(model)
    with pytest.raises(cdkit.CdkitError, match="no module of it has get_image_features"):
        Generic().encoder(model.model.language_model)


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
    (
        {"split_pixels": exchanged, "join_pixels": rejoined},
        "pixels of an image make the features of its own tokens, and of no others",
    ),
    ({"features": nothing_found}, "a stock generate: the check fails with KeyError"),
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


UNFIT: list[tuple[dict[str, Callable[..., Any]], str, str]] = [
    ({"rotary": turned_the_other_way}, "cmac", "cmac moves positions, and .* rotating keys by rot"),
    (
        {"attention": beside_the_attention},
        "pai",
        "pai changes or reads attention, .* only 0 of",
    ),
    ({"logits": without_its_norm}, "dola", "dola reads layers out, and .* logits of the layer"),
]


@pytest.mark.filterwarnings("ignore:.*a generic one is in use")
@pytest.mark.parametrize(("wrong", "method", "words"), UNFIT, ids=[own[1] for own in UNFIT])
def test_a_fault_matters_to_what_uses_it(wrong: dict[str, Any], method: str, words: str) -> None:
    """The method that needs the part is refused, at once where that is known; others run."""
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0, 1)
    with mock.patch.multiple(Generic, **wrong):
        with (
            cdkit.attach(model, cdkit.load(method)),
            pytest.raises(cdkit.CdkitError, match=words),
        ):
            generated(model, given)
        with pytest.raises(cdkit.CdkitError, match=words):
            cdkit.attach(model, cdkit.load(method))
        stock = generated(model, given)
        with cdkit.attach(model, cdkit.load("vcd")):
            assert not generated(model, given).logits[0].equal(stock.logits[0])


# ---- against the families that have an adapter ---------------------------------------------------

REFUSED = {
    "granite4_vision": "the decoder gets nothing of each token but .*Got: vision_mask",
    "ovis2": "embed returns what the decoder gets for text tokens",
    "gemma3": "its image tokens attend to image tokens after them",
    "gemma4": "its image tokens attend to image tokens after them",
    "gemma4_unified": "its image tokens attend to image tokens after them",
    "gemma4-small": "the decoder gets nothing of each token but .* Got: per_layer_inputs",
    "shieldgemma2": "its image tokens attend to image tokens after them",
    "molmo2": "alone, not added to the tokens' embeddings",
    "paligemma": "no state up to the image depends on the text after it",
    "instructblip": "has no rotary embedding|no output head|reads text, too",
    "phi4_multimodal": "its config has no image_token_id",
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
                adapter_trial.try_adapter(adapter_for(model), model, given, attach=cdkit.attach)
            return
        generic = adapter_for(model)
        adapter_trial.try_adapter(generic, model, given, attach=cdkit.attach)
    assert type(generic) is GENERIC_ADAPTERS["generic"]
    assert generic.decoder(model) is own.decoder(model)
    assert generic.lm_module(model) is own.lm_module(model)
    assert generic.encoder(model)[0] is own.encoder(model)[0]
    assert generic.causal_prefix == own.causal_prefix
    found, wanted = generic.rotary(model), own.rotary(model)
    assert found is not None and wanted is not None
    assert [own is None for own in found] == [own is None for own in wanted]
