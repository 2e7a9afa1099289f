"""Video-LLaVA: one tower for images and one for videos, aligned, before a Llama decoder."""

from typing import Any, ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.fixed_tokens import FixedTokensAdapter
from cdkit.models.layouts.videos import FrameVideos


@ADAPTERS.register("video_llava")
class VideoLlava(FixedTokensAdapter):
    """VideoLlavaForConditionalGeneration: a token a patch, of frames the class token as well."""

    example: ClassVar[str] = "LanguageBind/Video-LLaVA-7B-hf"
    videos: ClassVar[VideoLayout | None] = FrameVideos(before=1)

    def tokens_an_image(self, model: Any) -> int:
        vision = model.config.vision_config
        side: int = vision.image_size // vision.patch_size
        with_class = model.config.vision_feature_select_strategy != "default"
        return side**2 + int(with_class)
