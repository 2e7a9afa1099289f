"""What every part of a method tells about itself: the table of methods is made from it."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from cdkit.interfaces.former_names import FormerNames


class Part(FormerNames):
    """The facts behind a part, each of which stands here and nowhere else."""

    formula: ClassVar[str] = ""
    """What it computes, in a line of plain text that names its parameters; empty where the
    docstring's first sentence says it all."""
    source: ClassVar[str] = ""
    """Where formula and defaults were read: section of a paper; or repository, file and commit.
    Empty for a part of ours."""
    bibtex: ClassVar[str] = ""
    """The paper that introduced it, as one BibTeX entry; empty for a part of ours."""
    split_advice: ClassVar[str] = ""
    """Which value of a parameter makes it work without the whole prompt, such as "scope='row'";
    empty where none does."""


def inner_parts(part: Part) -> Iterator[tuple[str, Part]]:
    """(field, part) of every part that is a parameter of another one, such as a selector."""
    for field in dataclasses.fields(part):  # type: ignore[arg-type]  # every part is a dataclass
        value = getattr(part, field.name)
        if isinstance(value, Part):
            yield field.name, value
