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
