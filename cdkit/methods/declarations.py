"""What the parts of a method declare, checked when the method is made: nothing runs unnoticed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from cdkit.errors import CdkitError
from cdkit.interfaces.combiner import LogitCombiner
from cdkit.interfaces.constraint import Constraint, OnEmpty
from cdkit.interfaces.decoding_loop import MODES, DecodingLoop
from cdkit.interfaces.depth import check_depth
from cdkit.interfaces.distortion import (
    AttentionDistortion,
    DistortionStrategy,
    Modified,
    PromptDistortion,
)
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.part import Part
from cdkit.interfaces.position_calibrator import PositionCalibrator
from cdkit.interfaces.readout import LayerReadout
from cdkit.interfaces.schedule import AlphaSchedule
from cdkit.interfaces.state_intervention import (
    EditedRows,
    Site,
    StateIntervention,
    StateReading,
)

ONE: Mapping[str, type] = {
    "combiner": LogitCombiner,
    "constraint": Constraint,
    "calibrator": PositionCalibrator,
    "readout": LayerReadout,
    "loop": DecodingLoop,
}
"""A method's fields that hold one part, or None, and its interface."""
SEVERAL: Mapping[str, type] = {
    "interventions": Intervention,
    "state_interventions": StateIntervention,
    "schedules": AlphaSchedule,
}
"""Those that hold a tuple of parts."""
IN_LAYERS = (AttentionDistortion, Intervention, StateIntervention)
"""The interfaces whose `layers` is a range of depth."""


def check_fields_of(method: Any) -> None:
    """Raise where a field of a method holds something else than its parts.

    Args:
        method: The method.

    Raises:
        CdkitError: It names the field, and what was found there.
    """
    for name, base in ONE.items():
        part = getattr(method, name)
        if part is not None or name == "combiner":
            _check_part(part, base, f"{name} of {method.name}")
    for name, base in SEVERAL.items():
        for part in _sequence(getattr(method, name), f"{name} of {method.name}"):
            _check_part(part, base, f"{name} of {method.name}")


def check_distortions_of(branch: Any) -> None:
    """The same for the distortions of a branch."""
    where = f"distortions of branch {branch.name!r}"
    for part in _sequence(branch.distortions, where):
        _check_part(part, DistortionStrategy, where)


def _sequence(parts: object, where: str) -> Sequence[object]:
    if not isinstance(parts, tuple | list):
        raise CdkitError(f"{where} must be a tuple of parts, got {parts!r}")
    return parts


def _check_part(part: Any, base: type, where: str) -> None:
    """Raise unless it is a part of this interface that says what it does in allowed words."""
    if not isinstance(part, base):
        what = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
        raise CdkitError(f"{where} must be made of {base.__name__}, got {what}")
    name = type(part).__name__
    if not is_dataclass(part):
        raise CdkitError(f"{name} must be a frozen dataclass: write @dataclass(frozen=True)")
    if isinstance(part, IN_LAYERS):
        check_depth(f"layers of {name}", part.layers)
    if isinstance(part, Intervention | StateIntervention):
        names = part.branches
        if not isinstance(names, tuple | list) or not all(
            isinstance(branch, str) for branch in names
        ):
            raise CdkitError(f"branches of {name} must be a tuple of names, got {names!r}")
    match part:
        case DistortionStrategy():
            _check_set(part, "modifies", Modified)
            if isinstance(part, PromptDistortion):
                _check_flag(part, "needs_text")
        case StateIntervention():
            _check_set(part, "reads", StateReading)
            _check_one(part, "site", Site)
            _check_one(part, "prompt_site", Site)
            _check_one(part, "rows", EditedRows)
            _check_switch(part, part.switch)
        case AlphaSchedule():
            _check_flag(part, "reads_attention")
        case LogitCombiner():
            _check_flag(part, "stateful")
            _check_switch(part, part.switch)
        case Constraint():
            _check_one(part, "on_empty", OnEmpty)
        case DecodingLoop():
            if not part.modes or not set(part.modes) <= set(MODES):
                raise CdkitError(
                    f"modes of {name} must hold some of {', '.join(MODES)}, got {part.modes!r}"
                )


def _check_one(part: Part, name: str, allowed: Any) -> None:
    value = getattr(part, name, None)
    if value not in get_args(allowed):
        choices = ", ".join(map(str, get_args(allowed)))
        raise CdkitError(f"{name} of {type(part).__name__} must be one of {choices}, got {value!r}")


def _check_set(part: Part, name: str, allowed: Any) -> None:
    value = getattr(part, name, None)
    if not isinstance(value, frozenset) or not value <= set(get_args(allowed)):
        choices = ", ".join(map(str, get_args(allowed)))
        raise CdkitError(
            f"{name} of {type(part).__name__} must be a frozenset of some of {choices}, got "
            f"{value!r}"
        )


def _check_flag(part: Part, name: str) -> None:
    value = getattr(part, name, None)
    if not isinstance(value, bool):
        raise CdkitError(
            f"{name} of {type(part).__name__} must be True or False, got {value!r}: write "
            f"{name}: ClassVar[bool] = ... in the class"
        )


def _check_switch(part: Part, switch: str) -> None:
    names = [field.name for field in fields(part)]  # type: ignore[arg-type]  # it is a dataclass
    if switch and switch not in names:
        raise CdkitError(
            f"switch of {type(part).__name__} is {switch!r}, and must be one of its parameters: "
            f"{', '.join(names) or 'it has none'}"
        )
