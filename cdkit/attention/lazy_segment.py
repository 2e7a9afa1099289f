"""A cross-modal segment whose rarely read fields are computed when someone reads them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cdkit.interfaces.segment import CrossModalSegment, check_fields


@runtime_checkable
class FieldSource(Protocol):
    """Computes fields of a segment."""

    computed: dict[str, Tensor]
    """What it has computed: a segment and its changed copies share each tensor, so that whoever
    compares two of them sees that a field is the same."""

    def compute(self, name: str) -> Tensor:
        """The field of that name."""


class LazySegment(CrossModalSegment):
    """The segment of one branch in one layer."""

    def __init__(self, **fields: Any) -> None:
        """With all fields, as `dataclasses.replace` makes copies."""
        check_fields(fields)
        self.__dict__.update(fields)

    @classmethod
    def of(cls, source: FieldSource, known: Mapping[str, Any], **fields: Any) -> "LazySegment":
        """With the fields of `known` and `fields`; `source` computes the others."""
        made = object.__new__(cls)
        made.__dict__.update(known)
        made.__dict__.update(fields)
        made.__dict__["_source"] = source
        return made

    def __getattr__(self, name: str) -> Tensor:
        source: FieldSource | None = self.__dict__.get("_source")
        if source is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name not in source.computed:
            source.computed[name] = source.compute(name)
        return source.computed[name]


def changes_field(before: CrossModalSegment, after: CrossModalSegment, name: str) -> bool:
    """Whether a field of a changed copy is another tensor; computes nothing for it."""
    if name not in after.__dict__ and name not in before.__dict__:
        return False
    return getattr(after, name) is not getattr(before, name)
