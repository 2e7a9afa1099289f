"""A product of many cases: a cover of it in the quick tests, the rest `wide`, for CI."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def covering(rows: Sequence[Any], columns: Sequence[Any]) -> list[Any]:
    """The product of both as parameters.

    Each row is quick with one column, in turn; where there are more columns than rows, with the
    first one too.
    """
    always = 0 if len(rows) < len(columns) else None
    return [
        pytest.param(
            row, column, marks=() if at in (always, place % len(columns)) else pytest.mark.wide
        )
        for place, row in enumerate(rows, start=1)
        for at, column in enumerate(columns)
    ]


def a_third(rows: Iterable[Any]) -> list[Any]:
    """The rows as parameters, one of three quick: other tests take each row too."""
    return [
        pytest.param(row, marks=() if place % 3 == 0 else pytest.mark.wide)
        for place, row in enumerate(rows)
    ]
