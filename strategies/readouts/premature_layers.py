"""Early exits: what the layers before the last one would answer (DoLa, DeCo)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cdkit import READOUTS, CdkitError, Depth, LayerReadout, check_depth, layers_within


@READOUTS.register("premature_layers")
@dataclass(frozen=True)
class PrematureLayers(LayerReadout):
    """The states after one layer in `stride`, of a part of the depth, put through the output head.

    With the defaults these are 0, 2, .., 14 of 32 layers. Where input and output embeddings are
    tied, an exit at 0 predicts only the current token; Hugging Face's DoLa begins at 2 there, which
    is bucket [0.0625, 0.5] of 32 layers.

    Args:
        bucket: From where to where, as layers passed (0 is the embeddings) in shares of the depth.
            The authors list numbers of layers.
        stride: Every how many layers there is an exit.
        norm: Whether the final norm comes before the output head: not in DoLa, but in DeCo.
    """

    formula: ClassVar[str] = (
        "l_j = W h_j, or W norm(h_j) where norm; h_j: the last row's state after j layers, "
        "j = first N, first N + stride, .. < last N; bucket = (first, last) of N layers"
    )
    source: ClassVar[str] = (
        "voidism/DoLa, transformers-4.28.1/src/transformers/models/llama/modeling_llama.py, commit "
        "805230e; zjunlp/Deco, transformers/models/llama/modeling_llama.py, commit fee8d75"
    )

    bucket: Depth = (0.0, 0.5)
    stride: int = 2
    norm: bool = False

    def __post_init__(self) -> None:
        check_depth("bucket", self.bucket)
        if self.stride < 1:
            raise CdkitError(f"stride must be 1 or more, got {self.stride}")

    def layers(self, count: int) -> Mapping[str, int]:
        return {f"layer_{j}": j for j in layers_within(self.bucket, count)[:: self.stride]}
