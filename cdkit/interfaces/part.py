"""What every part of a method says about itself: the table of methods is made from it."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from cdkit.interfaces.former_names import FormerNames


class Part(FormerNames):
    """The base class of everything that a method consists of.

    A part is a frozen dataclass: its fields are its parameters. The documented facts about it stand
    in these class attributes and nowhere else.
    """

    formula: ClassVar[str] = ""
    """What it computes, in a line of plain text that names its parameters; empty where the
    docstring's first sentence says it all."""
    source: ClassVar[str] = ""
    """Where formula and defaults come from: the section of a paper; or repository, file and commit.
    Empty for a part that cdkit defines."""
    bibtex: ClassVar[str] = ""
    """The paper that introduced it, as one BibTeX entry; empty for a part that cdkit defines."""
    split_advice: ClassVar[str] = ""
    """Which value of a parameter makes it work without the whole prompt, such as "scope='row'";
    empty where none does."""

    @property
    def lacks(self) -> str:
        """What it needs before it can run, such as a file, and how to get it; empty for nothing."""
        return ""


def inner_parts(part: Part) -> Iterator[tuple[str, Part]]:
    """Find the parts that are a parameter of another part, such as a selector.

    Args:
        part: The outer part.

    Yields:
        The name of the field, and the inner part.
    """
    for field in dataclasses.fields(part):  # type: ignore[arg-type]  # every part is a dataclass
        value = getattr(part, field.name)
        if isinstance(value, Part):
            yield field.name, value
