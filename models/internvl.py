"""InternVL: a picture as tiles that follow each other, the last one the whole picture, small."""

from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.standard import runs
from cdkit.models.layouts.tiles import TilesAdapter


@ADAPTERS.register("internvl")
class InternVL(TilesAdapter):
    """InternVLForConditionalGeneration: `<img>`, the tokens of all tiles, `</img>`."""

    example: ClassVar[str] = "OpenGVLab/InternVL3-1B-hf"
    placeholder: ClassVar[str] = "<IMG_CONTEXT>\n"

    def tokens_a_tile(self, model: Any) -> int:
        vision = model.config.vision_config
        height, width = (
            size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        return int(height * width * model.config.downsample_ratio**2)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs(ids == model.config.image_token_id)
