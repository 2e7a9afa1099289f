"""What every part of a method tells about itself: the table of methods is made from it."""

from typing import ClassVar


class Part:
    """The facts behind a part, each of which stands here and nowhere else."""

    formula: ClassVar[str] = ""
    """What it computes, in a line of plain text that names its parameters; empty where the
    docstring's first sentence says it all."""
    source: ClassVar[str] = ""
    """Where formula and defaults were read: section of a paper; or repository, file and commit.
    Empty for a part of ours."""
    bibtex: ClassVar[str] = ""
    """The paper that introduced it, as one BibTeX entry; empty for a part of ours."""
