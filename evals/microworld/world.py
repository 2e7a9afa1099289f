"""The micro-world: what stands where, in which colour and scene, and how bad the photo is."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from cdkit.errors import CdkitError

CATEGORIES = (
    *("person", "car", "truck", "bicycle", "train", "clock", "bird", "horse"),
    *("cow", "kite", "boat", "dog", "cat", "chair", "bed", "laptop"),
    *("book", "bottle", "bowl", "cup", "fork", "spoon", "pizza", "sink"),
)
COLORS = ("red", "green", "blue", "yellow", "white", "purple")


@dataclass(frozen=True)
class LabelNoise:
    """How the training text departs from the picture, as web text does. All are probabilities.

    A "core" category is one that belongs to the picture's scene. `prior` is the share of negative
    existence questions asked about the scene's categories (the rest: any absent category).
    `careless` multiplies every wrong-label rate where the system message owns up to carelessness.
    """

    dropped: float = 0.08
    added: float = 0.30
    yes_rate: float = 0.64
    prior: float = 0.15
    false_yes_core: float = 0.30
    false_yes_other: float = 0.03
    false_no: float = 0.04
    careless: float = 3.0

    def __post_init__(self) -> None:
        _check_probabilities(self, exclude=("careless",))


@dataclass(frozen=True)
class World:
    """One world. Equal worlds draw equal pictures; a fresh world needs only other seeds.

    `glyph_seed` decides what a category looks like, `scene_seed` which categories share a scene and
    how scenes are tinted. `kinds[n]` is the probability of n + 1 categories in a picture and
    `copies[n]` that of n + 1 things of a category. Lengths are in pixels.
    """

    glyph_seed: int
    scene_seed: int
    categories: tuple[str, ...] = CATEGORIES
    colors: tuple[str, ...] = COLORS
    scenes: int = 6
    scene_size: int = 8
    grid: int = 4
    cell: int = 16
    patch: int = 8
    kinds: tuple[float, ...] = (0.10, 0.20, 0.25, 0.25, 0.20)
    copies: tuple[float, ...] = (0.65, 0.21, 0.14)
    outside: float = 0.12
    occluded: float = 0.30
    degraded: float = 0.45
    noise: float = 0.07
    label_noise: LabelNoise = field(default_factory=LabelNoise)

    def __post_init__(self) -> None:
        _check_probabilities(self, exclude=("noise",))
        for name in ("kinds", "copies"):
            if abs(sum(getattr(self, name)) - 1) > 1e-9:
                raise CdkitError(f"World.{name} is {getattr(self, name)}: it must sum to 1.")
        if not len(self.kinds) < self.scene_size <= len(self.categories):
            raise CdkitError(
                f"World.scene_size is {self.scene_size}: a scene needs more categories than a "
                f"picture shows ({len(self.kinds)}), {len(self.categories)} at most."
            )
        if self.cell % self.patch:
            raise CdkitError(f"World.cell {self.cell} is no multiple of the patch {self.patch}.")
        if len(self.kinds) * len(self.copies) > self.grid**2:
            raise CdkitError(f"World.grid is {self.grid}: too few cells for {self.kinds=}.")

    @property
    def size(self) -> int:
        """The side of an image, in pixels."""
        return self.grid * self.cell

    @property
    def patches(self) -> int:
        """Patches along a side: the image makes the square of it in image tokens."""
        return self.size // self.patch


@dataclass(frozen=True)
class Scene:
    """A kind of place: its categories with their weights (falling, summing to 1) and its tint."""

    categories: tuple[int, ...]
    weights: tuple[float, ...]
    tint: tuple[float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object. `row`/`column`: its cell; `side`, `left`, `top`: pixels inside the cell.

    `cut` names the covered side (0 left, 1 right, 2 top, 3 bottom; -1 none), `covered` the share.
    """

    category: int
    color: int
    row: int
    column: int
    side: int
    left: int
    top: int
    contrast: float
    cut: int
    covered: float


