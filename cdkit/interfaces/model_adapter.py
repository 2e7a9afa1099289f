"""Where things are in a stock Hugging Face LVLM: declared once for each family."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit.errors import CdkitError
from cdkit.functional.rope import Rotary
from cdkit.interfaces.former_names import FormerNames
from cdkit.registry import Registry, unknown

SeesAhead = Literal["nowhere", "in images", "in prompts"]
"""Where attention is not causal: nowhere; among the tokens of an image (Gemma 3); in the whole
prompt (PaliGemma)."""


class ModelAdapter(FormerNames, abc.ABC):
    """Says where a model family keeps what the engine needs. No state, no modelling code.

    Registered under `config.model_type`. Admission test: with no method on, logits equal the stock
    model's, and CMAC's equal the independent reference.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "reader": "lm_module",
        "levels": "deepstack_features",
        "level_arguments": "deepstack_kwargs",
    }
    causal_prefix: ClassVar[bool]
    """Whether states up to the image's last token do not depend on what follows: then branches that
    differ only after the image share them (PaliGemma: no)."""
    sees_ahead: ClassVar[SeesAhead] = "nowhere"
    """Which tokens of a prompt see those after them."""
    square_grid: ClassVar[bool] = False
    """Whether the tokens of a square picture are a square grid of it, row by row: then a report may
    draw attention over it. Not so where an image is cut into tiles, or read by queries."""
    example: ClassVar[str]
    """A hub name that this adapter runs."""
    required: ClassVar[tuple[str, ...]] = ()
    """What `generate` must be given beside `pixel_values`, where it would silently do without."""
    needs_check: ClassVar[bool] = False
    """Whether it looks for things that it does not know: then cdkit tries it out on the first
    prompt with an image that a model is given (`cdkit.probing.self_check`)."""
    encoder_text: ClassVar[str | None] = None
    """The argument of the image encoder that holds the question as token ids, where it reads it
    (InstructBLIP's Q-Former). Its mask is called the same, `attention_mask` for `input_ids`."""

    @abc.abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raise a CdkitError where this very model cannot be supported, saying why."""

    @abc.abstractmethod
    def decoder(self, model: nn.Module) -> nn.Module:
        """The text decoder: its forward takes `inputs_embeds`, a 2-D mask, positions, a cache."""

    @abc.abstractmethod
    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """The decoder's layers, in order."""

    @abc.abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module:
        """The self-attention module of a decoder layer."""

    @abc.abstractmethod
    def lm_module(self, model: nn.Module) -> nn.Module:
        """The module whose forward's logits `generate` reads."""

    @abc.abstractmethod
    def encoder(self, model: nn.Module) -> tuple[nn.Module, str]:
        """(owner, attribute) of the image encoder that `generate` or forward calls."""

    @abc.abstractmethod
    def split_pixels(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Float[Tensor, "frames channels height width"]]:
        """Each image of `given["pixel_values"]`: its picture, its tiles or its frames.

        `given` are the arguments of the encoder, `tokens` says how many tokens each image has.
        Raises `UnmatchedPixelsError` where nothing says which pixels are which image's.
        """

    @abc.abstractmethod
    def join_pixels(
        self,
        model: nn.Module,
        images: Sequence[Float[Tensor, "frames channels height width"]],
        given: Mapping[str, Any],
    ) -> Tensor:
        """The inverse of `split_pixels`: what stands for `given["pixel_values"]`."""

    @abc.abstractmethod
    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        """The image tokens' features in an output of the encoder, in the tokens' order."""

    @abc.abstractmethod
    def deepstack_features(self, output: Any) -> Sequence[Float[Tensor, "tokens hidden"]]:
        """Features of the image tokens that deeper layers add (deepstack); empty for most."""

    @abc.abstractmethod
    def deepstack_kwargs(
        self, levels: tuple[Bool[Tensor, "rows tokens"], Sequence[Tensor]] | None
    ) -> Mapping[str, Any]:
        """`levels` (where, what) as arguments of the decoder; None where no image token is."""

    @abc.abstractmethod
    def image_index(
        self, model: nn.Module, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        """For each token of a prompt the number of its image in the row, from 0; -1 for text."""

    @abc.abstractmethod
    def embed(
        self, model: nn.Module, ids: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """The embeddings of text tokens as the decoder gets them."""

    @abc.abstractmethod
    def logits(
        self, model: nn.Module, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        """Next-token logits from a layer's output: the final norm (if asked), the output head."""

    @abc.abstractmethod
    def rotary(self, model: nn.Module) -> Sequence[Rotary | None] | None:
        """Each layer's rotary embedding, None for a layer without; None for all where the decoder
        has none, or its frequencies change with the length."""

    @abc.abstractmethod
    def system_slot(self, ids: Sequence[int], tokenizer: Any) -> int:
        """Where an instruction goes that comes before everything else, as a token index."""

    @abc.abstractmethod
    def prompt(self, question: str, *, images: int, processor: Any) -> str:
        """The text to give the processor: `images` placeholders, the question, as a chat turn."""


ADAPTERS = Registry[ModelAdapter](
    ModelAdapter,  # type: ignore[type-abstract]
    what="model adapter",
    folder="cdkit.models",
    group="cdkit.models",
)


GENERIC_ADAPTERS = Registry[ModelAdapter](
    ModelAdapter,  # type: ignore[type-abstract]
    what="generic model adapter",
    folder="cdkit.models",
    group="cdkit.models",
)
"""Adapters for model types that have none: the first whose check of the model passes."""

HOW_TO_ADD = (
    "To add a family, subclass cdkit.models.layouts.standard.StandardAdapter, register the class "
    "under that name and hold it to cdkit.testing.check_adapter: docs/own_model.md"
)


class UnmatchedPixelsError(CdkitError):
    """Nothing says which pixels are which image's: what changes pixels is refused, no more."""


def adapter_for(model: nn.Module) -> ModelAdapter:
    """The adapter of a model's `config.model_type`, after its check of this very model.

    A model type that has none gets a generic one that takes the model (`needs_check` is True).
    """
    config = getattr(unwrap(model), "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type is None:
        raise CdkitError(
            f"{type(model).__name__} has no config.model_type; pass a Hugging Face model, such as "
            "AutoModelForImageTextToText.from_pretrained(...)"
        )
    text = getattr(config, "text_config", None)  # InstructBLIP's own config says nothing
    if any(getattr(own, "is_encoder_decoder", False) for own in (config, text)):
        raise CdkitError(
            f"{model_type} is an encoder-decoder: its answer attends to the image by "
            "cross-attention alone, and cdkit's methods are defined for decoder-only models"
        )
    if model_type not in ADAPTERS:
        return _fallback(unwrap(model), model_type)
    adapter = ADAPTERS[model_type]()
    adapter.check(unwrap(model))
    return adapter


def _fallback(model: nn.Module, model_type: str) -> ModelAdapter:
    reasons = []
    for name, kind in GENERIC_ADAPTERS.items():
        adapter = kind()
        try:
            adapter.check(model)
        except CdkitError as error:
            reasons.append(f" The {name} adapter cannot stand in: {error}.")
        else:
            return adapter
    raise CdkitError(
        unknown("model adapter", model_type, ADAPTERS) + "".join(reasons) + f" {HOW_TO_ADD}"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT wrapper; its adapters stay active."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


def chat_prompt(
    question: str,
    *,
    images: int,
    processor: Any,
    fallback: str,
    placeholder: str = "<image>\n",
) -> str:
    """By the processor's chat template where it has one, else by `fallback`."""
    if getattr(processor, "chat_template", None):
        content: list[Mapping[str, str]] = [{"type": "image"}] * images
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        text = processor.apply_chat_template([message], add_generation_prompt=True)
        return str(text)
    return fallback.format(images=placeholder * images, question=question)
