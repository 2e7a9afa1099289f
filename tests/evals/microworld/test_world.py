from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.microworld import CONFIRMATION_WORLD, WORLD, World
from cdkit.evals.microworld.drawing import glyphs_of, patch_labels, render
from cdkit.evals.microworld.world import draw_picture, scenes_of

seeds = st.integers(0, 2**32 - 1)
worlds = st.sampled_from([WORLD, CONFIRMATION_WORLD])


@given(worlds, seeds)
def test_the_same_seed_draws_the_same_photo(world: World, seed: int) -> None:
    first, again = (draw_picture(world, np.random.default_rng(seed)) for _ in range(2))
    assert first == again
    image = render(world, first)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert np.array_equal(image, render(world, again))


@given(worlds, seeds)
def test_things_keep_to_their_own_cells(world: World, seed: int) -> None:
    picture = draw_picture(world, np.random.default_rng(seed))
    cells = [(thing.row, thing.column) for thing in picture.things]
    assert cells == sorted(set(cells))  # raster order, one thing a cell
    assert all(0 <= t.left <= world.cell - t.side for t in picture.things)
    assert all(0 <= t.top <= world.cell - t.side for t in picture.things)
    assert 1 <= len(picture.counts()) <= len(world.kinds)
    assert max(picture.counts().values()) <= len(world.copies)


@given(worlds, seeds)
def test_patch_labels_name_the_thing_in_the_patch(world: World, seed: int) -> None:
    picture = draw_picture(world, np.random.default_rng(seed))
    category, color = patch_labels(world, picture)
    assert category.shape == color.shape == (world.patches**2,)
    assert np.array_equal(category < 0, color < 0)
    assert (category >= 0).sum() == 4 * len(picture.things)
    for thing in picture.things:
        index = thing.row * 2 * world.patches + thing.column * 2
        assert (category[index], color[index]) == (thing.category, thing.color)


@given(seeds)
def test_the_share_of_bad_photos_can_be_replaced(seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = draw_picture(WORLD, rng, degraded=1.0)
    assert picture.fault in ("noise", "fog", "blur")
    assert draw_picture(WORLD, rng, degraded=0.0).fault == ""


def test_total_fog_hides_every_thing() -> None:
    picture = replace(draw_picture(WORLD, np.random.default_rng(3)), fault="fog", strength=1.0)
    still = replace(WORLD, noise=0.0)
    empty = replace(picture, things=())
    assert np.array_equal(render(still, picture), render(still, empty))


@pytest.mark.parametrize("world", [WORLD, CONFIRMATION_WORLD])
def test_signs_are_mirror_symmetric_and_well_apart(world: World) -> None:
    signs = glyphs_of(world)
    assert len(signs) == len(world.categories)
    assert np.array_equal(signs, signs[:, :, ::-1])
    apart = (signs[:, None] != signs[None]).sum((2, 3))
    assert apart[~np.eye(len(signs), dtype=bool)].min() >= 6


@pytest.mark.parametrize("world", [WORLD, CONFIRMATION_WORLD])
def test_everything_has_a_scene_and_people_are_everywhere(world: World) -> None:
    scenes = scenes_of(world)
    assert len(scenes) == world.scenes
    assert all(0 in scene.categories for scene in scenes)
    assert {c for scene in scenes for c in scene.categories} == set(range(len(world.categories)))
    assert all(len(set(s.categories)) == world.scene_size for s in scenes)
    assert all(abs(sum(scene.weights) - 1) < 1e-9 for scene in scenes)


def test_the_confirmation_world_is_another_world_under_the_same_rules() -> None:
    one, other = asdict(WORLD), asdict(CONFIRMATION_WORLD)
    assert {k for k in one if one[k] != other[k]} == {"glyph_seed", "scene_seed"}
    assert not np.array_equal(glyphs_of(WORLD), glyphs_of(CONFIRMATION_WORLD))
    assert scenes_of(WORLD) != scenes_of(CONFIRMATION_WORLD)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"degraded": 1.5}, "World.degraded is 1.5: a probability lies in 0..1"),
        ({"kinds": (0.5, 0.6)}, "World.kinds is .*: it must sum to 1"),
        ({"scene_size": 4}, "World.scene_size is 4"),
        ({"cell": 12}, "World.cell 12 is no multiple of the patch 8"),
        ({"grid": 3}, "World.grid is 3: too few cells"),
    ],
)
def test_an_impossible_world_is_refused(change: dict[str, object], words: str) -> None:
    values = {"glyph_seed": 1, "scene_seed": 1, **change}
    with pytest.raises(CdkitError, match=words):
        World(**values)  # type: ignore[arg-type]
