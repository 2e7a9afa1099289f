"""BaPA: all tokens of an image stand at one position."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from cdkit import CALIBRATORS, PositionCalibrator


@CALIBRATORS.register("balanced_positions")
@dataclass(frozen=True)
class BalancedPositions(PositionCalibrator):
    """An image takes one position, as a word does, so that no part of it is farther away.

    After m text tokens all tokens of an image stand at m + 1, and the j-th text token after it at
    m + 1 + j; with several images the sum runs on. The authors' code knows one image. It counts
    tokens on each of the three axes of multimodal RoPE alike, and so do we: there, too, an image
    keeps neither rows nor columns. Image tokens that stand between marks (the tiles of some
    families) make one run each, and each run takes a position: this is ours.

    The authors use these positions in the whole decoder; a calibrator of cdkit moves what the text
    after an image sees of it, and leaves the attention inside the image, and of text to text,
    where the model has it. So with one image only the distance of text to the image counts, and
    this is what CMPC (`scaled_positions`) comes to when gamma grows without end. No parameter
    switches it off: leave the calibrator out.
    """

    formula: ClassVar[str] = (
        "position = text tokens + runs of image tokens, both counted up to and with this one; "
        "cross-modal logits only"
    )
    source: ClassVar[str] = (
        "AAAndy-Zhu/BaPA, transformers-4.37.2/src/transformers/models/llama/modeling_llama.py, "
        "lines 1032 to 1054, and transformers-4.51.3/src/transformers/models/qwen2_5_vl/"
        "modeling_qwen2_5_vl.py, commit c4ad543"
    )
    bibtex: ClassVar[str] = """@misc{zhu2025bapa,
  title  = {From Bias to Balance: Exploring and Mitigating Spatial Bias in LVLMs},
  author = {Zhu, Yingjie and Bai, Xuefeng and Chen, Kehai and Xiang, Yang and Guan, Weili and
            Yu, Jun and Zhang, Min},
  year   = {2025},
  eprint = {2509.21984}
}"""

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def constant_after_prompt(self) -> bool:
        return True

    def calibrate(
        self, positions: Int[Tensor, "rows tokens *axes"], image_index: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens *axes"]:
        before = pad(image_index[:, :-1], (1, 0), value=-1)
        advances = (image_index < 0) | (image_index != before)
        counted = advances.double().cumsum(dim=-1)
        return counted if positions.ndim == 2 else counted[..., None].expand(positions.shape)
