"""A folder's weight files, safetensors or torch's, of which one at a time is read."""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cdkit import CdkitError

from .published import read_json

SAFE = ".safetensors"
LAYOUTS = ("model.safetensors", "pytorch_model.bin")
"""One file, or several that `<name>.index.json` lists; the first layout found is read."""


def weight_files(folder: Path) -> Sequence[Path]:
    """The files that hold a folder's weights, each once."""
    for name in LAYOUTS:
        index = folder / f"{name}.index.json"
        if index.exists():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not listed:
                raise CdkitError(f"{index} has no weight_map: it must name each tensor's file")
            files = [folder / file for file in sorted(set(listed.values()))]
        else:
            files = [folder / name]
        absent = [file.name for file in files if not file.exists()]
        if not absent:
            return files
        if index.exists():
            raise CdkitError(f"{index} names files that are not there: {', '.join(absent)}")
    raise CdkitError(f"{folder} has no weights; it must hold {' or '.join(LAYOUTS)}, or an index")


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape, without reading the tensors."""
    with _readable(file):
        if file.suffix == SAFE:
            with safe_open(file, "pt") as opened:
                return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}
        return {key: tuple(value.shape) for key, value in _unpickled(file).items()}


def tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by its name, one after the other."""
    with _readable(file):
        if file.suffix == SAFE:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():
                    yield key, opened.get_tensor(key)
        else:
            yield from _unpickled(file).items()


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Tensors mapped from the file, not read; nothing that is not a tensor is unpickled."""
    found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CdkitError(f"{file} must hold tensors by name")
    return found


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CdkitError(f"cannot read the weights in {file}: {reason}") from error
