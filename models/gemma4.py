"""Gemma 4 with a vision tower: dense and mixture of experts, without per-layer inputs."""

from typing import Any, ClassVar

from cdkit import ADAPTERS, CdkitError, SeesAhead
from cdkit.models.layouts.placed_patches import PlacedPatchesAdapter


@ADAPTERS.register("gemma4")
class Gemma4(PlacedPatchesAdapter):
    """Gemma4ForConditionalGeneration: pooled patches between a begin and an end mark.

    Most layers attend to a sliding window of tokens and use other rotary frequencies than the rest,
    which rotate a part of each head: for methods that change the attention, prompt and answer must
    fit into the window. The small models (E2B, E4B) give each layer an input of its own for each
    token, and share keys among layers: they are refused.
    """

    example: ClassVar[str] = "google/gemma-4-31B-it"
    sees_ahead: ClassVar[SeesAhead] = "in images"
    caps_logits: ClassVar[bool] = True
    placeholder: ClassVar[str] = "<|image|>"
    fallback: ClassVar[str] = "<|turn>user\n{images}{question}<turn|>\n<|turn>model\n"

    def check(self, model: Any) -> None:
        text = model.config.get_text_config()
        if getattr(text, "hidden_size_per_layer_input", 0):
            raise CdkitError(
                "this Gemma 4 gives each layer an input of its own for each token "
                "(hidden_size_per_layer_input), which the branches' prompts do not have; use one "
                "without, such as google/gemma-4-31B-it"
            )
        if getattr(text, "num_kv_shared_layers", 0):
            raise CdkitError(
                f"the last {text.num_kv_shared_layers} layers of this Gemma 4 use the keys and "
                "values of layers below them (num_kv_shared_layers); use one without, such as "
                "google/gemma-4-31B-it"
            )
        super().check(model)
