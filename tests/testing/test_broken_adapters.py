"""The contract suite finds each broken promise of a model adapter: one adapter for each."""

import abc
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from models.tiny import inputs, tiny
from torch import Tensor, nn

import cdkit
from cdkit.functional.rope import Rotary
from cdkit.models.llava import Llava
from cdkit.testing import check_adapter

pytestmark = pytest.mark.contract

MakeInputs = Callable[..., dict[str, Tensor]]


class Unnamed(Llava):
    """No name on the hub."""

    example: ClassVar[str] = "llava"


class Undecided(Llava):
    """Neither True nor False."""

    causal_prefix: ClassVar[Any] = None


class OtherDecoder(Llava):
    """A decoder that no model runs."""

    def decoder(self, model: Any) -> nn.Module:
        return type(super().decoder(model))(super().decoder(model).config)


class OtherReader(Llava):
    """Names a module that is not in the model."""

    def lm_module(self, model: Any) -> nn.Module:
        return nn.ModuleDict({"lm_head": model.lm_head})


class SilentReader(Llava):
    """A module that generate never calls."""

    def lm_module(self, model: Any) -> nn.Module:
        module: nn.Module = model.model.spare
        return module


class InnerDecoder(Llava):
    """The outer model, whose forward gets ids."""

    def decoder(self, model: Any) -> nn.Module:
        module: nn.Module = model.model
        return module

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(model.model.language_model.layers)


class WrongEncoder(Llava):
    """An attribute that is no method."""

    def encoder(self, model: Any) -> tuple[nn.Module, str]:
        return model.model, "get_picture_features"


class UnusedEncoder(Llava):
    """A method that generate never calls."""

    def encoder(self, model: Any) -> tuple[nn.Module, str]:
        return model.model, "num_parameters"


class VisionLayers(Llava):
    """The layers of the image encoder."""

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(model.model.vision_tower.encoder.layers)


class FewLayers(Llava):
    """All layers but the first."""

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return super().layers(model)[1:]


class TurnedLayers(Llava):
    """The last layer first."""

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return super().layers(model)[::-1]


class WholeLayer(Llava):
    """The layer is not its attention."""

    def attention(self, layer: Any) -> nn.Module:
        return layer  # type: ignore[no-any-return]


class Mute(Llava):
    """A prompt without the question."""

    def prompt(
        self, question: str, *, images: int, processor: Any, system: str | None = None
    ) -> str:
        return super().prompt("?", images=images, processor=processor)


class OneImage(Llava):
    """Always one placeholder."""

    def prompt(
        self, question: str, *, images: int, processor: Any, system: str | None = None
    ) -> str:
        return super().prompt(question, images=1, processor=processor)


class Blind(Llava):
    """Finds no image."""

    def image_index(self, model: Any, ids: Tensor) -> Tensor:
        return torch.full_like(ids, -1)


class FromOne(Llava):
    """Counts from 1."""

    def image_index(self, model: Any, ids: Tensor) -> Tensor:
        index = super().image_index(model, ids)
        return index + (index >= 0)


class OneForAll(Llava):
    """All images are one."""

    def image_index(self, model: Any, ids: Tensor) -> Tensor:
        return super().image_index(model, ids).clamp(max=0)


