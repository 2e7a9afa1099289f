"""Types of what a run's files hold: they may have been damaged or edited since."""

import math
from collections.abc import Mapping
from typing import Any

from cdkit.errors import CdkitError

TEXT, WHOLE, NUMBER, FLAG, TABLE, ROWS = "text", "whole number", "number", "flag", "table", "list"
WORDS: Mapping[str, str] = {
    TEXT: "text",
    WHOLE: "a whole number from 0 on",
    NUMBER: "a number",
    FLAG: "true or false",
    TABLE: "a JSON object",
    ROWS: "a JSON list of objects",
}
"""A type -> what errors call it. With a question mark behind it, null is allowed too."""


def checked(value: object, types: Mapping[str, str], where: str, advice: str) -> dict[str, Any]:
    """The JSON object `value`, whose keys have these types; keys beside them may be there.

    Args:
        value: What was read.
        types: Key -> one of `WORDS`, with a question mark where null will do.
        where: The file, and the line of it.
        advice: What to do.

    Returns:
        The object.

    Raises:
        CdkitError: It is no object, lacks a key, or has a value of another type.
    """
    if not isinstance(value, dict):
        raise CdkitError(f"{where} holds a JSON {type(value).__name__}, not an object: {advice}")
    for key, kind in types.items():
        if key not in value:
            raise CdkitError(f"{where} lacks {key!r}: {advice}")
        if not _is(value[key], kind):
            null = " or null" if kind.endswith("?") else ""
            raise CdkitError(
                f"{where} has {_short(value[key])} as {key!r}, which must be "
                f"{WORDS[kind.removesuffix('?')]}{null}: {advice}"
            )
    return value


def _is(value: object, kind: str) -> bool:
    if value is None:
        return kind.endswith("?")
    match kind.removesuffix("?"):
        case "text":
            return isinstance(value, str)
        case "flag":
            return isinstance(value, bool)
        case "table":
            return isinstance(value, dict)
        case "list":
            return isinstance(value, list) and all(isinstance(each, dict) for each in value)
        case "whole number":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isnan(value)


def _short(value: object, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
