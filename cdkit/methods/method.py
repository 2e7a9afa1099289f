"""A method: distorted branches, interventions and a calibrator, and how their logits combine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from cdkit.errors import CdkitError
from cdkit.interfaces.combiner import COMBINERS, LogitCombiner
from cdkit.interfaces.decoding_loop import LOOPS, MODES, DecodingLoop, Mode
from cdkit.interfaces.distortion import (
    DISTORTIONS,
    AttentionDistortion,
    DistortionStrategy,
    FeatureDistortion,
    PixelDistortion,
    PromptDistortion,
)
from cdkit.interfaces.intervention import INTERVENTIONS, Intervention
from cdkit.interfaces.position_calibrator import CALIBRATORS, PositionCalibrator
from cdkit.interfaces.readout import READOUTS, LayerReadout
from cdkit.interfaces.schedule import SCHEDULES, AlphaSchedule
from cdkit.registry import Registry

ORIGINAL = "original"
"""The name of the branch that is not distorted."""


@dataclass(frozen=True)
class Branch:
    """One distorted branch: its distortions are applied in their order."""

    name: str
    distortions: tuple[DistortionStrategy, ...]

    def __post_init__(self) -> None:
        if not self.name or self.name == ORIGINAL or "." in self.name:
            raise CdkitError(
                f"a branch needs a name without dots other than {ORIGINAL!r}, got {self.name!r}"
            )
        if not self.distortions:
            raise CdkitError(
                f"branch {self.name!r} has no distortion; use the distortion 'identical' for a "
                "branch that is not distorted"
            )
        removing = [d for d in self.prompt if d.removes_image]
        others = [d for d in self.distortions if not isinstance(d, PromptDistortion)]
        if removing and others:
            raise CdkitError(
                f"branch {self.name!r}: {kind_of(removing[0])} takes the image out, so "
                f"{kind_of(others[0])} would do nothing there; give each a branch of its own"
            )

    @property
    def pixel(self) -> tuple[PixelDistortion, ...]:
        return tuple(d for d in self.distortions if isinstance(d, PixelDistortion))

    @property
    def feature(self) -> tuple[FeatureDistortion, ...]:
        return tuple(d for d in self.distortions if isinstance(d, FeatureDistortion))

    @property
    def prompt(self) -> tuple[PromptDistortion, ...]:
        return tuple(d for d in self.distortions if isinstance(d, PromptDistortion))

    @property
    def keeps_prefix(self) -> bool:
        """Whether its states up to the first image's last token are the original branch's."""
        inputs = self.pixel or self.feature or self.prompt
        return not inputs and all(distortion.keeps_prefix for distortion in self.attention)

    @property
    def attention(self) -> tuple[AttentionDistortion, ...]:
        return tuple(d for d in self.distortions if isinstance(d, AttentionDistortion))


@dataclass(frozen=True)
class Method:
    """A decoding method as a value: hashable, and equal where its parts are equal."""

    name: str
    combiner: LogitCombiner
    branches: tuple[Branch, ...] = ()
    calibrator: PositionCalibrator | None = None
    interventions: tuple[Intervention, ...] = ()
    readout: LayerReadout | None = None
    schedules: tuple[AlphaSchedule, ...] = ()
    loop: DecodingLoop | None = None
    summary: str = ""
    source: str = ""
    """Where a preset's parameters come from."""

    def __post_init__(self) -> None:
        names = [branch.name for branch in self.branches]
        if len(set(names)) < len(names):
            raise CdkitError(f"branch names must differ, got {', '.join(names)}")
        try:
            hash(self)
        except TypeError as error:
            raise CdkitError(
                f"{self.name} cannot be hashed ({error}): parameters that hold several values are "
                "tuples"
            ) from None
        blind = [b.name for b in self.branches if any(d.removes_image for d in b.prompt)]
        for intervention in self.interventions:
            if not set(intervention.branches) - set(blind):
                raise CdkitError(
                    f"{kind_of(intervention)} acts on no branch that sees the image: name some of "
                    f"{', '.join(n for n in (ORIGINAL, *names) if n not in blind)}"
                )
            for name in intervention.branches:
                if name not in (ORIGINAL, *names):
                    raise CdkitError(
                        f"{kind_of(intervention)} acts on branch {name!r}, but {self.name} has "
                        f"{', '.join((ORIGINAL, *names))}"
                    )
        alpha = getattr(self.combiner, "alpha", 0)
        if alpha and not self.branches and self.readout is None:
            raise CdkitError(
                f"{self.name} has no distorted branch to contrast with, so alpha={alpha} would do "
                "nothing: set alpha = 0, or give it a branch"
            )
        self._check_reads(names)
        pairs: tuple[tuple[str, float], ...] = getattr(self.combiner, "alphas", ())
        for name, _ in pairs:
            if name not in names and self.readout is None:
                raise CdkitError(
                    f"alphas names branch {name!r}, but {self.name} has "
                    f"{', '.join(names) or 'no distorted branch'}"
                )
        if self.schedules and not self.branches and self.readout is None:
            raise CdkitError(
                f"{kind_of(self.schedules[0])} scales alpha, but {self.name} contrasts with no "
                "branch: give it one, or take the schedule out"
            )
        if self.schedules and not self.combiner.contrastive:
            raise CdkitError(
                f"{kind_of(self.schedules[0])} scales alpha, but {kind_of(self.combiner)} does not "
                "take differences to the original branch; use the combiner 'contrast'"
            )
        if self.loop is not None and self.stateful:
            raise CdkitError(
                f"{kind_of(self.loop)} takes tokens back, so {self.name} cannot carry a state from "
                "step to step: use no schedule, and a combiner that depends on no step"
            )

    def _check_reads(self, names: Sequence[str]) -> None:
        """Raise where the combiner gets nothing to read, or never reads what is there."""
        if hasattr(self.combiner, "alpha"):
            return  # said by alpha: 0 switches a branch, or a readout, off
        given = [*names, *(["readout"] if self.readout is not None else [])]
        if given and not any(map(self.combiner.uses, given)):
            raise CdkitError(
                f"{kind_of(self.combiner)} reads no other logits, so {given[0]!r} of {self.name} "
                "would do nothing: take it out, or use the combiner 'contrast'"
            )
        if not given and self.combiner.uses("any"):
            raise CdkitError(
                f"{kind_of(self.combiner)} needs other logits, but {self.name} has no branch and "
                "no readout; give it one"
            )

    @property
    def live_branches(self) -> tuple[Branch, ...]:
        """The branches whose logits can change the result."""
        return tuple(branch for branch in self.branches if self.combiner.uses(branch.name))

    @property
    def is_identity(self) -> bool:
        """Whether the method has nothing to do: then the stock model runs untouched."""
        return (
            not self.live_branches
            and not self.interventions
            and self.readout is None
            and self.loop is None
            and self.combiner.is_identity
            and (self.calibrator is None or self.calibrator.is_identity)
        )

    @property
    def stateful(self) -> bool:
        """Whether a step's logits depend on the steps before it."""
        return self.combiner.stateful or bool(self.schedules)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The decode modes that the method is defined for."""
        return tuple(m for m in MODES if self.loop is None or m in self.loop.modes)

    @property
    def whole_prompt_parts(self) -> tuple[str, ...]:
        """The kinds of the parts that need all text rows of a prompt in one call."""
        parts: list[AttentionDistortion | Intervention] = [*self.interventions]
        parts += [d for branch in self.branches for d in branch.attention]
        return tuple(kind_of(part) for part in parts if part.needs_whole_prompt)

    def parts(self) -> Iterator[tuple[str, Any]]:
        """(dotted place, part) of every part, the combiner first."""
        yield "combiner", self.combiner
        if self.calibrator is not None:
            yield "calibrator", self.calibrator
        if self.readout is not None:
            yield "readout", self.readout
        if self.loop is not None:
            yield "loop", self.loop
        yield from _numbered("schedules", self.schedules)
        yield from _numbered("interventions", self.interventions)
        for branch in self.branches:
            yield from _numbered(branch.name, branch.distortions)

    def to_dict(self) -> dict[str, Any]:
        """The whole method as plain data, every default spelt out; `cdkit.load` reads it back."""
        data: dict[str, Any] = {
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
        }
        data["combiner"] = describe(self.combiner)
        if self.calibrator is not None:
            data["calibrator"] = describe(self.calibrator)
        if self.readout is not None:
            data["readout"] = describe(self.readout)
        if self.loop is not None:
            data["loop"] = describe(self.loop)
        if self.schedules:
            data["schedules"] = [describe(part) for part in self.schedules]
        if self.interventions:
            data["interventions"] = [describe(part) for part in self.interventions]
        data["branches"] = [
            {"name": branch.name, "distortions": [describe(part) for part in branch.distortions]}
            for branch in self.branches
        ]
        return data


REGISTRIES: Mapping[str, Registry[Any]] = {
    "combiner": COMBINERS,
    "calibrator": CALIBRATORS,
    "readout": READOUTS,
    "loop": LOOPS,
    "schedules": SCHEDULES,
    "interventions": INTERVENTIONS,
    "distortions": DISTORTIONS,
}
"""The table of a method's configuration -> the registry that its `kind` is looked up in."""


def kind_of(part: object) -> str:
    """The registered name of a part's class, or the class's own name where it is not registered."""
    for registry in REGISTRIES.values():
        if type(part) in registry.values():
            return registry.name_of(type(part))
    return type(part).__name__


def _numbered(place: str, parts: Sequence[object]) -> Iterator[tuple[str, Any]]:
    """`place.kind` of each part; the second of a kind is `place.kind_2`."""
    seen: dict[str, int] = {}
    for part in parts:
        kind = kind_of(part)
        seen[kind] = seen.get(kind, 0) + 1
        yield f"{place}.{kind}" + (f"_{seen[kind]}" if seen[kind] > 1 else ""), part


def describe(part: object) -> dict[str, Any]:
    """A part as plain data: its kind and all of its parameters."""
    if not is_dataclass(part):
        raise TypeError(f"{type(part).__name__} must be a frozen dataclass to be described")
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {"kind": kind_of(part)} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
