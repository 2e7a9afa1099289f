"""Where the tokens of an image stand in the picture that the image encoder reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.errors import CdkitError

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Some tokens of an image as a grid over one picture: what a page draws over the pixels.

    Unlike `ImageGrid`, which calibrators read, it says which token a cell is, on which pixels the
    grid lies, and leaves out tokens without a place, such as those that end a row.

    Raises:
        CdkitError: If the box is not on the picture, or frames have no part each.
    """

    tokens: Int[Tensor, "height width"]
    """The token in each cell: its number among the tokens of its image, from 0."""
    frames: Int[Tensor, "rows columns"]
    """The picture: which frames of `split_pixels` stand beside and below each other in it."""
    box: tuple[float, float, float, float] = WHOLE
    """The part of the picture that the grid covers: top, left, bottom and right edge, as shares of
    its height and width. Padding around a picture has no tokens in some families; in others the
    outer cells reach beyond the picture."""
    name: str = ""
    """What tells it apart from other grids of the same image, such as "tile 2"."""
    parts: Int[Tensor, "rows columns 4"] | None = None
    """Of each frame the pixels that stand in the picture: its first row and column and those after
    the last, where frames overlap. None for whole frames."""

    def __post_init__(self) -> None:
        top, left, bottom, right = self.box
        if not (top < bottom and left < right and top < 1 and left < 1 and bottom > 0 < right):
            raise CdkitError(
                f"the box of a token grid is (top, left, bottom, right) on the picture, which is "
                f"(0, 0, 1, 1), got {self.box}"
            )
        if self.parts is not None and self.parts.shape[:2] != self.frames.shape:
            raise CdkitError(
                f"a token grid has a part of each frame: parts has shape {tuple(self.parts.shape)} "
                f"for {tuple(self.frames.shape)} frames"
            )

    def picture(
        self, pixels: Float[Tensor, "frames channels _ _"]
    ) -> Float[Tensor, "channels height width"]:
        """The frames as one picture.

        Args:
            pixels: The frames of the image, as `split_pixels` returns them.
        """
        rows = []
        for i, numbers in enumerate(self.frames.tolist()):
            row = [pixels[number] for number in numbers]
            if self.parts is not None:
                row = [
                    frame[:, top:bottom, left:right]
                    for frame, (top, left, bottom, right) in zip(
                        row, self.parts[i].tolist(), strict=True
                    )
                ]
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)


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
