"""A folder of demonstrations for the tiny model of the tests."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

PROMPT = "is there a cat ?"
PAIRS: tuple[tuple[str, str], ...] = (
    ("a cat", "a cat and a dog"),
    ("yes you are", "or yes"),
    ("w3 w4 in the image", "w3 w4 w5 in the image"),
    ("no dog", "no w7 w8 dog"),
    ("the image", "w9 the image"),
    ("w11 w12", "w12 w11 w2"),
)


def write_folder(folder: Path, image: Callable[[int], Image.Image]) -> Path:
    folder.mkdir(parents=True)
    rows: list[Mapping[str, str]] = []
    for number, (truthful, hallucinated) in enumerate(PAIRS):
        image(number).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "prompt": PROMPT}
        rows.append({**row, "truthful": truthful, "hallucinated": hallucinated})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
