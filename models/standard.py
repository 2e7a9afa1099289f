"""What most families share: a Llama-like decoder behind an image encoder, found by name."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit.adapter import ModelAdapter, Rotary, chat_prompt, probe_rotary
from cdkit.errors import CdkitError

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not change with the length of the sequence."""


class StandardAdapter(ModelAdapter, abc.ABC):
    """A family says where its image tokens stand and how its pixels split; the rest is here.

    The decoder is `model.model.<decoder_name>` with `layers[i].self_attn` and `norm`, the output
    head `model.lm_head`; `generate` calls `model.model.get_image_features`.
    """

    causal_prefix: ClassVar[bool] = True
    decoder_name: ClassVar[str] = "language_model"
    fallback: ClassVar[str] = "USER: {images}{question} ASSISTANT:"
    """The prompt of a processor without a chat template."""

    def check(self, model: Any) -> None:
        if not hasattr(model, "lm_head"):
            raise CdkitError(
                f"{type(model).__name__} has no output head; load the model with "
                "AutoModelForImageTextToText"
            )
        if not all(hasattr(layer, "self_attn") for layer in self.layers(model)):
            raise CdkitError(
                f"the decoder {type(self.decoder(model)).__name__} has layers without a self_attn "
                "module; cdkit supports Llama-like decoders"
            )
        self.check_images(model)

    @abc.abstractmethod
    def check_images(self, model: Any) -> None:
        """Raise where this model's images cannot be told apart; nothing to say for most."""

    def decoder(self, model: Any) -> nn.Module:
        decoder: nn.Module = getattr(model.model, self.decoder_name)
        return decoder

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return list(getattr(self.decoder(model), "layers", ()))

    def attention(self, layer: Any) -> nn.Module:
        attention: nn.Module = layer.self_attn
        return attention

    def reader(self, model: nn.Module) -> nn.Module:
        return model

    def encoder(self, model: Any) -> tuple[nn.Module, str]:
        return model.model, "get_image_features"

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        return flat(output.pooler_output)

    def levels(self, output: Any) -> Sequence[Float[Tensor, "tokens hidden"]]:
        return [flat(level) for level in getattr(output, "deepstack_features", None) or ()]

    def level_arguments(
        self, levels: tuple[Bool[Tensor, "rows tokens"], Sequence[Tensor]] | None
    ) -> Mapping[str, Any]:
        where, what = levels or (None, None)
        return {"visual_pos_masks": where, "deepstack_visual_embeds": what}

    def embed(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        embeddings: Tensor = model.get_input_embeddings()(ids)
        return embeddings

    def logits(
        self, model: Any, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        decoder: Any = self.decoder(model)
        logits: Tensor = model.lm_head(decoder.norm(hidden) if norm else hidden)
        return logits

    def rotary(self, model: Any) -> Sequence[Rotary | None] | None:
        embedding: Any = getattr(self.decoder(model), "rotary_emb", None)
        if embedding is None or getattr(embedding, "rope_type", None) not in FIXED_ROPE:
            return None
        rotary = probe_rotary(self.attention(self.layers(model)[0]), embedding)
        return None if rotary is None else [rotary] * len(self.layers(model))

    def system_slot(self, ids: Sequence[int], tokenizer: Any) -> int:
        bos = getattr(tokenizer, "bos_token_id", None)
        return int(bool(ids) and bos is not None and ids[0] == bos)

    def prompt(self, question: str, *, images: int, processor: Any) -> str:
        return chat_prompt(question, images=images, processor=processor, fallback=self.fallback)


def flat(features: Tensor | Sequence[Tensor]) -> Float[Tensor, "tokens hidden"]:
    """Features image by image, tile by tile, as one sequence."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def runs(is_image: Bool[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """Image tokens that stand together are one image."""
    before = torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    number = (is_image & ~before).long().cumsum(dim=-1) - 1
    return number.masked_fill(~is_image, -1)


def runs_apart(is_image: Bool[Tensor, "rows tokens"], marks: int) -> Int[Tensor, "rows tokens"]:
    """Runs with `marks` tokens between them, or fewer, are one image."""
    columns = torch.arange(is_image.shape[1], device=is_image.device)
    last = columns.where(is_image, -(is_image.shape[1] + marks + 2)).cummax(dim=-1).values
    before = torch.nn.functional.pad(last, (1, 0), value=-(is_image.shape[1] + marks + 2))[:, :-1]
    number = (is_image & (columns - before > marks + 1)).long().cumsum(dim=-1) - 1
    return number.masked_fill(~is_image, -1)


def groups_of(is_image: Bool[Tensor, "rows tokens"], tokens: int) -> Int[Tensor, "rows tokens"]:
    """Every `tokens` image tokens are one image."""
    number: Tensor = (is_image.cumsum(dim=-1) - 1) // tokens
    return number.masked_fill(~is_image, -1)


def one_entry_each(given: Mapping[str, Any]) -> list[Tensor]:
    """`pixel_values` with an entry for each image: its picture, or its tiles."""
    pixels: Tensor = given["pixel_values"]
    return [entry if entry.ndim == 4 else entry[None] for entry in pixels]


def joined_entries(images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """The inverse of `one_entry_each`."""
    pixels: Tensor = given["pixel_values"]
    return torch.stack([image.view(pixels.shape[1:]) for image in images])


def tiles_by_tokens(
    given: Mapping[str, Any], tokens: Sequence[int], tokens_a_tile: int
) -> list[Tensor]:
    """`pixel_values` with an entry for each tile; an image has as many as its tokens tell."""
    pixels: Tensor = given["pixel_values"]
    return list(pixels.split([count // tokens_a_tile for count in tokens]))
