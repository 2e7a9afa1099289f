"""Qwen-VL as a model of transformers: tower and resampler before a stock Qwen2 decoder."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.qwen2 import Qwen2Model
from transformers.utils.generic import can_return_tuple

from cdkit import CACHE, OLD_CACHE, CdkitError

from .configuration import QwenVLConfig
from .resampler import QwenVLResampler, sine_table
from .vision import QwenVLVisionTower


class QwenVLPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What the bare model and the one with an output head share."""

    config_class = QwenVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ("QwenVLVisionLayer", "QwenVLResampler")  # type: ignore[assignment]
    _skip_keys_device_placement = (CACHE,)  # type: ignore[assignment]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, QwenVLVisionTower):
            initialization.normal_(module.positions, std=module.positions.shape[1] ** -0.5)
        if isinstance(module, QwenVLResampler):
            places, width = module.positions.shape
            initialization.trunc_normal_(module.queries, std=0.02)
            initialization.copy_(module.positions, sine_table(round(places**0.5), width))


class QwenVLModel(QwenVLPreTrainedModel):  # type: ignore[no-untyped-call]
    """Image tokens in the places of `<imgpad>`, then the decoder; no output head."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.vision_tower = QwenVLVisionTower(config.vision_config)
        self.resampler = QwenVLResampler(config.vision_config)
        self.language_model = Qwen2Model(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def get_image_features(
        self, pixel_values: Float[Tensor, "images channels height width"], **kwargs: Any
    ) -> Any:
        """`pooler_output`: (num_queries, hidden) for each image; the states of its patches too."""
        patches = self.vision_tower(pixel_values.to(self.vision_tower.patch_embedding.weight.dtype))
        tokens: Any = list(self.resampler(patches))  # as LLaVA's: one tensor an image
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=tokens)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"] | None = None,
        pixel_values: Float[Tensor, "images channels height width"] | None = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "rows tokens hidden"] | None = None,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`pixel_values`: the images of all rows, in the order of their tokens.

        In their place `mm_encoder_outputs["image"]` may give what `get_image_features` returned.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise CdkitError("give either input_ids or inputs_embeds, not both and not neither")
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and pixel_values is not None:
            raise CdkitError("give either pixel_values or mm_encoder_outputs, not both")
        cache = kwargs.pop(OLD_CACHE, cache)
        embeds: Any = inputs_embeds
        if embeds is None:
            embeds = self.get_input_embeddings()(input_ids)
        self._check_length(embeds.shape[1], cache)
        if pixel_values is not None:
            encoded = self.get_image_features(pixel_values, return_dict=True)
        if encoded is not None:
            features = torch.cat(list(encoded.pooler_output)).to(embeds)
            places = self._places(input_ids, embeds)
            if int(places.sum()) != len(features):
                raise CdkitError(
                    f"the prompts hold {int(places.sum())} image tokens and the images make "
                    f"{len(features)}; pass the images of these very prompts, in their order"
                )
            embeds = embeds.masked_scatter(places[..., None], features)
        out = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=embeds,
            **{CACHE: cache},
            **kwargs,
        )
        return BaseModelOutputWithPast(**out)

    def _places(
        self, ids: Int[Tensor, "rows tokens"] | None, embeds: Float[Tensor, "rows tokens hidden"]
    ) -> Bool[Tensor, "rows tokens"]:
        """Where image tokens stand; by their embedding where a caller has no ids."""
        if ids is None:
            token = torch.tensor(self.config.image_token_id, device=embeds.device)
            found: Tensor = (embeds == self.get_input_embeddings()(token)).all(dim=-1)
        else:
            found = (ids == self.config.image_token_id).to(embeds.device)
        return found

    def _check_length(self, tokens: int, cache: Cache | None) -> None:
        """Refuse what the original would compute with log-n attention and dynamic NTK.

        It counts columns, padding included, and in training it uses neither.
        """
        columns = tokens + (0 if cache is None else int(cache.get_seq_length()))
        limit = self.config.text_config.max_position_embeddings
        if columns > limit and not self.training:
            raise CdkitError(
                f"{columns} tokens are more than the {limit} that Qwen-VL was trained on; beyond "
                "them its log-n attention and dynamic NTK are not supported. Shorten the prompt "
                "or max_new_tokens"
            )


class QwenVLForConditionalGeneration(  # type: ignore[no-untyped-call]
    QwenVLPreTrainedModel, GenerationMixin
):
    """Qwen-VL with its output head: text after images and text."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.model = QwenVLModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_image_features(
        self, pixel_values: Float[Tensor, "images channels height width"], **kwargs: Any
    ) -> Any:
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Int[Tensor, "rows tokens"] | None = None,
        pixel_values: Float[Tensor, "images channels height width"] | None = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "rows tokens hidden"] | None = None,
        labels: Int[Tensor, "rows tokens"] | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`logits_to_keep`: of the last so many tokens, or of those it lists; 0: of all."""
        out = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(out.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            **{CACHE: getattr(out, CACHE)},
        )
