"""Load a model and its processor by name: the embedded one, a folder, or a hub name."""

import multiprocessing
import pickle
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText

from cdkit.errors import CdkitError, CdkitWarning
from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.processors import load_processor

MICRO = "micro"
"""The name of the embedded model."""
BROKEN = (
    OSError,
    ValueError,
    ImportError,
    KeyError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    SafetensorError,
)
"""What transformers and torch raise for files that are missing, damaged or of an unknown kind."""
SHOWN = 3
"""Weights that an error names."""


def micro_path() -> Path:
    """The folder of the embedded checkpoint: a stock LlavaForConditionalGeneration."""
    return Path(str(resources.files("cdkit.models"))) / MICRO


def example_image() -> Image.Image:
    """A picture to try a method on: one photo of the world that the embedded model knows.

    Returns:
        An RGB image of 64 x 64 pixels. It shows a chair, a person and a spoon.
    """
    with Image.open(micro_path().parent / "example.png") as image:
        return image.convert("RGB")


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    revision: str | None = None,
    quantization_config: Any = None,
    attn_implementation: Any = None,
) -> tuple[Any, Any]:
    """Load a model and its processor.

    Code that a checkpoint brings is never run. Without torchvision, a processor that would also
    read videos reads images and text only.

    Args:
        name_or_path: "micro" (the model that cdkit contains), a checkpoint folder, or a name on
            the Hugging Face hub.
        device: Where the model goes: "auto" (the accelerator there is, else the CPU), "cpu",
            "cuda:1", ...; None leaves it where `from_pretrained` puts it.
        dtype: Data type of the weights; "auto" is the checkpoint's ("micro" loads in float32).
        device_map: Spreads a model over devices, as in `from_pretrained`; not with `device`.
        revision: The branch, tag or commit of a model on the hub.
        quantization_config: As in `from_pretrained`, for example a BitsAndBytesConfig.
        attn_implementation: As in `from_pretrained`, for example "sdpa".

    Returns:
        The model in eval mode, and its processor, which pads on the left.

    Raises:
        CdkitError: If there is no such model or device, a file is damaged, the files lack one of
            the model's weights or hold more layers than its config says, or the checkpoint needs
            code of its own.
    """
    ADAPTERS.load()  # a family may define a model class, which the Auto classes must know
    path = micro_path() if str(name_or_path) == MICRO else name_or_path
    if path == micro_path():
        dtype = torch.float32 if dtype == "auto" else dtype
    if device is not None and device_map is not None:
        raise CdkitError(f"device={device} and device_map={device_map}: give one of them")
    if Path(path).is_file():
        raise CdkitError(
            f"cannot load the model {str(name_or_path)!r}: it is a file, and a model is a folder "
            "with a config.json: give the folder"
        )
    if revision is not None and Path(path).is_dir():
        raise CdkitError(
            f"revision={revision!r} belongs to a model on the hub, and {str(name_or_path)!r} is a "
            "folder: leave it out"
        )
    target = None if device is None else device_of(device)
    if target is not None and quantization_config is not None:
        device_map = {"": target}  # quantised weights are made where they stay
    source: dict[str, Any] = {"trust_remote_code": False, "revision": revision or "main"}
    options = {
        "device_map": device_map,
        "quantization_config": quantization_config,
        "attn_implementation": attn_implementation,
    }
    if multiprocessing.parent_process() is not None:
        # a forked process makes torch's thread pool anew at its first use, which must not be the
        # threads that read the weights: two at once find none
        torch.set_num_threads(torch.get_num_threads())
    load: Any = AutoModelForImageTextToText.from_pretrained
    try:
        model, report = load(
            path,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # they are told below, in one line
            output_loading_info=True,
            **{name: value for name, value in options.items() if value is not None},
            **source,
        )
        _check_whole(report)
        _check_unused(sorted(report["unexpected_keys"]), model)
        if target is not None and not getattr(model, "is_quantized", False):
            model = model.to(target)
        processor = load_processor(path, model, source)
    except torch.OutOfMemoryError:
        raise
    except BROKEN as error:
        raise not_loaded(name_or_path, error) from None
    return model.eval(), processor


