"""What most families share: a Llama-like decoder behind an image encoder."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit import CdkitError, ModelAdapter, TokenGrid, chat_prompt, frame_grid, observe_layers
from cdkit.functional import Rotary

FIXED_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""RoPE types whose frequencies do not depend on the length of the sequence."""


class StandardAdapter(ModelAdapter, abc.ABC):
    """An adapter for a Llama-like decoder behind an image encoder.

    A family says where its image tokens stand and how its pixels split. It is taken for granted
    that the decoder has `layers[i].self_attn` and `norm`, that the `lm_module` has an `lm_head`,
    and that the encoder is the `encoder_method` of a module. A layer without a
    `self_attn` has no attention. Paths are dotted names of submodules, as `get_submodule` takes
    them.
    """

    causal_prefix: ClassVar[bool] = True
    decoder_path: ClassVar[str] = "model.language_model"
    """Where the text decoder is."""
    lm_module_path: ClassVar[str] = ""
    """Where the module is whose logits `generate` reads; empty for the model itself."""
    encoder_path: ClassVar[str] = "model"
    """Where the module is that has the image encoder."""
    encoder_method: ClassVar[str] = "get_image_features"
    """What the encoder is called there."""
    caps_logits: ClassVar[bool] = False
    """Whether the model itself applies its text config's `final_logit_softcapping`."""
    image_first: ClassVar[bool] = False
    """Whether the image stands before everything else, the text's first token too."""
    most_images: ClassVar[int | None] = None
    """The largest number of images in a prompt; None for any number."""
    placeholder: ClassVar[str] = "<image>\n"
    """What stands for an image in `fallback`."""
    fallback: ClassVar[str] = "USER: {images}{question} ASSISTANT:"
    """The prompt of a processor without a chat template."""

    def check(self, model: Any) -> None:
        if self.head(model) is None:
            raise CdkitError(
                f"{type(model).__name__} has no output head; load the model with "
                "AutoModelForImageTextToText"
            )
        if all(self.attention(layer) is None for layer in self.layers(model)):
            raise CdkitError(
                f"the decoder {type(self.decoder(model)).__name__} has no layer with a self_attn "
                "module; cdkit supports Llama-like decoders"
            )
        self.check_images(model)

    def head(self, model: Any) -> Any:
        """The output head, of the `lm_module` or of a language model inside; None without one."""
        lm_module: Any = self.lm_module(model)
        own = getattr(lm_module, "lm_head", None)
        return lm_module.get_output_embeddings() if own is None else own

    @abc.abstractmethod
    def check_images(self, model: Any) -> None:
        """Refuse a checkpoint whose images cannot be told apart; most families refuse none.

        Raises:
            CdkitError: Where this model's images cannot be told apart.
        """

    def decoder(self, model: Any) -> nn.Module:
        decoder: nn.Module = model.get_submodule(self.decoder_path)
        return decoder

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(getattr(self.decoder(model), "layers", ()))

    def attention(self, layer: Any) -> nn.Module | None:
        return attention_in(layer)

    def lm_module(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.lm_module_path)

    def encoder(self, model: Any) -> tuple[nn.Module, str]:
        return model.get_submodule(self.encoder_path), self.encoder_method

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        return flat(output.pooler_output)

    def deepstack_features(self, output: Any) -> Sequence[Float[Tensor, "tokens hidden"]]:
        return [flat(layer) for layer in getattr(output, "deepstack_features", None) or ()]

    def deepstack_kwargs(
        self, model: Any, features: tuple[Bool[Tensor, "rows tokens"], Sequence[Tensor]] | None
    ) -> Mapping[str, Any]:
        is_image, per_layer = features or (None, None)
        return {"visual_pos_masks": is_image, "deepstack_visual_embeds": per_layer}

    def embed(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        embeddings: Tensor = model.get_input_embeddings()(ids)
        return embeddings

    def logits(
        self, model: Any, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        decoder: Any = self.decoder(model)
        logits: Tensor = self.head(model)(final_norm(decoder)(hidden) if norm else hidden)
        cap = getattr(decoder.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap and self.caps_logits else logits

    def rotary(self, model: Any) -> Sequence[Rotary | None] | None:
        decoder: Any = self.decoder(model)
        embedding = getattr(decoder, "rotary_emb", None)
        types = getattr(embedding, "rope_type", None)
        if embedding is None or types is None:
            return None
        kinds = types if isinstance(types, dict) else {"": types}
        fixed = set(kinds.values()) <= set(FIXED_ROPE) or self.rope_limit(model) is not None
        if not fixed:
            return None
        found = (self.attention(layer) for layer in self.layers(model))
        attentions = [own for own in found if own is not None]
        return observe_layers(decoder, attentions, self.kwargs_of_one_token(model)).rotary

    def rope_limit(self, model: Any) -> int | None:
        """Longrope: all frequencies change where a sequence is longer than in the pretraining."""
        decoder: Any = self.decoder(model)
        if getattr(getattr(decoder, "rotary_emb", None), "rope_type", None) != "longrope":
            return None
        limit = decoder.config.rope_parameters.get("original_max_position_embeddings")
        return None if limit is None else int(limit)

    def system_slot(self, ids: Sequence[int], tokenizer: Any) -> int:
        first = 0
        if self.image_first:
            first = next((i for i, token in enumerate(ids) if token != ids[0]), len(ids))
        bos = getattr(tokenizer, "bos_token_id", None)
        return first + (bos is not None and bos in ids[first : first + 1])

    def prompt(
        self, question: str, *, images: int, processor: Any, system: str | None = None
    ) -> str:
        if self.most_images is not None and images > self.most_images:
            raise CdkitError(
                f"a prompt of this family has {self.most_images} image at most, not {images}"
            )
        return chat_prompt(
            question,
            images=images,
            processor=processor,
            fallback=self.fallback,
            placeholder=self.placeholder,
            system=system,
        )


def attention_in(layer: nn.Module) -> nn.Module | None:
    """The self-attention of a decoder layer; None for one with a recurrent state, for example.

    It is `self_attn`, or where each layer has one part of any kind (`mixer`), one with queries.
    """
    if getattr(layer, "block_type", "") == "linear_attention":
        return None  # some call that self_attn, too
    mixer = getattr(layer, "mixer", None)
    found: nn.Module | None = getattr(layer, "self_attn", None)
    return mixer if found is None and hasattr(mixer, "q_proj") else found


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm after a decoder's last layer: `norm`, or the one norm beside its layers.

    Raises:
        CdkitError: Where it has none, or several.
    """
    found = {
        name: module
        for name, module in decoder.named_children()
        if type(module).__name__.endswith("Norm") or name == "norm"
    }
    if "norm" in found:
        return found["norm"]
    if len(found) != 1:
        raise CdkitError(
            f"{type(decoder).__name__} has {len(found)} norms beside its layers, so how it makes "
            "logits of a layer's states is not known"
        )
    return next(iter(found.values()))


def flat(features: Tensor | Sequence[Tensor]) -> Float[Tensor, "tokens hidden"]:
    """Features of images, or of tiles, one after the other as one sequence."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def runs(is_image: Bool[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """Number images of which each is one run of image tokens.

    Returns:
        For each token the number of its image in the row, from 0; -1 for text.
    """
    before = torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    number = (is_image & ~before).long().cumsum(dim=-1) - 1
    return number.masked_fill(~is_image, -1)


def visual_runs(
    adapter: ModelAdapter,
    model: Any,
    ids: Int[Tensor, "rows tokens"],
    is_image: Bool[Tensor, "rows tokens"],
    *,
    tokens: int | None = None,
) -> Int[Tensor, "rows tokens"]:
    """Number runs of image tokens and of video tokens, each of which is an image.

    Args:
        adapter: Says where videos are, if it reads any.
        model: The model.
        ids: Token ids.
        is_image: Which tokens are image tokens.
        tokens: How many tokens a picture has; None where each run of them is one picture.

    Returns:
        For each token the number of its image in the row, from 0; -1 for text.
    """
    if adapter.videos is None:
        return runs(is_image) if tokens is None else groups_of(is_image, tokens)
    is_video = adapter.videos.is_video(model, ids)
    kind = is_image.long().masked_fill(is_video, 2)
    before = torch.nn.functional.pad(kind, (1, 0))[:, :-1]
    begins = (kind > 0) & (kind != before)
    if tokens is not None:
        counted = (kind == 1).cumsum(dim=-1) - 1
        begins = torch.where(kind == 1, counted % tokens == 0, begins)
    number = begins.long().cumsum(dim=-1) - 1
    return number.masked_fill(kind == 0, -1)


def runs_apart(is_image: Bool[Tensor, "rows tokens"], marks: int) -> Int[Tensor, "rows tokens"]:
    """Number images that have marks inside.

    Args:
        is_image: Which tokens are image tokens.
        marks: Runs with so many tokens between them, or fewer, are one image.

    Returns:
        For each token the number of its image in the row, from 0; -1 for text.
    """
    columns = torch.arange(is_image.shape[1], device=is_image.device)
    last = columns.where(is_image, -(is_image.shape[1] + marks + 2)).cummax(dim=-1).values
    before = torch.nn.functional.pad(last, (1, 0), value=-(is_image.shape[1] + marks + 2))[:, :-1]
    number = (is_image & (columns - before > marks + 1)).long().cumsum(dim=-1) - 1
    return number.masked_fill(~is_image, -1)


def groups_of(is_image: Bool[Tensor, "rows tokens"], tokens: int) -> Int[Tensor, "rows tokens"]:
    """Number images that all have the same number of image tokens, `tokens`.

    Returns:
        For each token the number of its image in the row, from 0; -1 for text.
    """
    number: Tensor = (is_image.cumsum(dim=-1) - 1) // tokens
    return number.masked_fill(~is_image, -1)


def one_entry_each(given: Mapping[str, Any]) -> list[Tensor]:
    """Split `pixel_values` that have one entry for each image: its picture, or its tiles."""
    pixels: Tensor = given["pixel_values"]
    return [entry if entry.ndim == 4 else entry[None] for entry in pixels]


def joined_entries(images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """The inverse of `one_entry_each`."""
    pixels: Tensor = given["pixel_values"]
    return torch.stack([image.view(pixels.shape[1:]) for image in images])


def one_square(count: int, why: str) -> tuple[TokenGrid, ...] | str:
    """The grid of a picture with a token a patch, row by row; a class token may stand before them.

    Args:
        count: How many tokens the picture has.
        why: What stands for the grid where they are no square.
    """
    side = math.isqrt(count)
    classes = count - side**2
    return why if classes > 1 else (frame_grid(side, side, first=classes),)


def square_tiles(
    tokens: Sequence[int], tokens_a_tile: int, why: str, *, whole: Literal["first", "last"]
) -> list[tuple[TokenGrid, ...] | str]:
    """The grids of images whose tiles follow each other, each a square of tokens, row by row.

    The small picture of the whole comes first, as a page shows no more than some of them.

    Args:
        tokens: How many image tokens each image has.
        tokens_a_tile: How many of them a tile has.
        why: What stands for the grids of an image whose tokens are no squares.
        whole: Where the whole picture stands among the tiles, if there are several.
    """
    side, found = math.isqrt(tokens_a_tile), list[tuple[TokenGrid, ...] | str]()
    for count in tokens:
        tiles = count // tokens_a_tile
        if side**2 != tokens_a_tile or tiles * tokens_a_tile != count:
            found.append(why)
            continue
        small = 0 if whole == "first" else tiles - 1
        cut = [tile for tile in range(tiles) if tile != small]
        names = {small: "whole picture"} if cut else {small: ""}
        names |= {tile: f"tile {number}" for number, tile in enumerate(cut, start=1)}
        found.append(
            tuple(
                frame_grid(side, side, first=tile * tokens_a_tile, frame=tile, name=names[tile])
                for tile in (small, *cut)
            )
        )
    return found


def tiles_by_tokens(
    given: Mapping[str, Any], tokens: Sequence[int], tokens_a_tile: int
) -> list[Tensor]:
    """Split `pixel_values` that have one entry for each tile.

    Args:
        given: The arguments of the encoder.
        tokens: How many image tokens each image has; from it follows how many tiles.
        tokens_a_tile: How many image tokens a tile has.

    Returns:
        The tiles of each image.

    Raises:
        CdkitError: Where the tokens do not fit the number of tiles.
    """
    pixels: Tensor = given["pixel_values"]
    tiles = [count // tokens_a_tile for count in tokens]
    if sum(tiles) != pixels.shape[0] or any(count % tokens_a_tile for count in tokens):
        raise CdkitError(
            f"the prompts have image tokens for {sum(tokens) / tokens_a_tile:g} tiles, "
            f"{tokens_a_tile} tokens each, but pixel_values holds {pixels.shape[0]} tiles; pass "
            "what one call of the processor returns"
        )
    return list(torch.split(pixels, tiles))
