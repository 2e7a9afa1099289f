"""GLM-4V: images of any size, partial multimodal RoPE on pairs of neighbours."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import MarkedPatchVideos


@ADAPTERS.register("glm4v")
class Glm4V(PatchAdapter):
    """Glm4vForConditionalGeneration: `<|image|>` between a begin and an end mark."""

    example: ClassVar[str] = "zai-org/GLM-4.1V-9B-Thinking"
    videos: ClassVar[VideoLayout | None] = MarkedPatchVideos(timestamps=True)
    placeholder: ClassVar[str] = "<|begin_of_image|><|image|><|end_of_image|>"
    fallback: ClassVar[str] = "[gMASK]<sop><|user|>\n{images}{question}<|assistant|>\n"
