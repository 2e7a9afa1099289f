"""A small data folder in the documented layout, made for the tests; nothing is anybody's data."""

import json
from pathlib import Path

from PIL import Image

IMAGES = ("COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg")


def question(number: int, image: str, name: str, label: str) -> dict[str, object]:
    text = f"Is there a {name} in the image?"
    return {"question_id": number, "image": image, "text": text, "label": label}


def pope_rows(images: tuple[str, ...] = IMAGES) -> list[dict[str, object]]:
    things = (("dog", "yes"), ("cat", "no"))
    asked = [(image, name, label) for image in images for name, label in things]
    return [question(i, *row) for i, row in enumerate(asked, start=1)]


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_images(folder: Path, names: tuple[str, ...] = IMAGES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6), "teal").save(folder / name)


def write_coco(folder: Path) -> None:
    """Both annotation files of the two images, each with one dog."""
    listed = [{"id": i, "file_name": name} for i, name in enumerate(IMAGES, start=1)]
    annotations = folder / "coco" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "instances_val2014.json").write_text(
        json.dumps(
            {
                "images": listed,
                "categories": [{"id": 18, "name": "dog"}],
                "annotations": [{"image_id": i, "category_id": 18} for i in (1, 2)],
            }
        )
    )
    (annotations / "captions_val2014.json").write_text(
        json.dumps({"annotations": [{"image_id": i, "caption": "a dog"} for i in (1, 2)]})
    )


def write_folder(folder: Path) -> Path:
    """POPE on coco (all splits), CHAIR and one task of MME, with their images."""
    for split in ("random", "popular", "adversarial"):
        write_lines(folder / "pope" / "coco" / f"coco_pope_{split}.json", pope_rows())
    write_images(folder / "coco" / "val2014")
    write_coco(folder)
    (folder / "chair").mkdir()
    (folder / "chair" / "synonyms.txt").write_text("dog, puppy\ncat, kitten\n")
    (folder / "mme").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "mme" / "0001.png")
    (folder / "mme" / "existence.txt").write_text("0001.png\tA dog?\tYes\n0001.png\tA cat?\tNo\n")
    return folder
