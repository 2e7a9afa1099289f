"""Videos among the images of prompts: which tokens are theirs, and what is refused of them."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.generation.compatibility import setting
from cdkit.interfaces.pixel_source import Kind
from cdkit.methods.attached import AttachedMethod


def check_videos(attached: AttachedMethod, given: Mapping[str, Any]) -> None:
    """Raise where a prompt comes with a video, and the adapter does not know the family's.

    Args:
        attached: The method on its model.
        given: The arguments of a call, by name.
    """
    if attached.adapter.videos is not None:
        return
    for name, value in given.items():
        if "video" not in name or value is None:
            continue
        model: Any = attached.model
        takes = "pixel_values_videos" in signature(model.forward).parameters
        why = "its adapter knows its images alone" if takes else "it takes none"
        raise CdkitError(
            f"{attached.method.name} cannot run with {name}={type(value).__name__}: videos are not "
            f"supported with {type(model).__name__}, {why}. docs/models.md says which families "
            "read videos; pass images, or generate without cdkit.attach"
        )


def videos_in(
    attached: AttachedMethod,
    ids: Int[Tensor, "samples tokens"],
    image_index: Int[Tensor, "samples tokens"],
) -> Bool[Tensor, "samples tokens"] | None:
    """Which image tokens are those of videos; None where none is."""
    videos = attached.adapter.videos
    if videos is None:
        return None
    found = videos.is_video(attached.model, ids) & (image_index >= 0)
    if not bool(found.any()):
        return None
    if not videos.own_token and bool(((image_index >= 0) & ~found).any()):
        raise CdkitError(
            f"{type(attached.model).__name__} cannot take images and videos in one call: it has "
            "one token for both, and puts the features of either in the places of all. Give them "
            "in calls of their own"
        )
    return found


def check_rows(
    attached: AttachedMethod, given: Mapping[str, Any], defaults: Sequence[object]
) -> None:
    """Raise where `generate` would repeat the features of videos, and cannot find their tokens.

    Args:
        attached: The method on its model; the prompts have videos.
        given: The arguments of `generate`.
        defaults: The configs behind them.
    """
    videos = attached.adapter.videos
    if videos is None or videos.own_token:
        return
    for name in ("num_beams", "num_return_sequences"):
        rows = setting(name, given, defaults) or 1
        if rows > 1:
            raise CdkitError(
                f"{type(attached.model).__name__} cannot generate from a video with {name}={rows}: "
                "it has the token of images for it, so Hugging Face's generate finds none to "
                f"repeat. Leave {name} at 1"
            )


def kinds_of(
    image_index: Int[Tensor, "samples tokens"], is_video: Bool[Tensor, "samples tokens"] | None
) -> list[Kind]:
    """Of each image of the prompts, in their order, whether it is one of a video."""
    if is_video is None:
        return ["image"] * int((image_index.amax(dim=1) + 1).sum())
    kinds = list[Kind]()
    for index, flags in zip(image_index.tolist(), is_video.tolist(), strict=True):
        of_row = dict(zip(index, flags, strict=True))
        kinds += ["video" if of_row[number] else "image" for number in range(max(index) + 1)]
    return kinds