class HardSpan(Llava):
    """The image stands where it stood in one prompt."""

    def image_index(self, model: Any, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        return torch.where((places >= 3) & (places < 12), 0, -1)


class FromTheLeft(Llava):
    """Counts padding."""

    def image_index(self, model: Any, ids: Tensor) -> Tensor:
        index = super().image_index(model, ids)
        return index + ((index >= 0) & (ids[:, :1] == 0)).long()


class FloatIndex(Llava):
    """Not a whole number."""

    def image_index(self, model: Any, ids: Tensor) -> Any:
        return super().image_index(model, ids).double()


class FewFeatures(Llava):
    """Leaves the last token out."""

    def features(self, output: Any) -> Tensor:
        return super().features(output)[:-1]


class TurnedFeatures(Llava):
    """The last token first."""

    def features(self, output: Any) -> Tensor:
        return super().features(output).flip(0)


class OnePicture(Llava):
    """All images' pixels as one."""

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return [given["pixel_values"]]


class FlatPixels(Llava):
    """Pixels without a frame."""

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return list(given["pixel_values"])


class JoinedFlat(Llava):
    """Not the shape that the encoder takes."""

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return super().join_pixels(model, images, given).flatten(1)


class JoinedMirrored(Llava):
    """Not what was split."""

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return super().join_pixels(model, images, given).flip(-1)


class Scaled(Llava):
    """Embeddings twice as long."""

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        return 2 * super().embed(model, ids)


class Unnormed(Llava):
    """The output head without the norm before it."""

    def logits(self, model: Any, hidden: Tensor, *, norm: bool = True) -> Tensor:
        return super().logits(model, hidden, norm=False)


class AlwaysNormed(Llava):
    """The norm where none is wanted."""

    def logits(self, model: Any, hidden: Tensor, *, norm: bool = True) -> Tensor:
        return super().logits(model, hidden)


class Behind(Llava):
    """An instruction at the end."""

    def system_slot(self, ids: Sequence[int], tokenizer: Any) -> int:
        return len(ids)


class Turned(Llava, abc.ABC):
    """Another rotary embedding than the model's."""

    def rotary(self, model: Any) -> Any:
        found = super().rotary(model)
        assert found is not None
        return self.turned([own for own in found if own is not None])

    @abc.abstractmethod
    def turned(self, layers: list[Rotary]) -> Any:
        """What stands for the true ones."""


class Interleaved(Turned):
    """The other pairing of dimensions."""

    def turned(self, layers: list[Rotary]) -> Any:
        return [replace(own, interleaved=True) for own in layers]


class Slow(Turned):
    """Half the frequencies."""

    def turned(self, layers: list[Rotary]) -> Any:
        return [replace(own, inverse_frequencies=own.inverse_frequencies / 2) for own in layers]


class OneRotary(Turned):
    """One for all layers, not one for each."""

    def turned(self, layers: list[Rotary]) -> Any:
        return layers[0]


class FewRotary(Turned):
    """None for the last layer, not even None."""

    def turned(self, layers: list[Rotary]) -> Any:
        return layers[:-1]


class StillLayer(Turned):
    """The last layer is not turned."""

    def turned(self, layers: list[Rotary]) -> Any:
        return [*layers[:-1], None]


class SlowLayer(Turned):
    """The last layer is turned by other frequencies."""

    def turned(self, layers: list[Rotary]) -> Any:
        last = replace(layers[-1], inverse_frequencies=layers[-1].inverse_frequencies / 2)
        return [*layers[:-1], last]


class NotShared(Llava):
    """Declares that the image sees the text."""

    causal_prefix: ClassVar[bool] = False


class Marked(Llava):
    """Writes into the model."""

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        model.model.embedded = ids
        return super().embed(model, ids)


class FarTokens(Llava):
    """A grid that counts the tokens of the whole prompt."""

    def token_grids(self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]) -> Any:
        return [(cdkit.frame_grid(3, 3, first=4),) for _ in tokens]


class LaterFrames(Llava):
    """A frame for each image of the prompt."""

    def token_grids(self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]) -> Any:
        return [(cdkit.frame_grid(3, 3, first=0, frame=1),) for _ in tokens]


class NoReason(Llava):
    """No grid, and no word about it."""

    def token_grids(self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]) -> Any:
        return [()] * len(tokens)


class Remembers(Llava):
    """Keeps state."""

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        self.ids = ids
        return super().embed(model, ids)


