"""Layers as shares of the depth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.interfaces.depth import EVERY_LAYER, check_depth, layers_within

SHARES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("depth", "count", "layers"),
    [
        ((0.25, 0.5), 32, range(8, 16)),
        ((0.25, 0.5), 40, range(10, 20)),
        ((9 / 32, 15 / 32), 32, range(9, 15)),
        ((2 / 32, 1.0), 32, range(2, 32)),
        ((20 / 32, 29 / 32), 32, range(20, 29)),
        ((0.3, 0.6), 10, range(3, 6)),  # 0.3 * 10 is not quite 3
        ((0.25, 0.5), 3, range(1, 2)),
        ((0.9, 0.95), 4, range(3, 4)),  # at least one
        (EVERY_LAYER, 5, range(5)),
    ],
)
def test_the_authors_layers(depth: tuple[float, float], count: int, layers: range) -> None:
    assert layers_within(depth, count) == layers


@given(SHARES, SHARES, st.integers(1, 100))
def test_layers_are_of_the_model_and_in_the_depth(a: float, b: float, count: int) -> None:
    first, last = sorted((a, b))
    layers = layers_within((first, last), count)
    assert layers and 0 <= layers[0] and layers[-1] < count
    inside = [layer for layer in range(count) if first * count <= layer < last * count - 1e-5]
    assert set(inside) <= set(layers) and len(layers) <= len(inside) + 2


@given(st.integers(1, 100), st.floats(0.01, 0.99))
def test_two_depths_that_meet_share_no_layer(count: int, cut: float) -> None:
    if 1 <= round(cut * count, 6) <= count - 1:
        below, above = layers_within((0.0, cut), count), layers_within((cut, 1.0), count)
        assert [*below, *above] == list(range(count))


@pytest.mark.parametrize("depth", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_bad_depths(depth: tuple[float, float]) -> None:
    with pytest.raises(CdkitError, match=r"layers must be two shares of the depth, 0 <= first <"):
        check_depth("layers", depth)
