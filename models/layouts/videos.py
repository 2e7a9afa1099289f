"""Where videos stand in prompts, and how their pixels come: the forms that families share."""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from cdkit import TokenGrid, VideoLayout, frame_grid
from cdkit.models.layouts.patches import frames_of_patches, patches_of_frames, sizes_of


class StandardVideos(VideoLayout, abc.ABC):
    """Videos with a token of their own, read by `get_video_features`."""

    def encoder(self, model: Any) -> tuple[nn.Module, str]:
        return model.get_submodule("model"), "get_video_features"

    def is_video(self, model: Any, ids: Int[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
        token: int = model.config.video_token_id
        return ids == token


@dataclass(frozen=True)
class FrameVideos(StandardVideos):
    """`pixel_values_videos` is (videos, frames, 3, height, width); a video is one run of tokens.

    Each frame has a square of tokens, row by row.

    Args:
        before: How many tokens of a frame, as a class token, stand before its square.
        after: How many tokens stand after the last frame.
        pooled_by: Where the config says how many patches high and wide a token is, if a row or a
            column that fills no token is left out; None where tokens cover the whole frame.
    """

    before: int = 0
    after: int = 0
    pooled_by: str | None = None

    @property
    def required(self) -> tuple[str, ...]:
        return ()

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return list(given["pixel_values_videos"])

    def join_pixels(self, model: Any, runs: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return torch.stack(list(runs))

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """A grid for each frame."""
        found = list[tuple[TokenGrid, ...] | str]()
        for count, video in zip(tokens, given["pixel_values_videos"], strict=True):
            each, rest = divmod(count - self.after, len(video))
            side = math.isqrt(max(0, each - self.before))
            if rest or side**2 != each - self.before:
                found.append("its tokens are not the same square of them for each frame")
                continue
            box = (0.0, 0.0, self._covered(model, side), self._covered(model, side))
            found.append(
                tuple(
                    replace(
                        frame_grid(
                            side,
                            side,
                            first=frame * each + self.before,
                            frame=frame,
                            name=f"frame {frame + 1}",
                        ),
                        box=box,
                    )
                    for frame in range(len(video))
                )
            )
        return found

    def _covered(self, model: Any, side: int) -> float:
        """The share of a frame's height that so many tokens below each other cover."""
        if self.pooled_by is None:
            return 1.0
        vision = model.config.vision_config
        patches = vision.image_size // vision.patch_size
        return float(min(1.0, side * attrgetter(self.pooled_by)(model.config) / patches))


@dataclass(frozen=True)
class PatchVideos(StandardVideos):
    """Each patch is a row of `pixel_values_videos`, with the pixels of two frames, say.

    `video_grid_thw` says how many patches each video has in time, in height and in width.

    Args:
        timestamps: Whether a text with the time stands beside each patch in time, so that these are
            runs of their own. Else a video is one run.
        more_required: Further arguments that the family's positions depend on.
    """

    timestamps: bool
    more_required: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        return ("video_grid_thw", "mm_token_type_ids", *self.more_required)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        grids: list[list[int]] = given["video_grid_thw"].tolist()
        patches = given["pixel_values_videos"].split([t * h * w for t, h, w in grids])
        sizes, runs = sizes_of(model), list[Tensor]()
        for video, (times, height, _) in zip(patches, grids, strict=True):
            frames = frames_of_patches(video, sizes, times=times, rows=height // sizes["a"])
            runs += frames.chunk(times) if self.timestamps else [frames]
        return runs

    def join_pixels(self, model: Any, runs: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return torch.cat([patches_of_frames(run, sizes_of(model)) for run in runs])

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """A patch in time has several frames, of which the first one is the picture."""
        sizes, runs = sizes_of(model), list[tuple[TokenGrid, ...]]()
        grids: list[list[int]] = given["video_grid_thw"].tolist()
        for times, high, wide in grids:
            height, width = high // sizes["a"], wide // sizes["b"]
            for start, stop in _runs_in_time(times, each=1 if self.timestamps else times):
                runs.append(
                    tuple(
                        frame_grid(
                            height,
                            width,
                            first=(time - start) * height * width,
                            frame=(time - start) * sizes["q"],
                            name=f"frame {time * sizes['q'] + 1}",
                        )
                        for time in range(start, stop)
                    )
                )
        return runs


def _runs_in_time(times: int, *, each: int) -> list[tuple[int, int]]:
    """The first patch in time of each run of tokens, and the first after it."""
    return [(start, start + each) for start in range(0, times, each)]


@dataclass(frozen=True)
class MarkedPatchVideos(PatchVideos):
    """Videos whose tokens are image tokens between the marks of a video."""

    own_token: ClassVar[bool] = False

    def is_video(self, model: Any, ids: Int[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
        config = model.config
        begun = (ids == config.video_start_token_id).cumsum(dim=-1)
        ended = (ids == config.video_end_token_id).cumsum(dim=-1)
        inside: Tensor = (begun > ended) & (ids == config.image_token_id)
        return inside
