"""Where things are in a stock Hugging Face LVLM: declared once for each family."""

import abc
import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit.errors import CdkitError
from cdkit.functional.rope import Rotary
from cdkit.interfaces.former_names import FormerNames
from cdkit.interfaces.position_calibrator import ImageGrid
from cdkit.interfaces.token_grid import TokenGrid, frame_grid
from cdkit.interfaces.video_layout import VideoLayout
from cdkit.registry import Registry

SeesAhead = Literal["nowhere", "in images", "across images", "in prompts"]
"""Where attention is not causal: nowhere; among the tokens of an image (Gemma 3), or of all images
of a prompt (Molmo 2); in the whole prompt (PaliGemma)."""


class ModelAdapter(FormerNames, abc.ABC):
    """Says where a model family keeps what cdkit needs. It has no state and no modelling code.

    An adapter is registered under `config.model_type`. `cdkit.testing.check_adapter` holds what it
    says against a model of the family as it runs.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "reader": "lm_module",
        "levels": "deepstack_features",
        "level_arguments": "deepstack_kwargs",
    }
    causal_prefix: ClassVar[bool]
    """Whether states up to the image's last token do not depend on what follows. Then branches that
    differ only after the image share these states."""
    sees_ahead: ClassVar[SeesAhead] = "nowhere"
    """Which tokens of a prompt attend to tokens after them; `sees_ahead_in` says it of a model."""
    square_grid: ClassVar[bool] = False
    """Whether the tokens of a square picture are a square grid of it, row by row: then a report may
    draw attention over it. False where an image is cut into tiles, or read by queries."""
    no_places: ClassVar[str] = "its adapter does not say where image tokens stand in the picture"
    """Why the tokens of an image have no place in its pixels, in words that end a sentence; read
    where `token_grids` finds none."""
    example: ClassVar[str]
    """The name on the hub, OWNER/NAME, of a checkpoint that this adapter runs."""
    pixel_argument: ClassVar[str] = "pixel_values"
    """The argument of `generate`, and of the image encoder, with the pixels of images."""
    required: ClassVar[tuple[str, ...]] = ()
    """Arguments of `generate` beside the pixels without which the model would silently compute
    something else; cdkit raises where one is missing."""
    needs_check: ClassVar[bool] = False
    """Whether the adapter searches a model that it does not know for its parts. Then cdkit tries it
    out on the first prompt with an image that a model gets (`cdkit.probing.adapter_trial`)."""
    reads_ids: ClassVar[bool] = False
    """Whether `token_kwargs` or `token_types` make something of token ids. Then the ids of every
    branch are kept."""
    features_in_layers: ClassVar[bool] = False
    """Whether image tokens enter the decoder as zeros, and its layers add all of their features
    (`deepstack_features`). Then methods that distort what the decoder is given of an image are
    refused."""
    decoder_encodes: ClassVar[bool] = False
    """Whether the decoder gets token ids and pixels, and calls the image encoder in its own forward
    (Phi-4 multimodal). Under a method, cdkit calls the encoder once a prompt (`encoder_kwargs`) and
    gives the decoder embeddings in the place of both; it must take these."""
    refuses_static: ClassVar[str] = ""
    """Why a method does not run with a static cache; empty where it does."""
    encoder_text: ClassVar[str | None] = None
    """The argument with which the image encoder gets the question as token ids; None for most. Its
    mask has the same name with `attention_mask` in the place of `input_ids`. InstructBLIP's
    Q-Former, for example, reads `qformer_input_ids`."""
    mlp_names: ClassVar[tuple[str, ...]] = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "ff")
    """What a decoder layer may call its feed-forward network, or its mixture of experts; the first
    that a layer has."""
    projection_names: ClassVar[tuple[str, ...]] = ("o_proj", "out_proj", "dense", "c_proj", "wo")
    """What an attention module may call its output projection; the first that it has."""
    videos: ClassVar[VideoLayout | None] = None
    """Where the family's videos are; None where cdkit reads none of it. Then videos are refused."""

    @abc.abstractmethod
    def check(self, model: nn.Module) -> None:
        """Refuse a model of the family that cannot be supported.

        Raises:
            CdkitError: Where this very model cannot be supported; it says why.
        """

    @abc.abstractmethod
    def decoder(self, model: nn.Module) -> nn.Module:
        """The text decoder: its forward takes `inputs_embeds`, a 2-D mask, positions, a cache."""

    @abc.abstractmethod
    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """The decoder's layers, in order."""

    @abc.abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module | None:
        """The self-attention module of a decoder layer; None for a layer that has none.

        Hybrid decoders have such layers: they keep a recurrent state, or no state at all.
        """

    @abc.abstractmethod
    def lm_module(self, model: nn.Module) -> nn.Module:
        """The module whose forward returns the logits that `generate` reads.

        It is the model itself for most; InstructBLIP generates with an inner language model.
        """

    @abc.abstractmethod
    def encoder(self, model: nn.Module) -> tuple[nn.Module, str]:
        """The image encoder that `generate` or forward calls.

        Returns:
            The module that has it, and the name of its method.
        """

    def encoder_kwargs(
        self, model: nn.Module, given: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """What the image encoder is called with, where `decoder_encodes`.

        Args:
            model: The model.
            given: The arguments of `generate`, or of a plain call, for the prompts.

        Returns:
            The encoder's arguments by name; None where `given` has no images, and of most families.

        Raises:
            CdkitError: Where something else comes for the decoder to encode.
        """
        return None

    @abc.abstractmethod
    def split_pixels(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Float[Tensor, "frames channels height width"]]:
        """Take the pixels in `given`, those of `pixel_argument`, apart, image by image.

        Args:
            model: The model.
            given: The arguments of the encoder.
            tokens: How many image tokens each image has, in the order of the prompts.

        Returns:
            For each image its picture (one frame), or its tiles.

        Raises:
            UnmatchedPixelsError: Where nothing says which pixels are which image's.
        """

    @abc.abstractmethod
    def join_pixels(
        self,
        model: nn.Module,
        images: Sequence[Float[Tensor, "frames channels height width"]],
        given: Mapping[str, Any],
    ) -> Tensor:
        """Put images together again: the inverse of `split_pixels`.

        Args:
            model: The model.
            images: What `split_pixels` returned, with other values in the same shapes.
            given: The arguments of the encoder.

        Returns:
            What replaces these pixels, in their shape.
        """

    def split_values(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Float[Tensor, " _"]]:
        """Take the numbers that the encoder gets of each image apart, in any order.

        Asked for where `split_pixels` raises an UnmatchedPixelsError and all distortions of pixels
        are `elementwise`. Such a distortion needs no more than which numbers are an image's.

        Args:
            model: The model.
            given: The arguments of the encoder.
            tokens: How many image tokens each image has, in the order of the prompts.

        Returns:
            For each image all numbers that stand for it, out of one tensor or several, each number
            once.

        Raises:
            UnmatchedPixelsError: Where nothing says which numbers are which image's, or a number
                stands there twice, as a still picture does in each frame of a patch.
        """
        return self.split_pixels(model, given, tokens)

    def join_values(
        self,
        model: nn.Module,
        images: Sequence[Float[Tensor, " _"]],
        given: Mapping[str, Any],
    ) -> Mapping[str, Tensor]:
        """Put the numbers of images together again: the inverse of `split_values`.

        Args:
            model: The model.
            images: What `split_values` returned, with other values.
            given: The arguments of the encoder.

        Returns:
            The arguments of the encoder that they replace, by name, each in its shape.
        """
        return {self.pixel_argument: self.join_pixels(model, images, given)}

    @abc.abstractmethod
    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        """The features of the image tokens in an output of the encoder, in the tokens' order."""

    @abc.abstractmethod
    def deepstack_features(self, output: Any) -> Sequence[Float[Tensor, "tokens hidden"]]:
        """The features that decoder layers add to the image tokens (DeepStack).

        Args:
            output: What the encoder returned.

        Returns:
            The features for each of these layers, in order; empty for most families.
        """

    @abc.abstractmethod
    def deepstack_kwargs(
        self,
        model: nn.Module,
        features: tuple[Bool[Tensor, "rows tokens"], Sequence[Tensor]] | None,
    ) -> Mapping[str, Any]:
        """The arguments with which the decoder gets DeepStack features.

        Args:
            model: The model.
            features: Which tokens are image tokens, and for each of these layers the features to
                add there (image tokens of all rows, hidden); None where a call has no image token.

        Returns:
            Arguments of the decoder's forward, by name.
        """

    def token_kwargs(
        self, model: nn.Module, ids: Int[Tensor, "rows tokens"]
    ) -> Mapping[str, Tensor]:
        """What the decoder gets of each token besides its embedding, made from its id.

        Args:
            model: The model.
            ids: Token ids; those of padding are any.

        Returns:
            Arguments of the decoder's forward by name, of (rows, tokens, ...) each; empty for most
            families.
        """
        return {}

    def token_types(
        self, model: nn.Module, ids: Int[Tensor, "rows columns"]
    ) -> Int[Tensor, "rows columns"] | None:
        """The types of a prompt's tokens, as `create_masks` takes them.

        Returns:
            The types; None where they follow from where the image tokens are.
        """
        return None

    def placed_features(
        self, model: nn.Module, features: Float[Tensor, "tokens encoded"]
    ) -> Float[Tensor, "tokens hidden"]:
        """What the decoder gets at the image tokens: the features, or more than these."""
        return features

    def sees_ahead_in(self, model: nn.Module) -> SeesAhead:
        """As `sees_ahead`, of this very model: in some families not every checkpoint does."""
        return self.sees_ahead

    def counts_padding_from(self, model: nn.Module) -> int | None:
        """From how many columns on a layer's output depends on columns, padding included, and not
        on positions alone; None where it never does. Such layers ask their cache for its length."""
        return None

    def rope_limit(self, model: nn.Module) -> int | None:
        """For how many tokens the rotary frequencies are those of `rotary`; None where for any.

        Beyond, all tokens get others (longrope), so no method runs there: a cache holds keys of the
        former ones.
        """
        return None

    def create_masks(
        self, model: Any, types: Int[Tensor, "rows columns"], given: Mapping[str, Any]
    ) -> Any:
        """What the model's forward makes of a prompt's token types, where it sees ahead.

        Args:
            model: The model.
            types: All columns so far, as the family numbers them: 1 on image tokens, or, of a
                family that sees ahead in prompts, behind the prompt.
            given: What transformers' masking functions take else: `inputs_embeds`, a 2-D
                `attention_mask`, `position_ids` and the cache.

        Returns:
            What the decoder gets as its `attention_mask`.
        """
        taken = signature(model.create_masks_for_generate).parameters
        name = "mm_token_type_ids" if "mm_token_type_ids" in taken else "token_type_ids"
        return model.create_masks_for_generate(config=model.config, **{name: types}, **given)

    def kwargs_of_one_token(self, model: nn.Module) -> Mapping[str, Tensor]:
        """`token_kwargs` for some token: tensors of (1, 1, ...)."""
        if not self.reads_ids:
            return {}
        decoder: Any = self.decoder(model)
        ids = torch.zeros(1, 1, dtype=torch.long, device=input_device(decoder))
        return self.token_kwargs(model, ids)

    def token_arguments(self, model: nn.Module) -> Sequence[str]:
        """The arguments that a decoder gets of a prompt as `generate` does: a value for each token.

        ERNIE 4.5 VL's decoder, for example, gets `moe_mm_token_type_ids`, which says which experts
        a token goes to. A branch with a prompt of its own has the same value at the same token, and
        that of the prompt's last token at tokens that the prompt does not have.

        Args:
            model: The model.

        Returns:
            Their names; none for most families.
        """
        return ()

    @abc.abstractmethod
    def image_index(
        self, model: nn.Module, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        """Find the images in prompts.

        Args:
            model: The model.
            ids: Token ids, padded on the left. Padding of a rewritten prompt is -1.

        Returns:
            For each token the number of its image in the row, from 0; -1 for text and padding. Of a
            video each run of tokens is an image (`VideoLayout`).
        """

    def image_grids(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[ImageGrid | None]:
        """Say how the tokens of each picture stand in it; those of videos are not asked for.

        Args:
            model: The model.
            given: The arguments of `generate` or forward.
            tokens: How many image tokens each picture has, in the order of the prompts.

        Returns:
            For each picture its grid, whose tokens are as many; None where nothing says it.
        """
        sides = [math.isqrt(count) for count in tokens]
        return [
            ImageGrid(side, side) if self.square_grid and side**2 == count else None
            for side, count in zip(sides, tokens, strict=True)
        ]

    def token_grids(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """Say where the tokens of each picture stand in its pixels, for pages that draw over them.

        The default follows `image_grids`: a tile is a frame of `split_pixels`.

        Args:
            model: The model.
            given: The arguments of `generate` or forward.
            tokens: How many image tokens each picture has, in the order of the prompts.

        Returns:
            For each picture its grids, several where it is cut into tiles; or why there is none,
            in words that end a sentence.
        """
        return [
            self.no_places if grid is None or grid.tokens != count else _tiles_of(grid)
            for grid, count in zip(self.image_grids(model, given, tokens), tokens, strict=True)
        ]

    @abc.abstractmethod
    def embed(
        self, model: nn.Module, ids: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """The embeddings of text tokens as the decoder gets them."""

    @abc.abstractmethod
    def logits(
        self, model: nn.Module, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        """Next-token logits from hidden states.

        Args:
            model: The model.
            hidden: The output of a decoder layer, for one token of each row.
            norm: Whether to apply the decoder's final norm before the output head.
        """

    def layer_states(self, states: Tensor) -> Tensor:
        """What `logits` takes of the states that a decoder layer gives.

        Args:
            states: As the layer gives them.

        Returns:
            (rows, tokens, hidden). Where a layer has several states of a token (Gemma 3n), all of
            them in one row of numbers.
        """
        return states

    @abc.abstractmethod
    def rotary(self, model: nn.Module) -> Sequence[Rotary | None] | None:
        """How each layer rotates its queries and keys.

        Returns:
            For each layer that has attention its rotary embedding, None for one that rotates
            nothing; None instead of a list where the decoder has no rotary embedding, or its
            frequencies change with the length of the sequence.
        """

    @abc.abstractmethod
    def system_slot(self, ids: Sequence[int], tokenizer: Any) -> int:
        """Where an instruction can stand before all other text.

        Args:
            ids: The token ids of a prompt, without padding.
            tokenizer: The model's tokenizer; may be None.

        Returns:
            The index in `ids` before which the instruction is inserted.
        """

    @abc.abstractmethod
    def prompt(
        self, question: str, *, images: int, processor: Any, system: str | None = None
    ) -> str:
        """Write a prompt as one turn of a chat.

        Args:
            question: What to ask.
            images: How many images stand before the question.
            processor: The model's processor, which will get the text.
            system: The system message; None for the one that the chat template has by itself, ""
                for an empty one.

        Raises:
            CdkitError: Where a prompt of the family cannot have as many images, or no system
                message.
        """


def _tiles_of(grid: ImageGrid) -> tuple[TokenGrid, ...]:
    """The grids of an image whose tiles follow each other, each on a frame of its own."""
    each = grid.height * grid.width
    return tuple(
        frame_grid(
            grid.height,
            grid.width,
            first=number * each,
            frame=number,
            name=f"tile {number + 1}" if grid.tiles > 1 else "",
        )
        for number in range(grid.tiles)
    )


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
"""Adapters for model types that have none in `ADAPTERS`; the first whose `check` passes is used."""


class UnmatchedPixelsError(CdkitError):
    """Nothing says which pixels are which image's; only methods that change pixels are refused."""


def input_device(decoder: Any) -> torch.device:
    """Where a decoder's inputs may be: with its embeddings, or where these are offloaded, with
    another tensor of it that is there. accelerate brings inputs to where a layer runs."""
    own: Tensor = decoder.get_input_embeddings().weight
    there = (x.device for x in (own, *decoder.parameters(), *decoder.buffers()) if not x.is_meta)
    return next(there, torch.device("cpu"))


def attentions_of(adapter: ModelAdapter, model: nn.Module) -> dict[int, nn.Module]:
    """The self-attention modules of a decoder, by the number of their layer."""
    found = ((number, adapter.attention(own)) for number, own in enumerate(adapter.layers(model)))
    return {number: attention for number, attention in found if attention is not None}


def states_of(adapter: ModelAdapter, output: Any) -> Tensor:
    """`layer_states` of a layer's output, or of the arguments of the first layer."""
    return adapter.layer_states(output[0] if isinstance(output, tuple) else output)
