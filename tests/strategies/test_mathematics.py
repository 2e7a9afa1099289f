"""What the methods compute, as properties: positions, masks, noise, the contrast."""

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import cdkit
from cdkit.branches.inputs import left_pad
from cdkit.functional.noise import (
    cell_normal,
    cell_uniform,
    diffusion_signal_kept,
    generator,
    stream,
)
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.testing.example_segments import example_segment

Scaled: Any = cdkit.CALIBRATORS["scaled_positions"]
SCOPES: st.SearchStrategy[Literal["call", "head", "row"]] = st.sampled_from(["call", "head", "row"])
GAMMAS = st.floats(1, 8)
# text and images of a prompt, in turns; then text
COUNTS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=3)


def tokens(counts: list[tuple[int, int]], after: int = 4) -> tuple[Tensor, Tensor]:
    """Positions, and for each token the number of its image, -1 for text."""
    index = [
        i for number, (text, image) in enumerate(counts) for i in [-1] * text + [number] * image
    ] + [-1] * after
    return torch.arange(len(index))[None], torch.tensor([index])


# ---- CMPC ----------------------------------------------------------------------------------------


@given(COUNTS, GAMMAS)
def test_positions_are_the_papers_running_sum(counts: list[tuple[int, int]], gamma: float) -> None:
    positions, image_index = tokens(counts)
    place, wanted = 0.0, []
    for image in image_index[0].tolist():
        place += 1 / gamma if image >= 0 else 1.0
        wanted.append(place)
    given_ = Scaled(gamma=gamma).calibrate(positions, image_index)[0]
    exact = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(given_ - given_[0], exact - exact[0], rtol=0, atol=1e-9)


@given(COUNTS, GAMMAS)
def test_an_image_spans_n_over_gamma(counts: list[tuple[int, int]], gamma: float) -> None:
    positions, image_index = tokens([(1, 1), *counts])
    new = Scaled(gamma=gamma).calibrate(positions, image_index)[0]
    steps = new.diff()
    image, text = image_index[0, 1:] >= 0, image_index[0, 1:] < 0
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(steps[text], torch.ones_like(steps[text]), **close)
    torch.testing.assert_close(steps[image], torch.full_like(steps[image], 1 / gamma), **close)
    n, m = 1 + sum(images for _, images in counts), sum(texts for texts, _ in counts)
    assert float(new[-5] - new[0]) == pytest.approx(n / gamma + m)  # from the first token on


@given(COUNTS, GAMMAS)
def test_the_first_gap(counts: list[tuple[int, int]], gamma: float) -> None:
    """The public code: image tokens stand 1 - 1 / gamma later, the text where it stood."""
    positions, image_index = tokens(counts)
    is_image = image_index >= 0
    scaled = Scaled(gamma=gamma).calibrate(positions, image_index)
    unit = Scaled(gamma=gamma, first_gap="unit").calibrate(positions, image_index)
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(unit - scaled, (1 - 1 / gamma) * is_image.double(), **close)
    steps = torch.nn.functional.pad(unit, (1, 0), value=-1.0).diff()[0]
    for column, image in enumerate(is_image[0].tolist()):
        first = image and (column == 0 or not is_image[0, column - 1])
        if first and column:
            assert steps[column] == pytest.approx(1.0)


@given(COUNTS, GAMMAS, st.floats(0.1, 1))
def test_the_text_step(counts: list[tuple[int, int]], gamma: float, step: float) -> None:
    positions, image_index = tokens(counts)
    new = Scaled(gamma=gamma, text_step=step).calibrate(positions, image_index)[0]
    text = image_index[0, 1:] < 0
    wanted = text.double() * step + (~text).double() / gamma
    torch.testing.assert_close(new.diff(), wanted, rtol=0, atol=1e-9)


@given(COUNTS, st.sampled_from(["scaled", "unit"]))
def test_gamma_one_is_the_identity(counts: list[tuple[int, int]], first_gap: str) -> None:
    positions, image_index = tokens(counts)
    calibrator = Scaled(gamma=1.0, first_gap=first_gap)
    assert calibrator.is_identity
    assert calibrator.calibrate(positions, image_index).equal(positions.double())


# ---- CMPC where positions have three axes --------------------------------------------------------

GRIDS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3
)
"""Texts and images of a prompt in turns: how many tokens, how high, how wide."""


