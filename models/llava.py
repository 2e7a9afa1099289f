"""LLaVA: a CLIP tower, a projector and a Llama-like decoder (LLaVA-1.5 and its kin)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from cdkit.adapter import ADAPTERS, ModelAdapter, Rotary, chat_prompt, probe_rotary
from cdkit.errors import CdkitError

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not change with the length of the sequence."""

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose images are one square grid of patches each."""
CLASS_TOKEN = ("clip_vision_model",)
"""Towers that put a class token before the patches."""


@ADAPTERS.register("llava")
class Llava(ModelAdapter):
    """LlavaForConditionalGeneration: image tokens stand where the processor put `<image>`."""

    causal_prefix: ClassVar[bool] = True
    example: ClassVar[str] = "llava-hf/llava-1.5-7b-hf"

    def check(self, model: Any) -> None:
        if not hasattr(model, "lm_head"):
            raise CdkitError(
                f"{type(model).__name__} has no output head; load the model with "
                "LlavaForConditionalGeneration or AutoModelForImageTextToText"
            )
        tower = model.config.vision_config.model_type
        if tower not in TOWERS:
            raise CdkitError(
                f"LLaVA with a {tower} tower is not supported yet: this adapter must know how many "
                f"tokens an image has. Use a checkpoint with one of {', '.join(TOWERS)}"
            )
        if not all(hasattr(layer, "self_attn") for layer in self.layers(model)):
            raise CdkitError(
                f"the decoder {type(self.decoder(model)).__name__} has layers without a self_attn "
                "module; cdkit supports LLaVA with Llama-like decoders"
            )

    def decoder(self, model: Any) -> nn.Module:
        decoder: nn.Module = model.model.language_model
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

    def features(self, output: Any) -> Sequence[Float[Tensor, "_ hidden"]]:
        return list(output.pooler_output)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        config = model.config
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2
        tokens += vision.model_type in CLASS_TOKEN
        tokens -= config.vision_feature_select_strategy == "default"  # drops the first token
        is_image = ids == config.image_token_id
        number: Tensor = (is_image.cumsum(dim=-1) - 1) // tokens
        return number.masked_fill(~is_image, -1)

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

    def rotary(self, model: Any) -> Rotary | None:
        embedding: Any = getattr(self.decoder(model), "rotary_emb", None)
        if embedding is None or embedding.rope_type not in FIXED_ROPE:
            return None
        return probe_rotary(self.attention(self.layers(model)[0]), embedding)

    def system_slot(self, ids: Sequence[int], tokenizer: Any) -> int:
        bos = getattr(tokenizer, "bos_token_id", None)
        return int(bool(ids) and bos is not None and ids[0] == bos)

    def prompt(self, question: str, *, images: int, processor: Any) -> str:
        return chat_prompt(
            question,
            images=images,
            processor=processor,
            fallback="USER: {images}{question} ASSISTANT:",
        )
