"""What a model reads pixels from: the images of its prompts, and their videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from cdkit.interfaces.model_adapter import ModelAdapter

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class PixelSource:
    """How one kind of pixels comes, whether the family reads it as images or as videos."""

    kind: Kind
    argument: str
    """The argument of `generate` with the pixels."""
    required: tuple[str, ...]
    """The arguments that must come with it."""
    encoder: Callable[[nn.Module], tuple[nn.Module, str]]
    split: Callable[[nn.Module, Mapping[str, Any], Sequence[int]], list[Tensor]]
    join: Callable[[nn.Module, Sequence[Tensor], Mapping[str, Any]], Tensor]
    split_values: Callable[[nn.Module, Mapping[str, Any], Sequence[int]], list[Tensor]]
    """The numbers of each image in any order, where `split` does not know their order."""
    join_values: Callable[[nn.Module, Sequence[Tensor], Mapping[str, Any]], Mapping[str, Tensor]]


def sources_of(adapter: ModelAdapter) -> tuple[PixelSource, ...]:
    """Images, and videos where the adapter knows those of its family."""
    images = PixelSource(
        "image",
        adapter.pixel_argument,
        adapter.required,
        adapter.encoder,
        adapter.split_pixels,
        adapter.join_pixels,
        adapter.split_values,
        adapter.join_values,
    )
    videos = adapter.videos
    if videos is None:
        return (images,)
    name = "pixel_values_videos"
    return images, PixelSource(
        "video",
        name,
        videos.required,
        videos.encoder,
        videos.split_pixels,
        videos.join_pixels,
        videos.split_pixels,
        lambda model, runs, given: {name: videos.join_pixels(model, runs, given)},
    )
