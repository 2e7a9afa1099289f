"""Qwen-VL's configuration; the defaults are those of the published checkpoints.

Its classes are not type-checked when called: transformers makes their `__init__`, which takes more
keywords than its signature says.
"""

from typing import Any, ClassVar, no_type_check

from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.qwen2 import Qwen2Config

from cdkit import CdkitError


@no_type_check
class QwenVLVisionConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The vision tower and the resampler."""

    model_type = "qwen_vl_vision"
    base_config_key = "vision_config"

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    num_positions: int = 256
    """Places in the learned table of positions, a square; interpolated to the grid of patches."""
    num_queries: int = 256
    """Tokens an image has in the text: the resampler's queries, a square."""
    resampler_attention_heads: int = 32
    output_size: int = 4096
    """Width of the resampler and of its tokens: that of the language model."""
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        squares = {"num_positions": self.num_positions, "num_queries": self.num_queries}
        for name, value in squares.items():
            if round(value**0.5) ** 2 != value:
                raise CdkitError(f"{name} must be a square number, got {value}")
        if self.image_size % self.patch_size:
            raise CdkitError(
                f"image_size ({self.image_size}) must be a multiple of patch_size "
                f"({self.patch_size})"
            )
        heads = {"hidden_size": self.num_attention_heads}
        heads["output_size"] = self.resampler_attention_heads
        for name, count in heads.items():
            if getattr(self, name) % count:
                raise CdkitError(f"{name} must be a multiple of its {count} attention heads")
        if self.output_size % 4:
            raise CdkitError(f"output_size must be a multiple of 4, got {self.output_size}")


@no_type_check
class QwenVLConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """An image encoder of 256 tokens an image before a stock Qwen2 decoder.

    `text_config.max_position_embeddings` is the length the model was trained on (2048): beyond it
    the original scales queries (log-n) and RoPE's base (dynamic NTK), which stock Qwen2 does not.
    """

    model_type = "qwen_vl"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": SubConfigSpec(config_class=QwenVLVisionConfig),
        "text_config": SubConfigSpec(
            config_class=Qwen2Config,
            init_kwargs={"intermediate_size": 11008, "max_position_embeddings": 2048},
        ),
    }

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 151859
    """Stands num_queries times in the place of an image: `<imgpad>`."""
    image_start_token_id: int = 151857
    image_end_token_id: int = 151858
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        made, taken = self.vision_config.output_size, self.text_config.hidden_size
        if made != taken:
            raise CdkitError(
                f"vision_config.output_size ({made}) must be text_config.hidden_size ({taken})"
            )
