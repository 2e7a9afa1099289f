"""Load a model and its processor by name: the embedded one, a folder, or a hub name."""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from cdkit.errors import CdkitError

MICRO = "micro"
"""The name of the embedded model."""


def micro_path() -> Path:
    """The folder of the embedded checkpoint: a stock LlavaForConditionalGeneration."""
    return Path(str(resources.files("cdkit.models"))) / MICRO


def load_model(
    name_or_path: str | Path, *, dtype: str | torch.dtype = "auto", device_map: Any = None
) -> tuple[Any, Any]:
    """(model in eval mode, processor) of "micro", a checkpoint folder, or a hub name.

    `dtype` and `device_map` go to `from_pretrained`; "micro" loads in float32.
    """
    path = micro_path() if str(name_or_path) == MICRO else name_or_path
    if path == micro_path():
        dtype = torch.float32 if dtype == "auto" else dtype
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, device_map=device_map
        )
        processor: Any = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first_line = (
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )
        raise CdkitError(f"cannot load the model {str(name_or_path)!r}: {first_line}") from None
    if getattr(processor, "tokenizer", None) is not None:
        processor.tokenizer.padding_side = "left"  # generation continues at the right end
    return model.eval(), processor