def on_grid(prompt: list[tuple[int, int, int]], after: int = 3) -> tuple[Tensor, Tensor]:
    """Positions as multimodal RoPE counts them: an image is as long as its longest side."""
    here, places, index = 0, [], []
    for number, (text, height, width) in enumerate(prompt):
        places += [(here + i,) * 3 for i in range(text)]
        here += text
        places += [(here, here + y, here + x) for y in range(height) for x in range(width)]
        here += max(height, width)
        index += [-1] * text + [number] * (height * width)
    places += [(here + i,) * 3 for i in range(after)]
    return torch.tensor([places]), torch.tensor([index + [-1] * after])


def close(given: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9)


CALIBRATORS = st.builds(
    Scaled, gamma=GAMMAS, first_gap=st.sampled_from(["scaled", "unit"]), text_step=st.floats(0.1, 1)
)


@given(COUNTS, st.booleans(), CALIBRATORS)
def test_images_of_one_row_or_column_are_the_papers_case(
    counts: list[tuple[int, int]], column: bool, calibrator: Any
) -> None:
    flat, numbers = tokens(counts, after=3)
    sides = [(text, image, 1) if column else (text, 1, image) for text, image in counts]
    positions, image_index = on_grid(sides)
    assert image_index.equal(numbers)
    along = 1 if column else 2
    assert positions[..., along].equal(flat)
    new = calibrator.calibrate(positions, image_index)[..., along]
    assert new.equal(calibrator.calibrate(flat, numbers))


@given(GRIDS, CALIBRATORS)
def test_the_axes_of_text_stay_equal(prompt: list[tuple[int, int, int]], calibrator: Any) -> None:
    positions, image_index = on_grid(prompt)
    text = calibrator.calibrate(positions, image_index)[image_index < 0]
    close(text, text[:, :1].expand_as(text))


@given(GRIDS, st.sampled_from(["scaled", "unit"]))
def test_gamma_one_is_the_identity_on_a_grid(
    prompt: list[tuple[int, int, int]], first_gap: str
) -> None:
    positions, image_index = on_grid(prompt)
    same = Scaled(gamma=1.0, first_gap=first_gap).calibrate(positions, image_index)
    assert same.equal(positions.double())


@given(GRIDS, GAMMAS)
def test_an_image_shrinks_by_gamma_on_each_axis(
    prompt: list[tuple[int, int, int]], gamma: float
) -> None:
    """Token (y, x) stands (1, 1 + y, 1 + x) / gamma behind the text before its image, the text
    after it the longest side / gamma and one step."""
    positions, image_index = on_grid([(1, h, w) for _, h, w in prompt])
    new = Scaled(gamma=gamma).calibrate(positions, image_index)[0]
    for number, (_, height, width) in enumerate(prompt):
        own = (image_index[0] == number).nonzero()[:, 0]
        before, after = new[own[0] - 1], new[own[-1] + 1]
        steps = torch.tensor(
            [(1, 1 + y, 1 + x) for y in range(height) for x in range(width)], dtype=torch.float64
        )
        close(new[own], before + steps / gamma)
        close(after, before + max(height, width) / gamma + 1)


@given(GRIDS, CALIBRATORS, st.data())
def test_no_position_depends_on_later_tokens(
    prompt: list[tuple[int, int, int]], calibrator: Any, data: st.DataObject
) -> None:
    positions, image_index = on_grid(prompt)
    stop = data.draw(st.integers(1, positions.shape[1]))
    whole = calibrator.calibrate(positions, image_index)
    part = calibrator.calibrate(positions[:, :stop], image_index[:, :stop])
    close(part, whole[:, :stop])


@given(GRIDS, GRIDS, CALIBRATORS)
def test_a_row_of_a_left_padded_batch_is_as_alone(
    one: list[tuple[int, int, int]], two: list[tuple[int, int, int]], calibrator: Any
) -> None:
    alone = [on_grid(prompt) for prompt in (one, two)]
    length = max(index.shape[1] for _, index in alone)
    positions = torch.cat([left_pad(own, length, 0) for own, _ in alone])
    image_index = torch.cat([left_pad(index, length, -1) for _, index in alone])
    both = calibrator.calibrate(positions, image_index)
    for row, (own, index) in enumerate(alone):
        wanted = calibrator.calibrate(own, index)[0]
        moved = both[row, length - len(wanted) :]
        close(moved - moved[0], wanted - wanted[0])  # padding moves a row by a constant


# ---- masks ---------------------------------------------------------------------------------------


@st.composite
def segments(draw: st.DrawFn) -> CrossModalSegment:
    """Logits drawn anew, with no cell within 1e-6 of another one or of a threshold."""
    segment = example_segment()
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    drawn = torch.randn(segment.logits.shape, generator=random, dtype=torch.float64) * scale
    logits = drawn.masked_fill(~segment.cells[:, None], -math.inf)
    return replace(segment, logits=logits)


