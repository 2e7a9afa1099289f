"""What the small tasks ask, for lmms-eval: a file beside their YAML, read by its `!function`."""

from typing import Any


def visuals(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"]] if doc["image"] is not None else []


def text(doc: dict[str, Any]) -> str:
    return str(doc["question"])


def results(doc: dict[str, Any], said: list[str]) -> dict[str, float]:
    return {"right": float(said[0].lower().startswith(doc["answer"]))}