def not_loaded(name_or_path: str | Path, error: Exception) -> CdkitError:
    """The error of a model that cannot be loaded, because of another error."""
    there = str(name_or_path) == MICRO or Path(name_or_path).exists()
    absent = isinstance(error, OSError) and not there
    folder = " (there is no such folder here, so it is a hub name)" if absent else ""
    return CdkitError(f"cannot load the model {str(name_or_path)!r}{folder}: {_reason(error)}")


def device_of(device: str | torch.device) -> torch.device:
    """The device of that name; "auto": the accelerator there is, else the CPU.

    Raises:
        CdkitError: torch knows no such device, or it is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return torch.device(next((kind for kind, seen in there.items() if seen), "cpu"))
    try:
        found = torch.device(device)
    except RuntimeError:
        raise CdkitError(
            f"no device is called {str(device)!r}: give auto, cpu, cuda (cuda:1 for the second), "
            "xpu or mps"
        ) from None
    absent = not there.get(found.type, True)
    if found.type == "cuda" and found.index is not None and not absent:
        absent = found.index >= torch.cuda.device_count()
    if absent:
        seen = ", ".join([*(kind for kind, seen in there.items() if seen), "cpu"])
        raise CdkitError(
            f"device {str(device)!r} is not there: torch sees {seen}; give auto or one of them"
        )
    return found


def _check_whole(report: Mapping[str, Collection[Any]]) -> None:
    """Raise where a weight would be random: missing from the files, or of another shape there."""
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise CdkitError(
            f"its files lack {_some(lacking)}, which would stay random: restore the file that held "
            "them (download it again), or the config.json that belongs to these files"
        )
    others = sorted(
        f"{name} ({list(stored)} in the files, {list(wanted)} by config.json)"
        for name, stored, wanted in report["mismatched_keys"]
    )
    if others:
        raise CdkitError(
            f"its files have other shapes than the model: {_some(others)}; restore the config.json "
            "that belongs to these files"
        )
    if report.get("error_msgs"):
        raise CdkitError(f"its weights cannot be read: {_some(list(report['error_msgs']))}")


LAYER = re.compile(r"(.*)\.(\d+)\.([^.].*)")
"""A weight in a list of layers: the list, the layer's number, the weight's name in it."""
UNUSED = re.compile(r"(^|\.)(lm_head\.weight|mtp.*)$|(inv_freq|position_ids)$")
"""Weights that published checkpoints hold beside the model's: the head of a model that ties it to
its embeddings, heads that predict several tokens, buffers that older versions saved."""


def _check_unused(names: Sequence[str], model: nn.Module) -> None:
    """Raise where the files hold more layers than the model; warn of other weights left over.

    A layer more is one that has no weight but those of its neighbours in the model: what predicts
    further tokens (MTP) may stand in the same list, and has weights of its own.
    """
    own = [found for name in model.state_dict() if (found := LAYER.fullmatch(name))]
    inside: dict[str, set[str]] = {}
    for found in own:
        inside.setdefault(found[1], set()).add(found[3])
    more: dict[tuple[str, int], set[str]] = {}
    for name in names:
        if (found := LAYER.fullmatch(name)) and found[1] in inside:
            more.setdefault((found[1], int(found[2])), set()).add(found[3])
    there = {(found[1], int(found[2])) for found in own}
    layers = [
        f"{place}.{number}"
        for (place, number), weights in sorted(more.items())
        if (place, number) not in there and weights <= inside[place]
    ]
    if layers:
        raise CdkitError(
            f"its files hold {_some(layers)}, more layers than config.json says: without them the "
            "answers would be another model's; restore the config.json that belongs to these files"
        )
    if left := [name for name in names if not UNUSED.search(name)]:
        warnings.warn(
            f"the model does not use {_some(left)} of its files: check that config.json belongs to "
            "them, unless you know these weights",
            CdkitWarning,
            stacklevel=3,
        )


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


ABSENT = re.compile(r"requires the (\S+) library but it was not found")
"""How transformers words that a package is not installed, before several lines about notebooks."""


def _reason(error: Exception) -> str:
    words = str(error).strip()
    if absent := ABSENT.search(words):
        package = absent[1]
        more = f"; it needs the torchvision that was built for torch {torch.__version__}, too"
        return f"it needs the package {package}: pip install {package}" + more * (package == "timm")
    if "trust_remote_code" in words:
        return (
            "it needs code of its own (auto_map), which cdkit never runs: give a checkpoint in "
            "transformers' own format, such as one under llava-hf/"
        )
    return words.splitlines()[0] if words else type(error).__name__
