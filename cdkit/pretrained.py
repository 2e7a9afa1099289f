"""Load a model and its processor by name: the embedded one, a folder, or a hub name."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from cdkit.errors import CdkitError
from cdkit.interfaces.model_adapter import ADAPTERS

MICRO = "micro"
"""The name of the embedded model."""


def micro_path() -> Path:
    """The folder of the embedded checkpoint: a stock LlavaForConditionalGeneration."""
    return Path(str(resources.files("cdkit.models"))) / MICRO


def load_model(
    name_or_path: str | Path, *, dtype: str | torch.dtype = "auto", device_map: Any = None
) -> tuple[Any, Any]:
    """(model in eval mode, processor) of "micro", a checkpoint folder, or a hub name.

    `dtype` and `device_map` go to `from_pretrained`; "micro" loads in float32. Without torchvision
    a processor that would read videos too reads images and text alone.
    """
    ADAPTERS.load()  # a family may bring a model class of its own, which the Auto classes must know
    path = micro_path() if str(name_or_path) == MICRO else name_or_path
    if path == micro_path():
        dtype = torch.float32 if dtype == "auto" else dtype
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, device_map=device_map
        )
        processor = _processor(path, model.config)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first_line = (
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )
        raise CdkitError(
            f"cannot load the model {str(name_or_path)!r}{_no_folder(name_or_path)}: {first_line}"
        ) from None
    if getattr(processor, "tokenizer", None) is not None:
        processor.tokenizer.padding_side = "left"  # generation continues at the right end
    return model.eval(), processor


def _no_folder(name_or_path: str | Path) -> str:
    """A folder that is not there is looked up on the hub, whose error says nothing of it."""
    return "" if Path(name_or_path).exists() else " (there is no such folder, so it is a hub name)"


class NoVideos:
    """Stands where a processor keeps its video processor, which needs torchvision."""

    num_frames = fps = None  # SmolVLM's chat template asks for them
    model_input_names = ()
    _auto_class = None  # read where a processor is saved

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise CdkitError("videos are not supported: cdkit's methods are about images; pass images")


def _processor(path: str | Path, config: PreTrainedConfig) -> Any:
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if not is_torchvision_available() and kind is not None:
        places = kind.get_attributes()
        if set(places) == {"image_processor", "tokenizer", "video_processor"}:
            return _of_images(kind, places, path)
    return AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]


def _of_images(kind: Any, places: Sequence[str], path: str | Path) -> Any:
    """A processor of `kind` without its video processor; `places` are its parts, in order."""

    class ImagesAlone(kind):  # type: ignore[misc]
        """Takes the stand-in, which is no video processor by its class, and never saves it."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, NoVideos):
                return NoVideos
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            return {k: v for k, v in super().to_dict().items() if not isinstance(v, NoVideos)}

    ImagesAlone.__name__ = ImagesAlone.__qualname__ = kind.__name__
    auto: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    parts = [auto[p].from_pretrained(path) if p in auto else NoVideos() for p in places]
    settings, more = kind.get_processor_dict(path)
    return ImagesAlone.from_args_and_dict(parts, settings, **more)
