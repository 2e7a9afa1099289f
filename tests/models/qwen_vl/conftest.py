"""One tiny checkpoint: published layout, converted, loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from cdkit.models.qwen_vl import convert

from .published import IMAGE, IMAGE_START, QUERIES, make_weights, write_published
from .reference import Reference


class Norm64(nn.Module):
    """RMSNorm in float64; Hugging Face's passes through float32 in any model."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = stock.weight
        self.eps: float = stock.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Rotary64(nn.Module):
    """RoPE's angles in float64, the base from the model's own configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size // config.num_attention_heads
        place = torch.arange(0, size, 2, dtype=torch.float64) / size
        self.rate = config.rope_parameters["rope_theta"] ** -place

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids.double()[..., None] * self.rate
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


def exact(model: Any) -> Any:
    """The model with RoPE and RMSNorm in float64 too."""
    decoder = model.model.language_model
    decoder.rotary_emb, decoder.norm = Rotary64(decoder.config), Norm64(decoder.norm)
    for layer in decoder.layers:
        layer.input_layernorm = Norm64(layer.input_layernorm)
        layer.post_attention_layernorm = Norm64(layer.post_attention_layernorm)
    return model.eval()


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    return make_weights()


@pytest.fixture(scope="session")
def published(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("qwen_vl") / "published", weights)


@pytest.fixture(scope="session")
def converted(published: Path) -> Path:
    return convert(published, published.parent / "converted")


@pytest.fixture(scope="session")
def model(converted: Path) -> Any:
    return exact(AutoModelForImageTextToText.from_pretrained(converted))


@pytest.fixture(scope="session")
def processor(converted: Path) -> Any:
    return AutoProcessor.from_pretrained(converted)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def reference(weights: dict[str, Tensor]) -> Reference:
    return Reference(weights)


@pytest.fixture
def photo() -> Image.Image:
    """A colourful one that is not square."""
    random = torch.Generator().manual_seed(3)
    noise = torch.randint(256, (50, 80, 3), generator=random, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@pytest.fixture
def pixels() -> Callable[..., Tensor]:
    def make(count: int = 1, *, side: int = 36, seed: int = 0) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, side, side, generator=random, dtype=torch.float64)

    return make


@pytest.fixture
def row() -> Callable[..., list[int]]:
    """Ids of texts of these lengths with an image between each two."""

    def make(*lengths: int, seed: int = 0) -> list[int]:
        random = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        for index, length in enumerate(lengths):
            image = [IMAGE_START, *[IMAGE] * QUERIES, IMAGE_START + 1]
            ids += image if index else []
            ids += torch.randint(0, IMAGE_START, (length,), generator=random).tolist()
        return ids

    return make


@pytest.fixture
def close() -> Callable[[Tensor, Tensor], None]:
    """Fails where two float64 tensors differ by more than rounding."""

    def check(have: Tensor, want: Tensor) -> None:
        assert have.dtype == want.dtype == torch.float64 and have.shape == want.shape
        off = float((have - want).abs().max())
        scale = max(1.0, float(want.abs().max()))
        assert off <= 1e-9 * scale, f"off by {off:.2e} of {scale:.2e}"

    return check


def texts(rows: Sequence[Sequence[int]], *, pad: int) -> dict[str, Tensor]:
    """Rows of ids below each other, filled on the left."""
    length = max(map(len, rows))
    gaps = [length - len(one) for one in rows]
    ids = [[pad] * gap + list(one) for gap, one in zip(gaps, rows, strict=True)]
    mask = [[0] * gap + [1] * (length - gap) for gap in gaps]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
