"""Files that are there whole or not at all, whenever the machine stops."""

import json
import os
from pathlib import Path


def as_json(value: object, indent: int | None = None) -> str:
    """Readable where it can be: a path that is no text is escaped, and read as it was."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.isascii() or _is_text(text) else json.dumps(value, indent=indent)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def write_json(path: Path, content: object) -> None:
    write_whole(path, as_json(content, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """The file has its old content or all of the new."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
