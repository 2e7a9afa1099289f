"""What every part of a method tells about itself: the table of methods is made from it."""

import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


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
    split_advice: ClassVar[str] = ""
    """Which value of a parameter makes it work without the whole prompt, such as "scope='row'";
    empty where none does."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Of an interface: former names of its attributes -> the names that they have now."""
    removed: ClassVar[Mapping[str, str]] = {}
    """Of an interface: attributes that it no longer has -> what to do instead."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take attributes under former names for the new ones, with a DeprecationWarning.

        It runs before Python looks for abstract methods that are still missing, so a plug-in that
        implements an interface under its former names can be instantiated.
        """
        super().__init_subclass__(**kwargs)
        own = {*inspect.get_annotations(cls), *cls.__dict__}
        where = f"{cls.__module__}.{cls.__qualname__}"
        for base in cls.__mro__[1:]:
            for old, new in base.__dict__.get("renamed", {}).items():
                if old in own and new not in own:
                    _warn(f"{where}: {old} is now called {new}")
                    setattr(cls, new, _alias(cls, old))
            for old, advice in base.__dict__.get("removed", {}).items():
                if old in own:
                    _warn(f"{where}: {old} has no effect any more; {advice}")


def _alias(cls: type, old: str) -> Any:
    """The value or the method itself; a property where instances have values of their own."""
    value = cls.__dict__.get(old)
    declared = str(inspect.get_annotations(cls).get(old, "ClassVar"))
    return value if "ClassVar" in declared else property(lambda self: getattr(self, old))


def _warn(message: str) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=4)


def inner_parts(part: Part) -> Iterator[tuple[str, Part]]:
    """(field, part) of every part that is a parameter of another one, such as a selector."""
    for field in dataclasses.fields(part):  # type: ignore[arg-type]  # every part is a dataclass
        value = getattr(part, field.name)
        if isinstance(value, Part):
            yield field.name, value
