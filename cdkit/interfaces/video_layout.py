"""Where a model family keeps what cdkit needs of videos."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cdkit.interfaces.token_grid import TokenGrid


class VideoLayout(abc.ABC):
    """Says where the videos of a prompt stand, and which pixels are theirs. It has no state.

    To every method a video's tokens are image tokens. Each run of them without text inside counts
    as one image: the whole video, or where a family writes text between frames, the frames between
    two texts. `ModelAdapter.image_index` numbers these runs and the pictures of a prompt together.
    """

    own_token: ClassVar[bool] = True
    """Whether videos have a token of their own. Where they share that of images, stock `generate`
    takes no images and videos in one call, and cannot repeat the features of videos for beams."""

    @property
    @abc.abstractmethod
    def required(self) -> tuple[str, ...]:
        """Arguments of `generate` beside `pixel_values_videos` without which the model would
        silently compute something else, or could not tell videos apart. Cdkit raises where one is
        missing.
        """

    @abc.abstractmethod
    def encoder(self, model: nn.Module) -> tuple[nn.Module, str]:
        """The encoder of videos that `generate` or forward calls.

        Its output is read by the adapter's `features` and `deepstack_features`.

        Returns:
            The module that has it, and the name of its method.
        """

    @abc.abstractmethod
    def is_video(
        self, model: nn.Module, ids: Int[Tensor, "rows tokens"]
    ) -> Bool[Tensor, "rows tokens"]:
        """Which tokens of prompts are those of videos.

        Args:
            model: The model.
            ids: Token ids, padded on the left. Padding of a rewritten prompt is -1.
        """

    @abc.abstractmethod
    def split_pixels(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Float[Tensor, "frames channels height width"]]:
        """Take `given["pixel_values_videos"]` apart, run by run.

        Args:
            model: The model.
            given: The arguments of the encoder.
            tokens: How many tokens each run of video tokens has, in the order of the prompts.

        Returns:
            For each run its frames.

        Raises:
            UnmatchedPixelsError: Where nothing says which pixels are which run's.
        """

    @abc.abstractmethod
    def join_pixels(
        self,
        model: nn.Module,
        runs: Sequence[Float[Tensor, "frames channels height width"]],
        given: Mapping[str, Any],
    ) -> Tensor:
        """Put frames together again: the inverse of `split_pixels`.

        Args:
            model: The model.
            runs: What `split_pixels` returned, with other values in the same shapes.
            given: The arguments of the encoder.

        Returns:
            What replaces `given["pixel_values_videos"]`, in its shape.
        """

    def token_grids(
        self, model: nn.Module, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """As `ModelAdapter.token_grids`, of runs of video tokens: a grid a frame, say.

        Args:
            model: The model.
            given: The arguments of `generate` or forward.
            tokens: How many tokens each run of video tokens has, in the order of the prompts.

        Returns:
            For each run its grids; or why there is none, in words that end a sentence.
        """
        why = "its adapter does not say where the tokens of a video stand in the frames"
        return [why] * len(tokens)
