"""Granite 4 Vision: LLaVA-NeXT's tiles, whose features come in at several layers of the decoder."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor
from transformers.models.granite4_vision.modeling_granite4_vision import image_size_to_num_patches

from cdkit import ADAPTERS
from cdkit.models.layouts.padded_images import PaddedTilesOfSizesAdapter
from cdkit.models.layouts.standard import flat


@ADAPTERS.register("granite4_vision")
class Granite4Vision(PaddedTilesOfSizesAdapter):
    """Granite4VisionForConditionalGeneration: one run of image tokens a picture.

    An image token enters the decoder as zeros. Features of several layers of the image encoder are
    added to it, each before a decoder layer that the config names. So methods that change the
    features between encoder and decoder find nothing to change, and are refused.
    """

    features_in_layers: ClassVar[bool] = True
    example: ClassVar[str] = "ibm-granite/granite-vision-4.1-4b"
    fallback: ClassVar[str] = (
        "<|start_of_role|>user<|end_of_role|>{images}{question}<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    )

    def tile_side(self, model: Any) -> int:
        return int(super().tile_side(model) * Fraction(model.config.downsample_rate))

    def tiles(self, model: Any, given: Mapping[str, Any]) -> list[int]:
        config = model.config
        grids, side = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(size, grids, side) for size in given["image_sizes"]]

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        _, first = output.deepstack_features[0]
        return flat(first).new_zeros(flat(first).shape)

    def deepstack_features(self, output: Any) -> Sequence[Float[Tensor, "tokens hidden"]]:
        return [flat(features) for _, features in output.deepstack_features]

    def deepstack_kwargs(
        self, model: Any, features: tuple[Bool[Tensor, "rows tokens"], Sequence[Tensor]] | None
    ) -> Mapping[str, Any]:
        if features is None:
            return {"vision_mask": None, "deepstack_features": None}
        is_image, added = features
        config = model.config
        layers = [layer for _, layer in config.deepstack_layer_map] + config.spatial_target_layers
        of_layers = dict(zip(layers, added, strict=True))
        return {"vision_mask": is_image[..., None], "deepstack_features": of_layers}

    def logits(
        self, model: Any, hidden: Float[Tensor, "rows hidden"], *, norm: bool = True
    ) -> Float[Tensor, "rows vocab"]:
        logits = super().logits(model, hidden, norm=norm)
        scaled: Tensor = logits / model.config.text_config.logits_scaling
        return scaled
