"""AMBER's discriminative files in small: one image, and every kind of question."""

import json
from pathlib import Path

QUESTIONS = (
    ("discriminative-attribute-state", "yes"),
    ("discriminative-attribute-state", "no"),
    ("discriminative-attribute-number", "no"),
    ("discriminative-attribute-action", "yes"),
    ("discriminative-hallucination", "no"),
    ("discriminative-hallucination", "no"),
    ("discriminative-relation", "yes"),
    ("relation", "no"),
)


def write_amber(folder: Path, images: tuple[str, ...] = ("AMBER_1.jpg",)) -> Path:
    """The query file; its annotations lie in the folder above, as in the release."""
    queries = [
        {"id": 1005 + i, "image": images[i % len(images)], "query": f"Is it {i} ?"}
        for i in range(len(QUESTIONS))
    ]
    annotations: list[dict[str, object]] = [
        {"id": 1, "type": "generative", "truth": ["sky"], "hallu": ["sun"]},
        *(
            {"id": 1005 + i, "type": kind, "truth": truth}
            for i, (kind, truth) in enumerate(QUESTIONS)
        ),
    ]
    (folder / "query").mkdir(parents=True, exist_ok=True)
    path = folder / "query" / "query_discriminative.json"
    path.write_text(json.dumps(queries, indent=1))
    (folder / "annotations.json").write_text(json.dumps(annotations, indent=1))
    return path


SHOWN = (
    # truth, and what people would imagine
    (("sky", "person", "forest", "tree"), ("cloud", "sun")),
    (("ship", "ship", "sea"), ("bird",)),
    (("table",), ("chair", "cup")),
)
RELATION = {
    "sky": [],
    "person": ["man", "woman"],
    "forest": ["tree", "bush"],
    "tree": ["forest", "leave"],
    "cloud": [],
    "sun": ["light"],
    "ship": ["boat"],
    "sea": ["water"],
    "bird": [],
    "table": ["desk"],
    "chair": ["seat"],
    "cup": ["mug"],
    "dog": ["puppy"],
}
SAFE = ("light", "line")


def write_amber_generative(folder: Path, images: tuple[str, ...] = ()) -> Path:
    """The query file of the generative part, and the release's other files in the folder above."""
    names = [images[i % len(images)] if images else f"AMBER_{i + 1}.jpg" for i in range(len(SHOWN))]
    queries = [
        {"id": i + 1, "image": name, "query": "Describe this image."}
        for i, name in enumerate(names)
    ]
    annotations: list[dict[str, object]] = [
        {"id": i + 1, "type": "generative", "truth": list(truth), "hallu": list(hallu)}
        for i, (truth, hallu) in enumerate(SHOWN)
    ]
    annotations += [
        {"id": 1005 + i, "type": kind, "truth": truth} for i, (kind, truth) in enumerate(QUESTIONS)
    ]
    (folder / "query").mkdir(parents=True, exist_ok=True)
    path = folder / "query" / "query_generative.json"
    path.write_text(json.dumps(queries, indent=1))
    (folder / "annotations.json").write_text(json.dumps(annotations, indent=1))
    (folder / "relation.json").write_text(json.dumps(RELATION, indent=1))
    (folder / "safe_words.txt").write_text("\n".join(SAFE))
    return path
