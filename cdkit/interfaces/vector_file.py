"""Files of directions that `cdkit vectors` writes: read whole, or refused with the reason."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cdkit.errors import CdkitError, check_file

MANIFEST = "cdkit_vectors"
"""The key of the file's metadata under which its manifest stands, as JSON."""
FORMAT = 1
"""The version of the format. A file of a later one is refused."""
DIRECTIONS, WEIGHTS = "directions", "weights"
"""The tensors of a file: what it is for, and the sample of its model's weights."""
SAMPLE = 4
"""Numbers of each parameter in that sample, from its start."""


@dataclass(frozen=True, eq=False)
class VectorFile:
    """The directions of one model's layers, with what they were made of."""

    directions: Float[Tensor, "layers rank hidden"]
    weights: Float[Tensor, "parameters sample"]
    """The first numbers of each of the decoder's parameters: a model is known by them."""
    manifest: Mapping[str, Any]
    """Plain data: what the directions were made of, and for whom."""

    def check(self, decoder: nn.Module, layers: int, path: Path) -> None:
        """Raise unless the directions were computed on this model.

        Args:
            decoder: The model's text decoder.
            layers: How many layers it has.
            path: What messages call the file.

        Raises:
            CdkitError: The numbers of layers, the hidden sizes or the weights differ.
        """
        model = self.manifest["model"]
        shape = self.directions.shape
        sizes = (
            ("number of layers", shape[0], layers),
            ("hidden size", shape[-1], _hidden_size(decoder)),
        )
        for what, stored, here in sizes:
            if stored != here:
                raise CdkitError(
                    f"{path} was computed on {model['name']}, whose {what} is {stored}, but this "
                    f"model's is {here}: {self._anew()}"
                )
        if not _same(self.weights, model["parameters"], model["dtype"], decoder):
            raise CdkitError(
                f"{path} was computed on {model['name']}, whose weights are others than this "
                f"model's: {self._anew()}"
            )

    def _anew(self) -> str:
        return f"compute its own (cdkit vectors {self.manifest['method']} --model MODEL ...)"


def read_vectors(path: Path) -> VectorFile:
    """Read a file of directions.

    Args:
        path: The file.

    Returns:
        Its directions and its manifest.

    Raises:
        CdkitError: There is no such file, it is damaged, or no file of `cdkit vectors`.
    """
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {}).get(MANIFEST, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise CdkitError(
            f"cannot read the directions in {path}: {error}; cdkit vectors writes such a file"
        ) from None
    whole = isinstance(manifest, dict) and {"method", "model"} <= manifest.keys()
    if not whole or not {DIRECTIONS, WEIGHTS} <= tensors.keys():
        raise CdkitError(f"{path} holds no directions: give a file that cdkit vectors wrote")
    if manifest.get("format") != FORMAT:
        raise CdkitError(
            f"{path} has the format {manifest.get('format')}, but this cdkit reads {FORMAT}: "
            "compute it anew"
        )
    directions = tensors[DIRECTIONS]
    if not bool(directions.isfinite().all()):
        raise CdkitError(f"the directions in {path} are not finite: compute them anew")
    return VectorFile(directions, tensors[WEIGHTS], manifest)


def write_vectors(
    path: Path,
    directions: Float[Tensor, "layers rank hidden"],
    decoder: nn.Module,
    manifest: Mapping[str, Any],
) -> None:
    """Write a file of directions.

    Args:
        path: The file.
        directions: The directions; they are stored in their precision.
        decoder: The text decoder of the model that they were computed on.
        manifest: What else to record; "model" is a table.
    """
    names, sample = _sample(decoder)
    dtype = str(next(p.dtype for p in decoder.parameters() if p.is_floating_point()))
    model = {**manifest["model"], "dtype": dtype.removeprefix("torch."), "parameters": names}
    shape = dict(zip(("layers", "directions", "hidden_size"), directions.shape, strict=True))
    told = {"format": FORMAT, **manifest, **shape, "model": model}
    tensors = {DIRECTIONS: directions.cpu().contiguous(), WEIGHTS: sample}
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(save(tensors, metadata={MANIFEST: json.dumps(told)}))
    os.replace(draft, path)  # the file is there whole or not at all


def _hidden_size(decoder: nn.Module) -> int:
    embeddings: Any = decoder
    return int(embeddings.get_input_embeddings().weight.shape[-1])


def _sample(decoder: nn.Module) -> tuple[list[str], Float[Tensor, "parameters sample"]]:
    """The first numbers of each parameter that can be read: not of quantised or absent ones."""
    named = [
        (name, parameter)
        for name, parameter in decoder.named_parameters()
        if parameter.is_floating_point() and not parameter.is_meta
    ]
    if not named:
        raise CdkitError(
            "no weight of the model's decoder can be read (all are quantised or offloaded), so "
            "nothing says whose directions these are: load it with weights in memory"
        )
    heads: dict[torch.device, list[Tensor]] = {}
    for _, parameter in named:
        head = parameter.detach().flatten()[:SAMPLE].double()
        padded = nn.functional.pad(head, (0, SAMPLE - len(head)))
        heads.setdefault(parameter.device, []).append(padded)
    read = {device: iter(torch.stack(rows).cpu()) for device, rows in heads.items()}
    rows = [next(read[parameter.device]) for _, parameter in named]  # one copy a device
    return [name for name, _ in named], torch.stack(rows)


def _same(
    stored: Float[Tensor, "parameters sample"], names: list[str], dtype: str, decoder: nn.Module
) -> bool:
    """Whether what both models can tell of their weights is the same, as far as they are rounded.

    The same checkpoint may be loaded in another precision: then numbers may differ by its rounding.
    """
    here, sample = _sample(decoder)
    if not (set(here) <= set(names) or set(names) <= set(here)):
        return False  # such as LoRA's; one set alone is smaller where weights are quantised
    rows = dict(zip(names, stored, strict=True))
    shared = [(rows[name], row) for name, row in zip(here, sample, strict=True) if name in rows]
    own = next(p.dtype for p in decoder.parameters() if p.is_floating_point())
    kinds = [torch.finfo(own), torch.finfo(getattr(torch, dtype))]
    rounding, least = 0.0, 0.0
    if kinds[0].dtype != kinds[1].dtype:
        rounding = max(kind.eps for kind in kinds)
        least = max(kind.eps * kind.smallest_normal for kind in kinds)  # float16 has small ones
    return bool(shared) and all(
        bool(((one - two).abs() <= rounding * one.abs() + least).all()) for one, two in shared
    )
