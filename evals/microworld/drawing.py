"""From a `Picture` to pixels: glyphs, backgrounds, faults. Pure functions of the world."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cdkit.evals.microworld.world import Picture, Thing, World, scenes_of

Pixels = npt.NDArray[np.float32]

PALETTE = {
    "red": (0.95, 0.10, 0.10),
    "green": (0.05, 0.75, 0.10),
    "blue": (0.10, 0.20, 1.00),
    "yellow": (1.00, 0.95, 0.05),
    "white": (1.00, 1.00, 1.00),
    "purple": (0.70, 0.10, 0.85),
}


@lru_cache(maxsize=8)
def glyphs_of(world: World) -> npt.NDArray[np.bool_]:
    """One mirror-symmetric 5x5 sign a category, any two at least 6 cells apart."""
    rng = np.random.default_rng([world.glyph_seed, 2])
    found: list[npt.NDArray[np.bool_]] = []
    while len(found) < len(world.categories):
        half = rng.random((5, 3)) < 0.55
        sign = np.concatenate([half, half[:, 1::-1]], axis=1)
        if 9 <= sign.sum() <= 18 and all((sign != other).sum() >= 6 for other in found):
            found.append(sign)
    return np.stack(found)


def render(world: World, picture: Picture) -> npt.NDArray[np.uint8]:
    """The photo, `size x size x 3`, 8 bits a channel."""
    rng = np.random.default_rng(picture.seed)
    size = world.size
    tint = np.array(scenes_of(world)[picture.scene].tint, np.float32)
    tint = tint + rng.uniform(-0.05, 0.05, 3).astype(np.float32)
    slope = rng.uniform(-0.08, 0.08, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shade = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    image = tint + shade[..., None]
    for thing in picture.things:
        _paint(world, image, thing)
    image = _spoil(image, picture, tint, rng)
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(world.noise)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _paint(world: World, image: Pixels, thing: Thing) -> None:
    steps = np.arange(thing.side) * 5 // thing.side
    mask = glyphs_of(world)[thing.category][np.ix_(steps, steps)].copy()
    hidden = round(thing.covered * thing.side)
    if thing.cut == 0:
        mask[:, :hidden] = False
    elif thing.cut == 1:
        mask[:, thing.side - hidden :] = False
    elif thing.cut == 2:
        mask[:hidden] = False
    elif thing.cut == 3:
        mask[thing.side - hidden :] = False
    top = thing.row * world.cell + thing.top
    left = thing.column * world.cell + thing.left
    region = image[top : top + thing.side, left : left + thing.side]
    color = np.array(PALETTE[world.colors[thing.color]], np.float32)
    region[mask] += np.float32(thing.contrast) * (color - region[mask])


def _spoil(image: Pixels, picture: Picture, tint: Pixels, rng: np.random.Generator) -> Pixels:
    """Fog takes the contrast away, down to nothing; blur averages boxes; noise adds to the rest."""
    if picture.fault == "fog":
        keep = np.float32((1 - picture.strength) ** 1.5)
        return np.asarray(tint + (image - tint) * keep, np.float32)
    if picture.fault == "blur":
        box = (2, 4, 8)[min(int(picture.strength * 3), 2)]
        side = image.shape[0] // box
        means: Pixels = image.reshape(side, box, side, box, 3).mean((1, 3))
        return means.repeat(box, 0).repeat(box, 1)
    if picture.fault == "noise":
        extra = np.float32(0.45 * picture.strength)
        grain = rng.standard_normal(image.shape, np.float32)
        return np.asarray(image + extra * grain, np.float32)
    return image


def patch_labels(
    world: World, picture: Picture
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Category and colour of each patch in raster order; -1 where there is only background."""
    span = world.cell // world.patch
    category = np.full((world.patches, world.patches), -1, np.int64)
    color = category.copy()
    for thing in picture.things:
        rows = slice(thing.row * span, (thing.row + 1) * span)
        columns = slice(thing.column * span, (thing.column + 1) * span)
        category[rows, columns] = thing.category
        color[rows, columns] = thing.color
    return category.ravel(), color.ravel()
