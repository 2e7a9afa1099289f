"""Gemma 3n: several states of a token in each layer (AltUp), inputs of each layer, shared keys."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.standard import StandardAdapter, joined_entries, one_entry_each, runs


@ADAPTERS.register("gemma3n")
class Gemma3n(StandardAdapter):
    """Gemma3nForConditionalGeneration: 256 tokens between a begin and an end mark for each image.

    Each layer has four states of a token, of which it computes one and corrects the others
    (alternating updates); a readout makes one state of them as the model does after its last layer.
    As in Gemma 4's small models, each layer gets an input of its own for each token, and the last
    layers use the keys and values of layers below them. Most layers attend to a sliding window:
    for methods that change the attention, prompt and answer must fit into it. Its image encoder is
    of the package timm, which needs torchvision.
    """

    example: ClassVar[str] = "google/gemma-3n-E2B-it"
    caps_logits: ClassVar[bool] = True
    reads_ids: ClassVar[bool] = True
    square_grid: ClassVar[bool] = True
    placeholder: ClassVar[str] = "<image_soft_token>"
    fallback: ClassVar[str] = (
        "<start_of_turn>user\n{images}{question}<end_of_turn>\n<start_of_turn>model\n"
    )

    def check_images(self, model: Any) -> None:
        pass  # marks stand between images

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs(ids == model.config.image_token_id)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return one_entry_each(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_entries(images, given)

    def embed(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """The marks after an image and after a sound have embeddings of their encoders' side."""
        embeds = super().embed(model, ids)
        vision, audio = model.model.embed_vision, model.model.embed_audio
        kinds = torch.where(ids >= audio.vocab_offset, 2, (ids >= vision.vocab_offset).long())
        for kind, side in ((1, vision), (2, audio)):
            there = kinds == kind
            if bool(there.any()):
                embeds = embeds.index_put((there,), side(input_ids=ids[there]).to(embeds))
        return embeds

    def token_kwargs(self, model: Any, ids: Int[Tensor, "rows tokens"]) -> Mapping[str, Tensor]:
        per_layer: Any = self.decoder(model).get_per_layer_inputs
        return {"per_layer_inputs": per_layer(ids)}

    def layer_states(
        self, states: Float[Tensor, "states rows tokens hidden"]
    ) -> Float[Tensor, "rows tokens states_hidden"]:
        return rearrange(states, "states rows tokens hidden -> rows tokens (states hidden)")

    def logits(
        self, model: Any, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        decoder: Any = self.decoder(model)
        first, *others = torch.split(hidden, decoder.config.hidden_size, dim=-1)
        size = first.pow(2).mean(dim=-1, keepdim=True).sqrt()
        states = [first]
        for project, state in zip(decoder.altup_unembed_projections, others, strict=False):
            projected = project(state)
            own = projected.pow(2).mean(dim=-1, keepdim=True).clamp(min=1e-5).sqrt()
            states.append(projected * size / own)
        return super().logits(model, torch.stack(states).mean(dim=0), norm=norm)
