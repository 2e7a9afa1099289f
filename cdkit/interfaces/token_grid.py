"""Where the tokens of an image stand in the picture that the image encoder reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from cdkit.errors import CdkitError

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Some tokens of an image as a grid over one picture: what a page draws over the pixels.

    Unlike `ImageGrid`, which calibrators read, it says which token a cell is, on which pixels the
    grid lies, and leaves out tokens without a place, such as those that end a row.

    Raises:
        CdkitError: If the box is not inside the picture.
    """

    tokens: Int[Tensor, "height width"]
    """The token in each cell: its number among the tokens of its image, from 0."""
    frames: Int[Tensor, "rows columns"]
    """The picture: which frames of `split_pixels` stand beside and below each other in it."""
    box: tuple[float, float, float, float] = WHOLE
    """The part of the picture that the grid covers: top, left, bottom and right edge, as shares of
    its height and width. Padding around a picture has no tokens in some families."""
    name: str = ""
    """What tells it apart from other grids of the same image, such as "tile 2"."""

    def __post_init__(self) -> None:
        top, left, bottom, right = self.box
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise CdkitError(
                f"the box of a token grid is (top, left, bottom, right) inside (0, 0, 1, 1), got "
                f"{self.box}"
            )


def frame_grid(height: int, width: int, *, first: int, frame: int = 0, name: str = "") -> TokenGrid:
    """A grid that covers one frame, its tokens row by row.

    Args:
        height: Rows of tokens.
        width: Tokens in a row.
        first: The number of its first token among those of its image.
        frame: The frame of `split_pixels`.
        name: As in `TokenGrid`.
    """
    tokens = torch.arange(first, first + height * width).view(height, width)
    return TokenGrid(tokens, torch.tensor([[frame]]), name=name)