BROKEN: list[tuple[type[Llava], str]] = [
    (Unnamed, "example is a name on the hub, OWNER/NAME"),
    (Undecided, "causal_prefix is True or False"),
    (OtherDecoder, "the decoder is a module of this model"),
    (OtherReader, "the lm_module is a module of this model"),
    (SilentReader, "generate calls the lm_module of the adapter"),
    (InnerDecoder, "the decoder gets inputs_embeds, and all its arguments by name"),
    (WrongEncoder, "the encoder is a method of its owner"),
    (UnusedEncoder, "generate calls the encoder of the adapter"),
    (VisionLayers, "layers are modules of the decoder"),
    (FewLayers, "layers are all 3 of the decoder, each once"),
    (TurnedLayers, "generate runs the layers, in order"),
    (WholeLayer, "attention is a module inside the layer"),
    (Mute, "the prompt holds the question"),
    (OneImage, "the processor takes the prompt with 2 images"),
    (Blind, "a prompt with 1 images has as many"),
    (FromOne, "a prompt with 1 images has as many"),
    (OneForAll, "a prompt with 2 images has as many"),
    (HardSpan, "a prompt with 2 images has as many"),
    (FromTheLeft, "image_index is the same in a padded batch"),
    (FloatIndex, "image_index has a whole number for each token"),
    (FewFeatures, "there are as many features as image tokens"),
    (TurnedFeatures, "the decoder gets the features in the places of image_index"),
    (OnePicture, "split_pixels has an entry for each image"),
    (FlatPixels, "an image's pixels are (frames, 3, height, width)"),
    (JoinedFlat, "join_pixels gives the shape of pixel_values"),
    (JoinedMirrored, "join_pixels undoes split_pixels"),
    (Scaled, "embed returns what the decoder gets for text tokens"),
    (Unnormed, "so that logits of the layer's output are the same"),
    (AlwaysNormed, "logits of the decoder's output, with norm=False, are the model's"),
    (Behind, "system_slot is in the prompt, before the first image"),
    (Interleaved, "rotating keys by rotary gives the model's keys at the moved position"),
    (Slow, "rotating keys by rotary gives the model's keys at the moved position"),
    (OneRotary, "rotary is None, or has a Rotary or None for each layer"),
    (FewRotary, "rotary is None, or has a Rotary or None for each layer"),
    (StillLayer, "rotating keys by rotary gives the model's keys at the moved position"),
    (SlowLayer, "rotating keys by rotary gives the model's keys at the moved position"),
    (NotShared, "with causal_prefix = False states of the image depend on the text"),
    (FarTokens, "a token grid has tokens of its image, each once, and frames of split_pixels"),
    (LaterFrames, "a token grid has tokens of its image, each once, and frames of split_pixels"),
    (NoReason, "token_grids has grids, or words that say why there are none, for each image"),
    (Marked, "the model is left as it was"),
    (Remembers, "it keeps no state"),
]


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2_vl", lambda own: replace(own, axes=own.axes.flip(0))),  # other axes turn
        ("qwen2_vl", lambda own: replace(own, axes=own.axes * 0)),  # time alone turns
        ("aya_vision", lambda own: own),  # layers without a rotary embedding turn
    ],
)
def test_a_rotary_embedding_of_other_layers_or_axes(
    family: str, change: Callable[[Rotary], Rotary], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, right = tiny(family), cdkit.ADAPTERS[family]
    found = right().rotary(model)
    assert found is not None
    turned = next(own for own in found if own is not None)
    monkeypatch.setattr(right, "rotary", lambda self, model: [change(turned)] * len(found))
    promise = "rotating keys by rotary gives the model's keys at the moved position"
    with pytest.raises(AssertionError, match=promise):
        check_adapter(model, inputs=inputs(family, 0))


def put(monkeypatch: pytest.MonkeyPatch, adapter: type[Llava]) -> None:
    """The adapter in the place of LLaVA's."""
    assert cdkit.ADAPTERS["llava"] is Llava  # loaded, so that nothing else is added
    monkeypatch.setattr(cdkit.ADAPTERS, "_classes", {"llava": adapter})


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize(("adapter", "promise"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_a_broken_adapter(
    adapter: type[Llava],
    promise: str,
    make_model: Callable[..., Any],
    processor: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(monkeypatch, adapter)
    model = make_model()
    model.model.spare = nn.ModuleDict({"lm_head": nn.Identity()})
    with torch.no_grad():  # weights of 1 would make a second norm no change
        model.model.language_model.norm.weight += torch.linspace(-0.5, 0.5, 32)
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_adapter(model, processor=processor)


# ---- models that an adapter must know better -----------------------------------------------------


def prefix_lm(model: Any) -> Any:
    """The model with the mean of a prompt's tokens added to each of them."""
    decoder = model.model.language_model
    forward = decoder.forward

    def mixed(*, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        if inputs_embeds.shape[1] > 1:
            mask = kwargs.get("attention_mask")
            real = torch.ones(inputs_embeds.shape[:2]) if mask is None else mask
            weight = (real / real.sum(dim=1, keepdim=True)).to(inputs_embeds)
            inputs_embeds = inputs_embeds + (weight[..., None] * inputs_embeds).sum(1, keepdim=True)
        return forward(inputs_embeds=inputs_embeds, **kwargs)

    decoder.forward = mixed
    return model


def test_a_false_causal_prefix(make_model: Callable[..., Any], processor: Any) -> None:
    with pytest.raises(AssertionError, match="with causal_prefix = True no state up to the image"):
        check_adapter(prefix_lm(make_model()), processor=processor)


def test_a_true_prefix_lm(
    make_model: Callable[..., Any], processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, NotShared)
    check_adapter(prefix_lm(make_model()), processor=processor)


class AnyLength(Llava):
    """Trusts frequencies that change with the length."""

    def rotary(self, model: Any) -> list[Rotary]:
        decoder: Any = self.decoder(model)
        rotary = Rotary(decoder.rotary_emb.inv_freq.clone(), interleaved=False)
        return [rotary] * len(decoder.layers)


def test_frequencies_that_change(
    make_model: Callable[..., Any], processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 2.0}
    check_adapter(make_model(rope_parameters=rope), processor=processor)  # its adapter says None
    put(monkeypatch, AnyLength)
    with pytest.raises(AssertionError, match="rotary is None where the frequencies change"):
        check_adapter(make_model(rope_parameters=rope), processor=processor)


# ---- faults that only show while a method runs ---------------------------------------------------


def scaled(model: Any, factor: Callable[[Tensor], float]) -> Any:
    """The model whose decoder's input is multiplied by a number that depends on it."""
    decoder = model.model.language_model
    forward = decoder.forward

    def changed(*, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        embeds = inputs_embeds * factor(inputs_embeds)
        return forward(inputs_embeds=embeds, **kwargs)

    decoder.forward = changed
    return model


def test_a_model_that_knows_how_many_rows_it_has(
    make_model: Callable[..., Any], processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scaled(make_model(), lambda embeds: 0.5 if embeds.shape[0] > 2 else 1.0)
    with pytest.raises(AssertionError, match="an identical branch gives the stock model's logits"):
        check_adapter(model, processor=processor)
    monkeypatch.setattr("cdkit.testing.decode_modes.check_stock", lambda *args: None)
    with pytest.raises(AssertionError, match="under greedy: an answer is the same alone and in a"):
        check_adapter(model, processor=processor)


def test_a_model_that_is_never_the_same(make_model: Callable[..., Any], processor: Any) -> None:
    calls = itertools.count(1)
    model = scaled(make_model(), lambda embeds: 1 + 1e-9 * next(calls))
    with pytest.raises(AssertionError, match="with nothing to do the logits are the stock model's"):
        check_adapter(model, processor=processor)


def test_a_distortion_that_does_not_arrive(
    model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be if the model's attention were not the one that is hooked."""
    monkeypatch.setattr("cdkit.testing.decode_modes.Faint.distort", lambda self, segment: segment)
    with pytest.raises(
        AssertionError, match="Faint under greedy: the distortion reaches the model at every step"
    ):
        check_adapter(model, processor=processor)


def test_a_model_that_is_not_restored(
    make_model: Callable[..., Any], processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoils(adapter: object, model: Any, *args: object) -> None:
        model.lm_head.bias.add_(1)

    monkeypatch.setattr("cdkit.testing.decode_modes._check_mode", spoils)
    with pytest.raises(AssertionError, match="leaving restores the stock model, to the bit"):
        check_adapter(make_model(), processor=processor)


# ---- what is asked of the caller -----------------------------------------------------------------


def test_what_it_needs(
    make_model: Callable[..., Any], model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs("is there a cat ?")
    with pytest.raises(cdkit.CdkitError, match="needs a processor, or the inputs of one prompt"):
        check_adapter(model)
    with pytest.raises(cdkit.CdkitError, match=r"call model.eval\(\) first"):
        check_adapter(make_model().train(), inputs=inputs)
    with pytest.raises(cdkit.CdkitError, match="input_ids of one prompt"):
        check_adapter(model, inputs=make_inputs("w1 ?", "w2 ?"))
    with pytest.raises(cdkit.CdkitError, match="without padding"):
        check_adapter(model, inputs={n: v[:1] for n, v in make_inputs("w1", "w1 w2").items()})
    ids = inputs["input_ids"]
    last = int((ids[0] == model.config.image_token_id).nonzero()[-1])
    short = {n: v[:, : last + 2] if v.shape == ids.shape else v for n, v in inputs.items()}
    with pytest.raises(cdkit.CdkitError, match="three tokens or more after its last image"):
        check_adapter(model, inputs=short)