def groups(segment: CrossModalSegment, scope: str) -> list[Tensor]:
    """The cells that share a threshold, as boolean masks, by method.md's words."""
    found = []
    cells = segment.cells[:, None].expand_as(segment.logits)
    samples, heads, rows, _ = cells.shape
    for sample in range(samples):
        last = int(segment.prompt[0].sum())
        lines = [[row] for row in range(rows)]
        if scope != "row":
            lines = [list(range(last)), *([row] for row in range(last, rows))]
        for line in lines:
            for head in range(heads) if scope == "head" else [slice(None)]:
                group = torch.zeros_like(cells)
                group[sample, head, line] = True
                found.append(group & cells)
    return found


@settings(max_examples=50)
@given(segments(), SCOPES)
def test_above_the_mean_of_its_group(
    segment: CrossModalSegment, scope: Literal["call", "head", "row"]
) -> None:
    mask = segment.above_mean(scope)
    wanted = torch.zeros_like(mask)
    for group in groups(segment, scope):
        if group.any():
            values = segment.logits[group]
            assume(((values - values.mean()).abs() > 1e-6 * values.abs().max()).all())
            wanted |= group & (segment.logits > values.mean())
    assert mask.equal(wanted)
    assert mask.dtype == torch.bool and not mask[~segment.cells[:, None].expand_as(mask)].any()


@settings(max_examples=50)
@given(segments(), SCOPES, st.floats(-50, 50))
def test_a_constant_changes_no_mask(
    segment: CrossModalSegment, scope: Literal["call", "head", "row"], constant: float
) -> None:
    for group in groups(segment, scope):
        values = segment.logits[group]
        assume(((values - values.mean()).abs() > 1e-6).all())
    moved = replace(segment, logits=segment.logits + constant)
    assert moved.above_mean(scope).equal(segment.above_mean(scope))


@settings(max_examples=25)
@given(segments(), SCOPES)
def test_the_random_mask_has_imds_size_in_every_row(
    segment: CrossModalSegment, scope: Literal["call", "head", "row"]
) -> None:
    Random: Any = cdkit.SELECTORS["random_cells"]
    mask = Random(scope=scope).select(segment)
    assert mask.sum(dim=-1).equal(segment.above_mean(scope).sum(dim=-1))
    assert not mask[~segment.cells[:, None].expand_as(mask)].any()
    rng_keys = segment.image.rng_keys
    other = replace(segment, image=replace(segment.image, rng_keys=rng_keys + 1, answer_cache={}))
    assert not Random(scope=scope).select(other).equal(mask)


@settings(max_examples=25)
@given(segments(), SCOPES, st.floats(0.01, 1.0))
def test_the_top_share_is_each_groups_best_cells(
    segment: CrossModalSegment, scope: Literal["call", "head", "row"], share: float
) -> None:
    Top: Any = cdkit.SELECTORS["top_share"]
    mask = Top(share=share, scope=scope).select(segment)
    cells = segment.cells[:, None].expand_as(mask)
    assert not mask[~cells].any()
    for group in groups(segment, scope):
        if not group.any():
            continue
        count = max(round(share * int(group.sum())), 1)
        least = segment.logits[group].sort(descending=True).values[count - 1]
        assert mask[group].equal(segment.logits[group] >= least)


def test_the_mean_value_is_that_of_its_own_image() -> None:
    segment = example_segment()
    means = segment.image.mean_values()
    values, index, valid = segment.image.values, segment.image.image_index, segment.image.valid
    for row in range(values.shape[0]):
        for column in range(values.shape[2]):
            own = valid[row] & (index[row] == index[row, column])
            wanted = values[row][:, own].mean(dim=1)
            torch.testing.assert_close(means[row, :, column], wanted, rtol=0, atol=1e-12)


def test_constant_values_are_their_own_mean() -> None:
    segment = example_segment()
    constant = torch.full_like(segment.image.values, 1.25)
    segment = replace(segment, image=replace(segment.image, values=constant, answer_cache={}))
    for mean in ("dim", "scalar"):
        Mean: Any = cdkit.DISTORTIONS["value_mean_mask"]
        replacement = Mean(value_mean=mean).distort(segment).replacement
        torch.testing.assert_close(replacement, constant, rtol=0, atol=1e-12)


# ---- noise ---------------------------------------------------------------------------------------


