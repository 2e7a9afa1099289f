"""Qwen-VL (the first), ported to transformers, whose Auto classes know it once this is imported.

The registry of adapters imports it with all other families.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .adapter import QwenVL
from .configuration import QwenVLConfig, QwenVLVisionConfig
from .conversion import convert
from .image_processor import QwenVLImageProcessor
from .modeling import QwenVLForConditionalGeneration, QwenVLModel
from .processing import BASE_TEMPLATE, CHAT_TEMPLATE, QwenVLProcessor
from .tokenizer import build_tokenizer, read_ranks

AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig)
AutoModel.register(QwenVLConfig, QwenVLModel)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration)
AutoImageProcessor.register(  # under both names: else transformers warns that one is missing
    QwenVLConfig,
    image_processor_classes={"pil": QwenVLImageProcessor, "torchvision": QwenVLImageProcessor},
)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor)  # type: ignore[no-untyped-call]

__all__ = [
    "BASE_TEMPLATE",
    "CHAT_TEMPLATE",
    "QwenVL",
    "QwenVLConfig",
    "QwenVLForConditionalGeneration",
    "QwenVLImageProcessor",
    "QwenVLModel",
    "QwenVLProcessor",
    "QwenVLVisionConfig",
    "build_tokenizer",
    "convert",
    "read_ranks",
]
