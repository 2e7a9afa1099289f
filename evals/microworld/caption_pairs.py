"""Demonstrations of the world: a true caption of each picture, and one with an absent object."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from cdkit.errors import CdkitError
from cdkit.evals.microworld import text
from cdkit.evals.microworld.drawing import render
from cdkit.evals.microworld.world import WORLD, World, draw_picture, scenes_of

_APART = 2**32 - 2  # keeps these pictures' random stream apart from training's and the benchmarks'


def write_pairs(
    folder: Path | str, *, world: World = WORLD, pairs: int = 70, seed: int = 2026
) -> None:
    """Draw pictures, and write pairs of captions as `cdkit vectors` reads them.

    The truthful caption names all that is there; the hallucinated one names an absent object of
    the same scene beside it, at a random place. No picture is one of the benchmarks'. The same
    arguments write the same files.

    Args:
        folder: The folder to write to.
        world: The world.
        pairs: How many pairs.
        seed: Random seed of pictures and captions.
    """
    if pairs < 1:
        raise CdkitError(f"{pairs=}: it must be 1 or more.")
    images = Path(folder) / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, _APART])
    lines = []
    for number in range(1, pairs + 1):
        picture = draw_picture(world, rng)
        name = f"{number:012d}.png"
        Image.fromarray(render(world, picture)).save(images / name)
        mentions = text.mentions_of(picture)
        scene = scenes_of(world)[picture.scene]
        absent = [c for c in scene.categories if c not in picture.counts()]
        added = (absent[int(rng.integers(len(absent)))], 1, -1)
        place = int(rng.integers(len(mentions) + 1))
        row = {
            "image": f"images/{name}",
            "prompt": text.CAPTION_PROMPT,
            "truthful": text.caption(world, mentions),
            "hallucinated": text.caption(world, [*mentions[:place], added, *mentions[place:]]),
        }
        lines.append(json.dumps(row) + "\n")
    path = Path(folder) / "pairs.jsonl"
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