def test_vcds_schedule() -> None:
    """The figures that the docstring states, and no noise at step 0."""
    assert diffusion_signal_kept(0) == pytest.approx(0.99998, abs=1e-5)
    assert diffusion_signal_kept(500) == pytest.approx(0.745, abs=1e-3)
    assert diffusion_signal_kept(999) == pytest.approx(0.081, abs=1e-3)
    assert diffusion_signal_kept(999, beta_max=0.01) == pytest.approx(0.0066, abs=1e-4)


@pytest.mark.parametrize("step", [0, 250, 500, 999])
def test_noised_pixels_keep_their_variance(step: int) -> None:
    pixels = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    Noise: Any = cdkit.DISTORTIONS["diffusion_noise"]
    noised = Noise(step=step).distort(pixels, generator=generator(0, "a", "test"))
    kept = diffusion_signal_kept(step)
    correlation = torch.corrcoef(torch.stack((pixels.flatten(), noised.flatten())))[0, 1]
    assert float(correlation) == pytest.approx(math.sqrt(kept), abs=0.03)
    assert float(noised.var()) == pytest.approx(1.0, abs=0.05)


def test_random_numbers_belong_to_seed_sample_and_purpose() -> None:
    keys = {stream(0, "a"), stream(1, "a"), stream(0, "b"), stream(0, "a", "x")}
    assert len(keys) == 4
    assert stream(1, "1") != stream(11, "") != stream(1, "", "1")
    draws = [torch.rand(4, generator=generator(0, "a", "x")) for _ in range(2)]
    assert draws[0].equal(draws[1])


def test_cells_are_uniform_and_independent() -> None:
    rng_keys = torch.tensor([stream(0, str(i)) for i in range(20)])[:, None, None]
    drawn = cell_uniform(rng_keys, torch.arange(50)[:, None], torch.arange(40))
    assert drawn.shape == (20, 50, 40) and len(set(drawn.flatten().tolist())) == drawn.numel()
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=0.002)
    for axis in range(3):
        a, b = drawn.narrow(axis, 0, 19).flatten(), drawn.narrow(axis, 1, 19).flatten()
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 0.03
    normal = cell_normal(rng_keys, torch.arange(50)[:, None], torch.arange(40))
    assert float(normal.mean()) == pytest.approx(0, abs=0.03)
    assert float(normal.std()) == pytest.approx(1, abs=0.03)
    part = cell_uniform(rng_keys[3:4], torch.arange(50)[7:9, None], torch.arange(40)[5:6])
    assert part.equal(drawn[3:4, 7:9, 5:6])  # a cell's number is its own, whatever comes with it


# ---- the contrast --------------------------------------------------------------------------------

ROWS = st.lists(st.floats(-30, 30), min_size=5, max_size=5)


@given(ROWS, ROWS, ROWS, st.floats(0, 5), st.floats(0, 5), st.floats(0.001, 1))
def test_contrast(
    original: list[float], one: list[float], two: list[float], a: float, b: float, beta: float
) -> None:
    l, x, y = (torch.tensor([row], dtype=torch.float64) for row in (original, one, two))  # noqa: E741
    combined = cdkit.contrast(l, [x, y], alphas=[a, b], beta=beta)
    kept = combined > -math.inf
    wanted = (1 + a + b) * l - a * x - b * y
    torch.testing.assert_close(combined[kept], wanted[kept], rtol=1e-9, atol=1e-9)
    ratio = (l.softmax(-1) / l.softmax(-1).max()).log()
    assert (ratio[kept] >= math.log(beta) - 1e-9).all()
    assert (ratio[~kept] <= math.log(beta) + 1e-9).all()
    assert kept[0, l.argmax()]
    identical = cdkit.contrast(l, [l, l], alphas=[a, b], beta=beta)
    assert identical.equal(cdkit.contrast(l, [], alphas=[], beta=beta))
    free = cdkit.contrast(l, [x, y], alphas=[a, b], beta=0.0)
    torch.testing.assert_close(free, wanted, rtol=1e-9, atol=1e-9)


def test_contrast_refuses_what_does_not_fit() -> None:
    logits = torch.zeros(1, 3)
    with pytest.raises(cdkit.CdkitError, match="2 alphas for 1 distorted branches"):
        cdkit.contrast(logits, [logits], alphas=[1.0, 2.0], beta=0.1)
    for beta in (0.0, 1.5, -1.0):
        with pytest.raises(cdkit.CdkitError, match=r"beta must be in \(0, 1\]"):
            cdkit.plausible(logits, beta)
