"""Gemma 4: dense, mixture of experts, with inputs for each layer, and without a vision tower."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from cdkit import ADAPTERS, SeesAhead
from cdkit.models.layouts.placed_patches import PlacedPatchesAdapter
from cdkit.models.layouts.standard import runs


@ADAPTERS.register("gemma4")
class Gemma4(PlacedPatchesAdapter):
    """Gemma4ForConditionalGeneration: pooled patches between a begin and an end mark.

    Most layers attend to a sliding window of tokens and use other rotary frequencies than the rest,
    which rotate a part of each head: for methods that change the attention, prompt and answer must
    fit into the window. The small models (E2B, E4B) give each layer an input of its own for each
    token, made from the token's id, and their last layers use the keys and values of layers below
    them: what a method does to the image's keys and values it does there, too. Their image tokens
    see nothing ahead.
    """

    example: ClassVar[str] = "google/gemma-4-31B-it"
    sees_ahead: ClassVar[SeesAhead] = "in images"
    caps_logits: ClassVar[bool] = True
    reads_ids: ClassVar[bool] = True
    placeholder: ClassVar[str] = "<|image|>"
    fallback: ClassVar[str] = "<|turn>user\n{images}{question}<turn|>\n<|turn>model\n"

    def sees_ahead_in(self, model: Any) -> SeesAhead:
        both_ways = model.config.get_text_config().use_bidirectional_attention == "vision"
        return self.sees_ahead if both_ways else "nowhere"

    def token_kwargs(self, model: Any, ids: Int[Tensor, "rows tokens"]) -> Mapping[str, Tensor]:
        config, decoder = model.config, self.decoder(model)
        if not getattr(config.get_text_config(), "hidden_size_per_layer_input", 0):
            return {}
        soft = [config.image_token_id, config.video_token_id, config.audio_token_id]
        text = ids.masked_fill(
            torch.isin(ids, ids.new_tensor(soft)), config.text_config.pad_token_id
        )
        per_layer: Any = decoder.get_per_layer_inputs
        return {"per_layer_inputs": per_layer(text)}


@ADAPTERS.register("gemma4_unified")
class Gemma4Unified(Gemma4):
    """Gemma4UnifiedForConditionalGeneration: no vision tower, a token for each patch.

    With a static cache transformers itself lets fewer layers see an image both ways than with a
    dynamic one. So methods are refused with a static cache.
    """

    example: ClassVar[str] = "google/gemma-4-12B-it"
    refuses_static: ClassVar[str] = (
        "with a static cache transformers masks this family's images in another way than with a "
        "dynamic one, and gives other logits"
    )

    def create_masks(
        self, model: Any, types: Int[Tensor, "rows columns"], given: Mapping[str, Any]
    ) -> Any:
        # its forward lets every layer see an image both ways; its create_masks_for_generate, which
        # generate uses with a static cache, some of them
        config, blocks = model.config.get_text_config(), runs(types == 1)
        return create_masks_for_generate(config=config, block_sequence_ids=blocks, **given)
