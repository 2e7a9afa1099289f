"""Families whose `pixel_values` are rows of patches.

A picture of h x w patches has h w / m^2 tokens, where m is `spatial_merge_size`; the m x m patches
of a token follow each other. `image_grid_thw` says how many patches each image has. From
`mm_token_type_ids` the model knows where images are, which it needs for positions of three axes.
"""

import abc
import ast
import math
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ImageGrid, UnmatchedPixelsError
from cdkit.models.layouts.standard import StandardAdapter, visual_runs


class PatchAdapter(StandardAdapter, abc.ABC):
    """Each patch is a row of `pixel_values`; an image's tokens are one run between two marks."""

    required: ClassVar[tuple[str, ...]] = ("image_grid_thw", "mm_token_type_ids")
    placeholder: ClassVar[str] = "<|vision_start|><|image_pad|><|vision_end|>"
    fallback: ClassVar[str] = (
        "<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n"
    )

    def check_images(self, model: Any) -> None:
        pass  # the marks tell images apart

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return visual_runs(self, model, ids, ids == model.config.image_token_id)

    def image_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[ImageGrid | None]:
        merged = sizes_of(model)["a"]
        grids: list[list[int]] = given["image_grid_thw"].tolist()
        return [ImageGrid(h // merged, w // merged, tiles=t) for t, h, w in grids]

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        grids: list[list[int]] = given["image_grid_thw"].tolist()
        patches = given["pixel_values"].split([t * h * w for t, h, w in grids])
        sizes = sizes_of(model)
        return [
            pictures(image, sizes, frames=t, rows=h // sizes["a"])
            for image, (t, h, _) in zip(patches, grids, strict=True)
        ]

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return torch.cat([patches_of(image, sizes_of(model)) for image in images])


def sizes_of(model: Any) -> dict[str, int]:
    """Of a token its patches (a x b); of a patch its frames (q) and its pixels (y x x)."""
    vision = model.config.vision_config
    merged, side = vision.spatial_merge_size, vision.patch_size
    return {"a": merged, "b": merged, "q": vision.temporal_patch_size, "y": side, "x": side}


def pictures(
    patches: Float[Tensor, "patches values"], sizes: Mapping[str, int], *, frames: int, rows: int
) -> Float[Tensor, "frames channels height width"]:
    """The pictures of an image's patches.

    A patch repeats the same still picture in each of its frames, so the first one is enough.

    Args:
        patches: The patches of one image.
        sizes: What `sizes_of` returns.
        frames: How many patches the image has in time.
        rows: Its height in tokens.
    """
    return frames_of_patches(patches, sizes, times=frames, rows=rows)[:: sizes["q"]]


def patches_of(
    image: Float[Tensor, "frames channels height width"], sizes: Mapping[str, int]
) -> Float[Tensor, "patches values"]:
    """The inverse of `pictures`."""
    alike = repeat(image, "t c height width -> (t q) c height width", q=sizes["q"])
    return patches_of_frames(alike, sizes)


def frames_of_patches(
    patches: Float[Tensor, "patches values"], sizes: Mapping[str, int], *, times: int, rows: int
) -> Float[Tensor, "frames channels height width"]:
    """The frames of a video's patches, each of which holds several that follow each other.

    Args:
        patches: The patches of one video.
        sizes: What `sizes_of` returns.
        times: How many patches the video has in time.
        rows: Its height in tokens.
    """
    return rearrange(
        patches, "(t h w a b) (c q y x) -> (t q) c (h a y) (w b x)", t=times, h=rows, **sizes
    )


def patches_of_frames(
    frames: Float[Tensor, "frames channels height width"], sizes: Mapping[str, int]
) -> Float[Tensor, "patches values"]:
    """The inverse of `frames_of_patches`."""
    return rearrange(frames, "(t q) c (h a y) (w b x) -> (t h w a b) (c q y x)", **sizes)


# ---- families that are not known -----------------------------------------------------------------


def patch_places(
    model_type: str, *, height: int, width: int, side: int, merged: int, frames: int
) -> Int[Tensor, "patches values"]:
    """Where each value of an image's patches stands in its picture (channels, height, width).

    Families write patches in different orders, and values in a patch too. The image processor of
    the family says how: it is given a picture of numbers.

    Args:
        model_type: The family. One without an image processor of its own has that of the type
            whose name its own begins with, else Qwen2-VL's, as most have.
        height: The picture's height in pixels.
        width: Its width.
        side: Height and width of a patch.
        merged: The patches of a token are `merged` x `merged`.
        frames: How often a patch repeats the picture.

    Returns:
        Indices into the flattened picture.
    """
    sizes = {"patch_size": side, "merge_size": merged, "temporal_patch_size": frames}
    patchify, is_batched = _patchify(model_type)
    taken = {name: sizes[name] for name in signature(patchify).parameters if name in sizes}

    def patches_of_numbers(picture: Tensor) -> Int[Tensor, "patches values"]:
        given: Any = picture[None] if is_batched else picture.numpy()
        patches = patchify(None, given, **taken)[0]
        if not is_batched:
            patches = torch.from_numpy(np.ascontiguousarray(patches))
        found: Tensor = patches.long().reshape((height // side) * (width // side), -1)
        return found

    # apart, since numbers of all values would not be exact in float32
    pixel = torch.arange(height * width, dtype=torch.float32).view(height, width)
    channel = torch.arange(3, dtype=torch.float32)[:, None, None]
    of_pixels = patches_of_numbers(pixel.expand(3, -1, -1).contiguous())
    of_channels = patches_of_numbers(channel.expand(-1, height, width).contiguous())
    return of_channels * height * width + of_pixels


def _patchify(model_type: str) -> tuple[Any, bool]:
    """The function of the family's image processor that cuts a picture into patches.

    Returns:
        The function, and whether it takes a batch of tensors, not one array.

    Raises:
        UnmatchedPixelsError: Where that processor has no such function.
    """
    # not at the top: a broken torchvision would break every family
    from transformers.models.auto import image_processing_auto

    names: Mapping[str, Mapping[str, str]] = vars(image_processing_auto)[
        "IMAGE_PROCESSOR_MAPPING_NAMES"
    ]
    of_kin = sorted((name for name in names if model_type.startswith(name)), key=len)
    own = names[of_kin[-1] if of_kin else "qwen2_vl"]
    for backend in ("pil", "torchvision"):
        name = own.get(backend, "")
        try:
            processor: Any = image_processing_auto.get_image_processor_class_from_name(name)
            return processor.patchify, backend == "torchvision"
        except Exception:  # none, a stand-in for what is not installed, or a broken torchvision
            continue
    name = own.get("torchvision", "")
    patchify = _in_source(name, [kind for kind, of in names.items() if name in of.values()])
    if patchify is None:
        raise UnmatchedPixelsError(
            f"in which order pixels stand in patches is not known: {name or 'the image processor'} "
            "has no function that cuts a picture into them"
        )
    return patchify, True


def _in_source(class_name: str, model_types: Sequence[str]) -> Any:
    """`patchify` of an image processor that cannot be imported here, as most need torchvision.

    The function itself needs torch alone, so it is compiled from the source of its class.

    Returns:
        The function; None where the class, or the function, is not there.
    """
    for kind in model_types:
        folder = Path(transformers.__file__).parent / "models" / kind
        for file in sorted(folder.glob("image_processing_*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name == class_name:
                    for part in node.body:
                        if isinstance(part, ast.FunctionDef) and part.name == "patchify":
                            return _compiled(part, str(file))
    return None


def _compiled(function: ast.FunctionDef, file: str) -> Any:
    """A method alone; what its types are called is imported elsewhere in its file."""
    every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    for argument in every:
        argument.annotation = None
    function.returns, function.decorator_list = None, []
    found: dict[str, Any] = {"torch": torch, "math": math}
    exec(compile(ast.Module([function], []), file, "exec"), found)
    return found[function.name]
