"""CCA's positions on what sees the image (xing0047/cca-llava, commit 8b5bb61), and what a
calibrator is told: the grid and the layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.testing import check_calibrator

from .against import assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules, attention_logits
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=92), sample(2, 3, 4, seed=93))
CCA: Any = cdkit.CALIBRATORS["concentric_positions"]
RINGS = (0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0)
"""Of the 4 x 4 tokens of an image."""


def by_rings(image: Sequence[int], layer: int = 0, rings: Sequence[int] = RINGS) -> list[float]:
    """The code's positions, and the same again at each further image."""
    here, places, token = 0, [], 0
    for i, number in enumerate(image):
        if number < 0:
            places.append(float(here))
            here += 1
            continue
        token = token + 1 if i > 0 and image[i - 1] == number else 0
        places.append(float(here + rings[token]))
        if i + 1 == len(image) or image[i + 1] != number:
            here += max(rings) + 1
    return places


def of_text(layer: Layer) -> Tensor:
    return layer.cells


def of_image_too(layer: Layer) -> Tensor:
    """Text rows after an image, and rows of images, on image columns."""
    image = torch.tensor(layer.sequence.image) >= 0
    return layer.cells | (image[:, None] & image)


def moved(
    positions: Callable[[Sequence[int], int], list[float]] = by_rings,
    *,
    cells: Callable[[Layer], Tensor] = of_text,
) -> Edit:
    """Queries and keys turned to these positions, in these cells."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        places = positions(layer.sequence.image, layer.layer)
        copies = layer.decoder.heads // layer.decoder.kv_heads
        key = layer.key.repeat_interleave(copies, dim=1)
        at = torch.tensor(places, dtype=torch.float64)
        new = attention_logits(layer.query, key, at, layer.decoder, layer.layer)
        return torch.where(cells(layer), new, logits)

    return edit


def expected(**how: Any) -> Any:
    return branches(original=Rules(edit=moved(**how)))


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
def test_it_equals_the_reference(kv_heads: int, optimize: bool, pad: int) -> None:
    check(
        cdkit.load("cca"), expected(), MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad,
    )  # fmt: skip


@pytest.mark.parametrize("optimize", [True, False])
def test_image_rows_too(optimize: bool) -> None:
    method = cdkit.load("cca", image_rows=True)
    check(method, expected(cells=of_image_too), MIXED, optimize=optimize, pad=2)


def test_image_rows_of_two_branches() -> None:
    """A contrast with noise in the image, all of whose branches use the positions."""
    vcd = cdkit.load("vcd")
    both = replace(vcd, calibrator=CCA(image_rows=True))
    runs = [generate(tiny(2), both, SAMPLES, optimize=optimize) for optimize in (True, False)]
    assert_close(runs[0].logits, runs[1].logits, within=1e-8)
    assert torch.equal(runs[0].tokens, runs[1].tokens)


def test_sampling_and_beams() -> None:
    check_modes(cdkit.load("cca"), expected(), SAMPLES)


def test_pieces() -> None:
    chunks: list[dict[str, Any]] = [{}, {"prefill_chunk_size": 7}]
    whole, split = (generate(tiny(2), cdkit.load("cca"), SAMPLES, **x) for x in chunks)
    have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
    assert_close(have, {"combined": whole.logits["combined"]}, within=1e-8)


def test_image_rows_are_not_split() -> None:
    method = cdkit.load("cca", image_rows=True)
    with pytest.raises(cdkit.CdkitError, match="concentric_positions moves image tokens for each"):
        generate(tiny(2), method, SAMPLES, prefill_chunk_size=7)


FAULTS: dict[str, dict[str, Any]] = {
    "inside out": {"positions": lambda i, layer: by_rings(i, rings=[1 - r for r in RINGS])},
    "one place": {"positions": lambda i, layer: by_rings(i, rings=[0] * 16)},
    "image rows": {"cells": of_image_too},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), cdkit.load("cca"), SAMPLES)
    check_fault(ran, expected(**FAULTS[fault])(tiny(2), SAMPLES, ran.tokens))


def test_the_positions_of_the_code() -> None:
    """Two tokens, an image of 4 x 4, two tiles of 3 x 2, two tokens more."""
    index = torch.tensor([[-1, -1, *[0] * 16, *[1] * 12, -1, -1]])
    grids = ((cdkit.ImageGrid(4, 4), cdkit.ImageGrid(3, 2, tiles=2)),)
    line = torch.arange(index.shape[1])[None]
    new = CCA().calibrate(line, index, context=cdkit.PositionContext(grids))
    image = [2 + ring for ring in RINGS]
    assert new[0].tolist() == [0, 1, *image, *[4] * 6, *[5] * 6, 6, 7]
    whole = cdkit.ImageGrid(24, 24)
    places = CCA().calibrate(
        torch.arange(577)[None],
        torch.tensor([[0] * 576 + [-1]]),
        context=cdkit.PositionContext(((whole,),)),
    )
    assert places.max() == 12 and places[0, 11 * 24 + 11] == 11 and places[0, 575] == 0


@dataclass(frozen=True)
class LaterIsNearer(cdkit.PositionCalibrator):
    """Image tokens take less room in every layer."""

    depends_on_layer: ClassVar[bool] = True

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def constant_after_prompt(self) -> bool:
        return True

    def calibrate(
        self,
        positions: Tensor,
        image_index: Tensor,
        *,
        context: cdkit.PositionContext = cdkit.NOTHING_KNOWN,
    ) -> Tensor:
        step = 1 / (2 + (context.layer or 0))
        image = (image_index >= 0).double()
        room = (image * step + 1 - image).cumsum(1)
        return room if positions.ndim == 2 else room[..., None].expand(positions.shape)


def by_layer(image: Sequence[int], layer: int) -> list[float]:
    here, places = 0.0, []
    for number in image:
        here += 1.0 if number < 0 else 1 / (2 + layer)
        places.append(here)
    return places


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("steps_move", [False, True])
def test_a_calibrator_of_each_layer(optimize: bool, steps_move: bool) -> None:
    class Unsteady(LaterIsNearer):
        @property
        def constant_after_prompt(self) -> bool:
            return not steps_move

    method = replace(cdkit.load("cca"), calibrator=Unsteady())
    check(method, expected(positions=by_layer), MIXED, optimize=optimize, pad=2)


def test_it_keeps_the_promises() -> None:
    check_calibrator(LaterIsNearer())


def test_branches_and_loops_with_positions_of_each_layer() -> None:
    """Packed rows, their end, and the stock cache that a loop hands on."""
    method = replace(cdkit.load("vcd"), calibrator=LaterIsNearer())
    modes: list[dict[str, Any]] = [{}, {"num_beams": 2}]
    for how in modes:
        runs = [generate(tiny(2), method, SAMPLES, optimize=x, **how) for x in (True, False)]
        assert torch.equal(runs[0].tokens, runs[1].tokens)
        if not how:
            assert_close(runs[0].logits, runs[1].logits, within=1e-8)


@dataclass(frozen=True)
class Reversed(cdkit.PositionCalibrator):
    """The last token of an image stands first: a position depends on its own image."""

    @property
    def is_identity(self) -> bool:
        return False

    def calibrate(self, positions: Tensor, image_index: Tensor) -> Tensor:
        new = positions.double()
        for row, index in zip(new, image_index, strict=True):
            for number in range(int(index.max()) + 1):
                row[index == number] = row[index == number].flip(0)
        return new


def test_a_position_may_depend_on_its_own_image() -> None:
    check_calibrator(Reversed())

    def backwards(image: Sequence[int], layer: int) -> list[float]:
        places = list(range(len(image)))
        for number in range(max(image) + 1):
            own = [i for i, n in enumerate(image) if n == number]
            for i, j in zip(own, reversed(own), strict=True):
                places[i] = j
        return [float(place) for place in places]

    method = replace(cdkit.load("cca"), calibrator=Reversed())
    check(method, expected(positions=backwards), SAMPLES)


def test_an_unknown_grid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdkit.ADAPTERS["llava"], "square_grid", False)
    with pytest.raises(cdkit.CdkitError, match="adapter Llava does not say it of image 0 of prom"):
        generate(tiny(2), cdkit.load("cca"), SAMPLES)