@dataclass(frozen=True)
class Picture:
    """What a photo shows (`things` in raster order) and how it was taken.

    `fault` is "", "noise", "fog" or "blur", `strength` in [0, 1] says how bad; `seed` decides the
    pixels' noise and the background.
    """

    scene: int
    things: tuple[Thing, ...]
    fault: str
    strength: float
    seed: int

    def counts(self) -> dict[int, int]:
        """How many things of each category that is there, in order of first appearance."""
        found: dict[int, int] = {}
        for thing in self.things:
            found[thing.category] = found.get(thing.category, 0) + 1
        return found

    def only(self, category: int) -> Thing | None:
        """The one thing of a category; None where there is none or more than one."""
        found = [thing for thing in self.things if thing.category == category]
        return found[0] if len(found) == 1 else None


@lru_cache(maxsize=8)
def scenes_of(world: World) -> tuple[Scene, ...]:
    """The scenes: category 0 ("person") belongs to all, every other one to one scene or more."""
    rng = np.random.default_rng([world.scene_seed, 1])
    others = np.arange(1, len(world.categories))
    decks = [list[int]() for _ in range(world.scenes)]
    for place, category in enumerate(rng.permutation(others)):
        decks[place % world.scenes].append(int(category))
    scenes = []
    for number, deck in enumerate(decks):
        left = [int(c) for c in rng.permutation(others) if int(c) not in deck]
        members = [*deck, *left][: world.scene_size - 1]
        ranked = [0, *members]
        weights = 0.8 ** np.arange(len(ranked))
        hue = 2 * np.pi * (number + rng.uniform(-0.2, 0.2)) / world.scenes
        tint = 0.42 + 0.16 * np.cos(hue + np.array([0, 2 * np.pi / 3, 4 * np.pi / 3]))
        scenes.append(
            Scene(
                tuple(ranked),
                tuple(float(w) for w in weights / weights.sum()),
                (float(tint[0]), float(tint[1]), float(tint[2])),
            )
        )
    return tuple(scenes)


def draw_picture(world: World, rng: np.random.Generator, degraded: float | None = None) -> Picture:
    """One picture of the world; `degraded` replaces the world's share of bad photos."""
    number = int(rng.integers(world.scenes))
    scene = scenes_of(world)[number]
    wanted = 1 + int(rng.choice(len(world.kinds), p=world.kinds))
    chosen: list[int] = []
    while len(chosen) < wanted:
        if rng.random() < world.outside:
            category = int(rng.integers(len(world.categories)))
        else:
            category = int(rng.choice(scene.categories, p=scene.weights))
        if category not in chosen:
            chosen.append(category)
    copies = 1 + rng.choice(len(world.copies), size=wanted, p=world.copies)
    categories = np.repeat(chosen, copies)
    cells = rng.permutation(world.grid**2)[: len(categories)]
    order = np.argsort(cells)
    things = tuple(
        _draw_thing(world, rng, int(categories[i]), *divmod(int(cells[i]), world.grid))
        for i in order
    )
    fault, strength = "", 0.0
    if rng.random() < (world.degraded if degraded is None else degraded):
        fault, strength = ("noise", "fog", "blur")[int(rng.integers(3))], float(rng.random())
    return Picture(number, things, fault, strength, int(rng.integers(2**31)))


def _draw_thing(
    world: World, rng: np.random.Generator, category: int, row: int, column: int
) -> Thing:
    side = int(rng.integers(10 * world.cell // 16, world.cell + 1))
    left, top = (int(v) for v in rng.integers(0, world.cell - side + 1, size=2))
    cut = int(rng.integers(4)) if rng.random() < world.occluded else -1
    return Thing(
        *(category, int(rng.integers(len(world.colors))), row, column, side, left, top),
        contrast=float(rng.uniform(0.4, 1.0)),
        cut=cut,
        covered=float(rng.uniform(0.25, 0.55)) if cut >= 0 else 0.0,
    )


def _check_probabilities(parameters: object, exclude: tuple[str, ...]) -> None:
    for name, value in vars(parameters).items():
        if isinstance(value, float) and name not in exclude and not 0 <= value <= 1:
            kind = type(parameters).__name__
            raise CdkitError(f"{kind}.{name} is {value}: a probability lies in 0..1.")


WORLD = World(glyph_seed=7, scene_seed=7)
"""The world of the embedded checkpoint. Fixed before any decoding method was run on it."""

CONFIRMATION_WORLD = World(glyph_seed=1013, scene_seed=1013)
"""A fresh world under the same recipe: what holds in `WORLD` alone is no finding."""
