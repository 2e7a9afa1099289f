"""The contract suite: checks that a class of yours keeps the promises of its interface.

Each check takes an instance, raises an AssertionError that says which promise is broken, and
returns None. The check of a part takes milliseconds; `check_adapter` runs the model it is given.
cdkit's tests run the same checks on every class that is registered.

    from cdkit.testing import check_strategy
    check_strategy(MyDistortion(strength=0.5))
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cdkit.interfaces.part import Part
from cdkit.testing.adapter_contract import check_adapter as check_adapter
from cdkit.testing.benchmark_contract import check_benchmark as check_benchmark
from cdkit.testing.calibrator_contract import check_calibrator as check_calibrator
from cdkit.testing.combiner_contract import check_combiner as check_combiner
from cdkit.testing.constraint_contract import check_constraint as check_constraint
from cdkit.testing.distortion_contract import check_strategy as check_strategy
from cdkit.testing.loop_contract import check_loop as check_loop
from cdkit.testing.readout_contract import check_readout as check_readout
from cdkit.testing.schedule_contract import check_schedule as check_schedule
from cdkit.testing.selector_contract import check_selector as check_selector
from cdkit.testing.state_contract import check_state_intervention as check_state_intervention


def variants(cls: type) -> Iterator[Any]:
    """Yield `cls()`, and an instance for every other value of each field with few values.

    Args:
        cls: A dataclass whose fields all have defaults. Fields of type `Literal` or `bool` vary,
            and so do those of a field that is a part itself, such as a selector.
    """
    default = cls()
    yield default
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = get_args(hint) if get_origin(hint) is Literal else (False, True) * (hint is bool)
        value = getattr(default, field.name)
        if isinstance(value, Part):
            choices = tuple(variants(type(value)))
        for choice in choices:
            if choice != value:
                yield dataclasses.replace(default, **{field.name: choice})
