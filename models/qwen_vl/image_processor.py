"""Qwen-VL's image processor: a square of 448 pixels, whatever the image's shape."""

from typing import ClassVar

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


class QwenVLImageProcessor(PilBackend):
    """RGB, Pillow's bicubic resize without keeping the aspect ratio, CLIP's mean and deviation.

    By Pillow on every machine, as the original does: torchvision's resize of tensors differs.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: ClassVar[dict[str, int]] = {"height": 448, "width": 448}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
