"""A cross-modal segment whose rarely read fields are computed when someone reads them."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cdkit.interfaces.segment import CrossModalSegment, check_fields


@runtime_checkable
class FieldSource(Protocol):
    """Computes fields of a segment."""

    computed: dict[str, Tensor]
    """What it has computed: a segment and its changed copies share each tensor, so that a
    comparison of the two sees that a field is the same."""

    def compute(self, name: str) -> Tensor:
        """The field of that name."""
        ...


class LazySegment(CrossModalSegment):
    """The segment of one branch in one layer.

    Its maker puts the known fields into its `__dict__`, and a `FieldSource` under
    `_source`: `__init__` would cost as much as the fields that it spares.
    """

    def __init__(self, **fields: Any) -> None:
        """With all fields, as `dataclasses.replace` makes copies."""
        check_fields(fields)
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Tensor:
        source: FieldSource | None = self.__dict__.get("_source")
        if source is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name not in source.computed:
            source.computed[name] = source.compute(name)
        return source.computed[name]
