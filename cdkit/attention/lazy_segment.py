"""A cross-modal segment whose rarely read fields are computed when someone reads them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from cdkit.interfaces.segment import CrossModalSegment, check_fields


class LazySegment(CrossModalSegment):
    """The segment of one branch in one layer.

    A lazy field is computed once for the segment and all its changed copies, so that whoever
    compares the fields of two copies sees the same tensor.
    """

    def __init__(
        self, lazy: Mapping[str, Callable[[], Tensor]] | None = None, **fields: Any
    ) -> None:
        """`lazy` computes the fields that `fields` does not have; None: `fields` has them all."""
        if lazy is None:  # as `dataclasses.replace` makes copies
            check_fields(fields)
            lazy = {}
        self.__dict__.update(fields, _lazy=lazy, _computed={})

    def __getattr__(self, name: str) -> Tensor:
        lazy = self.__dict__.get("_lazy", {})
        if name not in lazy:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        computed: dict[str, Tensor] = self.__dict__["_computed"]
        if name not in computed:
            computed[name] = lazy[name]()
        return computed[name]


def changes_field(before: CrossModalSegment, after: CrossModalSegment, name: str) -> bool:
    """Whether a field of a changed copy is another tensor; computes nothing for it."""
    if name not in after.__dict__ and name not in before.__dict__:
        return False
    return getattr(after, name) is not getattr(before, name)
