"""Llama 4: tiles of a picture; layers that see a chunk of the text, or have no positions."""

from inspect import getsource
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from transformers import __version__
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from cdkit import ADAPTERS, CdkitError
from cdkit.models.layouts.standard import flat
from cdkit.models.layouts.tiles import TilesAdapter


@ADAPTERS.register("llama4")
class Llama4(TilesAdapter):
    """Llama4ForConditionalGeneration: tiles with separators, then the whole picture, small.

    Most layers see the present chunk of the text alone (8192 tokens): for methods that change the
    attention, prompt and answer must fit into one. The other layers have no RoPE, and a calibrator
    moves nothing there. transformers 5.24 itself cannot run it, and no version runs it with beams.
    """

    example: ClassVar[str] = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    decoder_path: ClassVar[str] = "language_model.model"
    encoder_path: ClassVar[str] = ""
    placeholder: ClassVar[str] = "<|image|>"
    fallback: ClassVar[str] = (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{images}{question}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )

    def check(self, model: Any) -> None:
        reads = "outputs.image_outputs" in getsource(type(model).forward)
        if reads and not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
            raise CdkitError(
                f"Llama 4 does not run in transformers {__version__}: its forward ends by reading "
                "image_outputs of its language model's output, which has none; use a version of "
                "transformers in which model.generate runs without cdkit, such as 5.23"
            )
        super().check(model)

    def tokens_a_tile(self, model: Any) -> int:
        vision = model.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return int(side**2 * vision.pixel_shuffle_ratio**2)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        begun: Tensor = ids == model.config.boi_token_id
        number = begun.cumsum(dim=-1) - 1
        return number.masked_fill(ids != model.config.image_token_id, -1)

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        return flat(output.last_hidden_state)

    def placed_features(
        self, model: Any, features: Float[Tensor, "tokens encoded"]
    ) -> Float[Tensor, "tokens hidden"]:
        projected: Tensor = model.multi_modal_projector(features)
        return projected

    def counts_padding_from(self, model: Any) -> int | None:
        """Layers without RoPE scale their queries by the column (temperature tuning)."""
        text = model.config.text_config
        scales = text.attn_temperature_tuning and not all(text.no_rope_layers)
        return int(text.floor_scale) if scales else None
