"""CCA: image tokens stand in rings, from the border of the picture inwards."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from cdkit import CALIBRATORS, NOTHING_KNOWN, ImageGrid, PositionCalibrator, PositionContext


@CALIBRATORS.register("concentric_positions")
@dataclass(frozen=True)
class ConcentricPositions(PositionCalibrator):
    """The position half of concentric causal attention (CCA), without its training.

    After m text tokens all tokens on the border of the picture stand at m, those of the next ring
    at m + 1, and so on to the middle; the text goes on after the last ring. A picture of 24 x 24
    tokens so takes 12 positions in the place of 576, and its middle stands nearest to the text.

    The authors train a model with these positions in its whole decoder, and with a mask by which an
    image token sees its own ring and those outside of it. Here a stock model gets the positions
    alone, in what the text after an image sees of it; `image_rows` lets image tokens see each
    other there, too, and the mask stays the model's. Ours are grids with an odd or an unequal
    number of rows and columns (a ring is the distance to the nearest border, and the last one may
    be a line), tiles (each has rings of its own, one tile after the other), several images (the
    sum runs on), and multimodal RoPE (all axes count alike).
    """

    formula: ClassVar[str] = (
        "image token in row r, column c of h x w: position of the image + "
        "min(r, c, h - 1 - r, w - 1 - c); text goes on after ceil(min(h, w) / 2) positions; "
        "cross-modal logits only; image_rows: those between image tokens, too"
    )
    source: ClassVar[str] = (
        "xing0047/cca-llava, llava/cca_utils/cca.py, lines 86 to 99 and 320 to 342, commit 8b5bb61"
    )
    bibtex: ClassVar[str] = """@inproceedings{xing2024mitigating,
  title     = {Mitigating Object Hallucination via Concentric Causal Attention},
  author    = {Xing, Yun and Li, Yiheng and Laptev, Ivan and Lu, Shijian},
  booktitle = {NeurIPS},
  year      = {2024}
}"""
    needs_grid: ClassVar[bool] = True

    image_rows: bool = False

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def constant_after_prompt(self) -> bool:
        return True

    def calibrate(
        self,
        positions: Int[Tensor, "rows tokens *axes"],
        image_index: Int[Tensor, "rows tokens"],
        *,
        context: PositionContext = NOTHING_KNOWN,
    ) -> Float[Tensor, "rows tokens *axes"]:
        made = []
        for index, grids in zip(image_index, context.grids, strict=True):
            text = index < 0
            # how far the text after each token of the row stands, counted in positions
            taken, ring = text.double(), torch.zeros_like(index, dtype=torch.float64)
            for number, grid in enumerate(grids):
                assert grid is not None  # `needs_grid`
                rings = ring_of(grid, index.device)
                here = (index == number).nonzero()[:, 0]
                ring[here] = rings[: len(here)]
                # the image's first token takes the positions of all of its rings
                taken[here[:1]] = float(rings.max()) + 1
            before = pad(taken.cumsum(dim=0), (1, -1))
            start = torch.where(text, before, 0)
            for number in range(len(grids)):
                inside = index == number
                first = before[inside][:1]
                start = torch.where(inside, first if len(first) else 0, start)
            made.append(start + ring)
        new = torch.stack(made)
        return new if positions.ndim == 2 else new[..., None].expand(positions.shape)


def ring_of(grid: ImageGrid, device: torch.device) -> Float[Tensor, " tokens"]:
    """The ring of each token of an image, from 0 at the border; tiles one after the other."""
    row = torch.arange(grid.height, device=device, dtype=torch.float64)
    column = torch.arange(grid.width, device=device, dtype=torch.float64)
    down = torch.minimum(row, grid.height - 1 - row)
    along = torch.minimum(column, grid.width - 1 - column)
    rings = torch.minimum(down[:, None], along).flatten()
    tile = torch.arange(grid.tiles, device=device, dtype=torch.float64)
    return (tile[:, None] * (rings.max() + 1) + rings).flatten()
